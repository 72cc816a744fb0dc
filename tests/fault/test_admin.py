"""
Administration: what imapmuxctl makes of an imapmux that runs, who may do what, and peers of the socket that do not
behave.
"""
import calendar
import concurrent.futures
import contextlib
import ctypes
import grp
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import servers
from stage import FILES, PASSWORD, Store, shard
from test_storm import of_worker

DONE, FAILED, WRONG_USAGE, NO_CONNECTION = range(4)
CLIENTS_MAX, REQUEST_MAX, PATIENCE_SECONDS = 64, 64 * 1024, 10
USERS = [of_worker(0)[0], of_worker(1)[0]]
DIRECTORY = """
auth {{ sources = {{ldap}} }}
ldap {{ uri = {{"{uri}"}} base = "{base}" }}
route {{ sources = {{file}} file = "routes" }}
"""
COMMANDS = re.findall(r'^    X\(\w+, "([^"]+)"', (servers.REPOSITORY / "proxy/ctl/commands.def").read_text(), re.MULTILINE)
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else")


@pytest.fixture(scope="module")
def store():
    with Store() as only:
        yield only


@pytest.fixture(scope="module")
def begin(start, store):
    """Starts a proxy with these settings in its section admin."""
    def begin_one(admin="", sources=FILES, more="", **options):
        return start(shard("store", store.port), workers=2, sources=sources, **options,
                     more=f'admin {{ socket = "admin.sock" {admin} }}\n{more}')
    return begin_one


@pytest.fixture(scope="module")
def proxy(begin):
    return begin()


def path_of(proxy):
    return proxy.folder / "admin.sock"


def ctl(proxy, *words, socket_path=None, program=None, **options):
    program = program or proxy.binary.with_name("imapmuxctl")
    return subprocess.run([program, "-s", socket_path or path_of(proxy), *words], capture_output=True, text=True,
                          timeout=60, env=proxy.environment(), **options)


def done(proxy, *words, **options):
    """What it prints, when all is well."""
    result = ctl(proxy, *words, **options)
    assert (result.returncode, result.stderr) == (DONE, ""), result
    return result.stdout


def connect(proxy):
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path_of(proxy)))  # waits while the line is full, which it would not with a time-out
    peer.settimeout(60)
    return peer


def admitted(proxy):
    """A connection that is served, as soon as there is a place: those of the test before may still be there."""
    def attempt():
        peer = connect(proxy)
        with contextlib.suppress(ConnectionError):  # if it is turned away
            peer.sendall(b'{"command":"version"}\n')
            if b'"ok":true' in peer.makefile("rb").readline():
                return peer
        peer.close()
    return servers.wait_for(attempt, "a place")


def until_end(peer):
    received = b""
    try:
        while piece := peer.recv(65536):
            received += piece
    except ConnectionError:  # what it had sent was not read
        pass
    return received


def lines(peer):
    return [json.loads(line) for line in peer.makefile("rb")]


# Commands

def test_version(proxy):
    version = re.search(r'VERSION := (\S+)', (servers.REPOSITORY / "Makefile").read_text()).group(1)
    assert done(proxy, "version") == version + "\n"
    assert json.loads(done(proxy, "version", "--json")) == version
    assert done(proxy, "--version") == f"imapmuxctl {version}\n"


def test_status(proxy):
    with proxy.logged_in():
        status = json.loads(done(proxy, "-j", "status"))
        table = done(proxy, "status")
    expected = {"version": done(proxy, "version").strip(), "pid": proxy.process.pid, "state": "running",
                "configuration": str(proxy.folder / "proxy.conf"), "log_level": "info", "auth_sources": ["passwd"],
                "route_sources": ["file"], "workers": 2, "sessions": 1, "max_sessions": 16384, "phases": {"relay": 1},
                "stores": {"up": 1, "down": [], "withdrawn": []}}
    assert {name: status.get(name) for name in expected} == expected
    assert 0 <= status["uptime_seconds"] < 600 and "redis" not in status and "ldap" not in status
    read = calendar.timegm(time.strptime(status["configuration_read"], "%Y-%m-%dT%H:%M:%SZ"))
    assert 0 <= time.time() - read < 600
    assert [row["state"] for row in status["worker_threads"]] == ["well"] * 2
    assert sum(row["relayed"] for row in status["worker_threads"]) == 1 and status["logins"]["ok"] >= 1
    certificate, = status["certificates"]
    assert certificate["name"] == "localhost" and 3600 < certificate["left_seconds"] and certificate["file"].endswith("server.crt")
    resources = status["resources"]
    assert 10 < resources["descriptors"] < 200 < resources["max_descriptors"] and resources["memory_bytes"] > 1 << 20
    assert re.search(r"^uptime +(\d+m )?\d+s$", table, re.M) and re.search(r"^  memory +\d+\.\d MiB$", table, re.M)
    assert re.search(r"^worker threads\n  worker  state +relayed ", table, re.M) and "\nphases\n  relay  1\n" in table


@contextlib.contextmanager
def hanging(proxy):
    """All threads but the first one stand still."""
    libc = ctypes.CDLL(None, use_errno=True)
    threads = [int(name) for name in os.listdir(f"/proc/{proxy.process.pid}/task") if int(name) != proxy.process.pid]

    def trace(request, thread):
        assert libc.ptrace(request, thread, None, None) == 0, os.strerror(ctypes.get_errno())
    for thread in threads:
        trace(16, thread)  # PTRACE_ATTACH
        os.waitpid(thread, 0x40000000)  # __WALL
    try:
        yield
    finally:
        for thread in threads:
            trace(17, thread)  # PTRACE_DETACH


@as_root
def test_workers_that_hang(proxy):
    with hanging(proxy):
        status = json.loads(done(proxy, "-j", "status"))
        late = ctl(proxy, "--timeout", "200ms", "who")
    assert [row["state"] for row in status["worker_threads"]] == ["silent"] * 2
    assert (late.returncode, late.stdout) == (NO_CONNECTION, "")
    assert late.stderr == "imapmuxctl: there was no answer within 0.2 s: imapmux is very busy, or hangs\n"
    assert json.loads(done(proxy, "-j", "status"))["worker_threads"][0]["state"] == "well"


def test_metrics_are_those_of_the_file(proxy):
    proxy.logged_in().close()
    servers.wait_for(lambda: json.loads(done(proxy, "-j", "status"))["sessions"] == 0, "the session to end")
    kept = proxy.metrics()
    printed = dict(line.rsplit(" ", 1) for line in done(proxy, "metrics").splitlines() if not line.startswith("#"))
    assert printed.keys() == kept.keys() and len(kept) > 50
    assert all(float(value) == kept[name] for name, value in printed.items() if not name.startswith("process_"))
    assert json.loads(done(proxy, "metrics", "--json")).splitlines()[:9] == done(proxy, "metrics").splitlines()[:9]


def test_config_show(proxy, folder):
    shown = done(proxy, "config", "show")
    assert f'socket = "{path_of(proxy)}"' in shown and "workers = 2" in shown and "linger_timeout" not in shown
    (folder / "shown.conf").write_text(shown)
    checked = subprocess.run([proxy.binary, "-t", "-c", folder / "shown.conf"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert done(proxy, "config", "show", "session", "--defaults").startswith("session {\n    idle_timeout = 35m\n")


def test_log_level(proxy):
    def phases():
        with proxy.logged_in():
            return len(proxy.events("phase"))

    assert done(proxy, "log", "level") == "info\n"
    before = phases()
    assert done(proxy, "log", "level", "debug") == "debug\n"
    assert done(proxy, "log", "level") == "debug\n"
    assert before == 0 and phases() > 0
    assert done(proxy, "log", "level", "--level", "info") == "info\n"
    assert json.loads(done(proxy, "log", "level", "--json")) == "info"


@pytest.fixture(scope="module")
def directory(folder):
    with servers.Slapd(folder / "admin-slapd", users={user: PASSWORD for user in USERS}) as slapd:
        yield slapd


def test_cache_flush(begin, directory):
    sources = DIRECTORY.format(uri=directory.uri, base=servers.LDAP_BASE)
    proxy = begin(sources=sources, more="auth_cache { ttl = 1h negative_ttl = 1h }\n")

    def binds_of(user, password=PASSWORD):
        before = proxy.metrics()["imapmux_ldap_binds_total"]
        with proxy.wire() as wire:
            answer = wire.command(f"LOGIN {user} {password}".encode(), tag=b"in")
        assert answer.startswith(b"in OK" if password == PASSWORD else b"in NO"), answer
        return proxy.metrics()["imapmux_ldap_binds_total"] - before

    one, other = USERS
    assert [binds_of(user) for user in USERS] == [1, 1]
    assert [binds_of(user) for user in USERS] == [0, 0]
    assert done(proxy, "cache", "flush", one.upper()) == ""  # names are made uniform
    assert [binds_of(other), binds_of(one), binds_of(one)] == [0, 1, 0]
    assert done(proxy, "cache", "flush", "--user", "somebody-else") == ""
    assert [binds_of(user) for user in USERS] == [0, 0]
    assert done(proxy, "cache", "flush", "--json") == ""
    assert [binds_of(user) for user in USERS] == [1, 1]
    assert [binds_of(one, "wrong"), binds_of(one, "wrong")] == [1, 0]
    assert done(proxy, "cache", "flush", one) == ""
    assert binds_of(one, "wrong") == 1  # a refusal is forgotten, too


# The command line

@pytest.mark.parametrize("words,status,reason", [
    ([], WRONG_USAGE, "Usage: imapmuxctl"),
    (["sing"], WRONG_USAGE, 'imapmuxctl: there is no command "sing"; see imapmuxctl --help\n'),
    (["cache"], WRONG_USAGE, "\n  cache flush [USER]"),
    (["cahce", "flush"], WRONG_USAGE, "\n  cache flush [USER]"),
    (["statsu"], WRONG_USAGE, "see imapmuxctl --help\n  status "),
    (["cache", "sing", "loud", "x" * 100], WRONG_USAGE, 'there is no command "cache sing loud"'),
    (["x" * 100], WRONG_USAGE, "there is no command"),
    (["version", "now"], WRONG_USAGE, "imapmuxctl: one word too many: now"),
    (["cache", "flush", "ann", "bob"], WRONG_USAGE, "one word too many: bob"),
    (["cache", "flush", "ann", "--user", "bob"], WRONG_USAGE, "one word too many: ann"),
    (["cache", "flush", "--user", "ann", "--user", "bob"], WRONG_USAGE, "given twice: user"),
    (["cache", "flush", "--user"], WRONG_USAGE, "option '--user' requires an argument"),
    (["--timeout", "soon", "status"], WRONG_USAGE, "expected a time like 10s or 2m, found soon"),
    (["cache", "flush", "--sing"], WRONG_USAGE, "'--sing'\nimapmuxctl: see imapmuxctl help cache flush\n"),
    (["--sing", "status"], WRONG_USAGE, "unrecognized option '--sing'\nimapmuxctl: see imapmuxctl --help\n"),
    (["cache", "flush", b"\xff"], WRONG_USAGE, "no text in UTF-8: user"),
    (["log", "level", "loud"], WRONG_USAGE, '"level" is "loud", expected one of error|warning|info|debug'),
    (["help", "sing"], WRONG_USAGE, "there is no command"),
    (["cache", "flush", "not a user"], FAILED, "imapmuxctl: this cannot be the name of a user\n"),
    (["cache", "flush", "--", "-x y"], FAILED, "imapmuxctl: this cannot be the name of a user\n"),
])
def test_what_is_wrong_is_said(proxy, words, status, reason):
    result = ctl(proxy, *words)
    assert (result.returncode, result.stdout) == (status, "") and reason in result.stderr, result


def test_help(proxy):
    whole = done(proxy, "--help")
    assert whole == done(proxy, "help") and "\n  cache flush [USER] " in whole
    about_one = done(proxy, "help", "cache", "flush")
    assert about_one.startswith("Usage: imapmuxctl [OPTION...] cache flush [USER]\n") and "--user USER" in about_one
    assert about_one == done(proxy, "cache", "flush", "-h") == done(proxy, "-h", "cache", "flush")


@pytest.mark.parametrize("typed,offered", [
    ([""], {name.split()[0] for name in COMMANDS} | {"help", "--all", "--json", "--socket", "--timeout", "--help"}),
    (["st"], {"status"}), (["cache", ""], {"flush"}), (["-s", "some/path", "--json", "log", ""], {"level"}),
    (["log", "level", ""], {"--level", "error", "warning", "info", "debug"}), (["help", "cache", ""], {"flush"}),
    (["version", ""], set()), (["cache", "flush", "--"], {"--user"}), (["export", ""], {"--shard", "--csv"}),
    (["import", "--"], {"--file", "--replace", "--dry-run"}), (["import", "/etc/nsswitch.c"], {"/etc/nsswitch.conf"}),
    (["move", "--from-file", "/etc/nsswitch.c"], {"/etc/nsswitch.conf"}),
    (["who", "--by", ""], {"user", "address", "shard"}), (["sessions", "--sort", "i"], {"idle"}),
    (["-s", "{socket}", "shard", "drain", ""], {"--shard", "--let-go", "store"}), (["shard", "drain", "st"], set()),
    (["-s", "{socket}", "move", "--to", ""], {"store"}), (["-s", "{socket}", "kick", "--user", ""], {"alice"}),
])
def test_completion(proxy, typed, offered):
    script = done(proxy, "--print-completion")
    program = proxy.binary.with_name("imapmuxctl")
    words = " ".join(f"'{word}'" for word in [program, *typed]).replace("{socket}", str(path_of(proxy)))
    script += f'COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _imapmuxctl; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    with proxy.logged_in("alice"):
        answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=proxy.environment())
    assert set(answer.stdout.split()) == offered and answer.stderr == ""


def test_the_socket_is_named_by_the_environment_too(proxy):
    program = proxy.binary.with_name("imapmuxctl")
    environment = {**proxy.environment(), "IMAPMUX_SOCKET": str(path_of(proxy))}
    assert subprocess.run([program, "version"], env=environment, capture_output=True, check=True).stdout


@pytest.mark.parametrize("path,reason", [
    ("/nonexistent/admin.sock",
     "No such file or directory: imapmux does not run, or its setting admin.socket names another path, which -s takes"),
    ("/etc/passwd", "Connection refused: nobody listens there; does imapmux run?"), ("x" * 108, "File name too long")])
def test_no_connection(proxy, path, reason):
    result = ctl(proxy, "version", socket_path=path)
    assert (result.returncode, result.stdout) == (NO_CONNECTION, "")
    assert result.stderr == f"imapmuxctl: {path}: {reason}\n"


def test_a_result_that_cannot_be_written(proxy):
    program = proxy.binary.with_name("imapmuxctl")
    with open("/dev/full", "w") as full:
        result = subprocess.run([program, "-s", path_of(proxy), "metrics"], stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (FAILED, b"imapmuxctl: the result could not be written\n")


@pytest.mark.parametrize("told,status,reason", [
    (b"", FAILED, "the connection has ended without an answer"), (b'{"item":1}\n{"ok":tr', FAILED, "without an answer"),
    (b"imapmux\n", FAILED, "the answer makes no sense"), (b"{}\n", FAILED, "the answer makes no sense"),
    (b'{"item":{"n":1}}\n{"item":{"n":2}}\n{"ok":true,"result":null}\n', DONE, ""),
    (b'{"item":{"n":1}}\n{"item":{"n":2}}\n{"ok":false,"error":"no more"}\n', FAILED, "imapmuxctl: no more\n"),
    (b'{"ok":false,"error":"no \\u001b[2J"}\n', FAILED, "imapmuxctl: no \\x1b[2J\n")])
def test_what_a_server_may_say(proxy, folder, told, status, reason):
    path = folder / "other.sock"
    with socket.socket(socket.AF_UNIX) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        server.bind(str(path))
        server.listen()
        running = pool.submit(ctl, proxy, "status", socket_path=path)
        peer = server.accept()[0]
        assert json.loads(peer.makefile("rb").readline()) == {"command": "status", "arguments": {}}
        peer.sendall(told)
        peer.shutdown(socket.SHUT_RDWR)
        result = running.result()
    path.unlink()
    assert result.returncode == status and reason in result.stderr, result
    assert result.stdout == ("n\n1\n2\n" if b'"n":2' in told else "1\n" if b"item" in told else "")


# Who may do what

@pytest.fixture(scope="module")
def program(proxy, folder):
    """A copy that everybody can run."""
    return shutil.copy(proxy.binary.with_name("imapmuxctl"), folder / "imapmuxctl")


def as_nobody(*groups):
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid,
            "extra_groups": [grp.getgrnam(name).gr_gid for name in groups]}


@as_root
def test_the_mode_keeps_others_out(proxy, program):
    assert path_of(proxy).stat().st_mode & 0o7777 == 0o660
    result = ctl(proxy, "version", program=program, **as_nobody())
    assert result.returncode == NO_CONNECTION and result.stderr.endswith(
        "Permission denied: who may connect is told by mode, group and readers of section admin\n")


def logged(proxy, event, **fields):
    """Waits for a line with these fields; the log comes by its own way."""
    servers.wait_for(lambda: any(fields.items() <= line.items() for line in proxy.events(event)), f"{event} {fields}")


def test_whoever_waits_for_a_process_that_hangs_is_told(proxy):
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        os.kill(proxy.process.pid, signal.SIGSTOP)
        try:
            looks = ctl(proxy, "status", "--timeout", "100ms")
            changes = subprocess.Popen([proxy.binary.with_name("imapmuxctl"), "-s", path_of(proxy), "cache", "flush"],
                                       stderr=subprocess.PIPE, text=True, env=proxy.environment())
            assert "imapmuxctl: no answer yet" in reader.submit(changes.stderr.readline).result(timeout=30)
        finally:
            os.kill(proxy.process.pid, signal.SIGCONT)
    assert looks.returncode == NO_CONNECTION and "there was no answer within 0.1 s" in looks.stderr
    assert (changes.communicate(timeout=60)[1], changes.returncode) == ("", DONE)


def test_signs_of_life_do_not_fill_the_log(begin):
    """`trace` asks three times a second."""
    proxy = begin()
    for _ in range(30):
        done(proxy, "trace", "fetch", "ann", "0123456789abcdef")
    done(proxy, "cache", "flush", "ann")
    logged(proxy, "admin", command="cache flush")
    assert 10 <= [line["command"] for line in proxy.events("admin")].count("trace fetch") < 30  # log.repeats


@as_root
def test_whom_the_mode_lets_in_may_do_all(begin, program):
    proxy = begin("group = games")
    assert path_of(proxy).group() == "games"
    assert ctl(proxy, "version", program=program, **as_nobody("users")).returncode == NO_CONNECTION
    done(proxy, "cache", "flush", "ann", program=program, **as_nobody("users", "games"))
    logged(proxy, "admin", level="info", command="cache flush", uid=str(pwd.getpwnam("nobody").pw_uid),
           arguments=r'{\"user\":\"ann\"}')


@as_root
def test_readers_look_and_change_nothing(begin, program):
    proxy = begin("mode = 0666 group = games readers = users")
    reader, operator = as_nobody("users"), as_nobody("users", "games")
    for words in ["status"], ["metrics"], ["log", "level"], ["config", "show"], ["sessions"], ["users"], ["pool"]:
        done(proxy, *words, program=program, **reader)
    for words in ["cache", "flush"], ["log", "level", "debug"]:
        result = ctl(proxy, *words, program=program, **reader)
        assert (result.returncode, result.stderr) == (FAILED, "imapmuxctl: this is for operators only\n")
        logged(proxy, "admin refused", level="warning", command=" ".join(words[:2]))
        done(proxy, *words, program=program, **operator)
        done(proxy, *words)
    result = ctl(proxy, "version", program=program, **as_nobody())
    assert (result.returncode, result.stderr) == (FAILED, "imapmuxctl: you may not do anything here\n")
    servers.wait_for(lambda: "command" not in proxy.events("admin refused")[-1], "the refusal of the last one")


MANY_READERS = """
import contextlib, socket, sys
peers, answer = [], b'"ok":true'
while b'"ok":true' in answer:
    peers.append(socket.socket(socket.AF_UNIX))
    peers[-1].connect(sys.argv[1])
    answer = b""
    with contextlib.suppress(ConnectionError):  # if it is turned away
        peers[-1].sendall(b'{"command":"version"}\\n')
        answer = peers[-1].makefile("rb").readline()
print(len(peers) - 1, flush=True)
sys.stdin.read()
"""


@as_root
def test_readers_leave_room_for_operators(begin, folder):
    proxy = begin("mode = 0666 group = games readers = users")
    with subprocess.Popen([sys.executable, "-c", MANY_READERS, path_of(proxy)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, cwd="/", **as_nobody("users")) as readers:
        assert int(readers.stdout.readline()) < CLIENTS_MAX
        done(proxy, "status")
        readers.stdin.close()


# The file

def start_beside(proxy, path="admin.sock"):
    """Another imapmux with the same configuration, but for the socket's path."""
    other = proxy.folder / "other.conf"
    other.write_text((proxy.folder / "proxy.conf").read_text().replace('"admin.sock"', f'"{path}"'))
    return subprocess.run([proxy.binary, "-c", other], capture_output=True, text=True, timeout=60,
                          env=proxy.environment())


def test_whoever_listens_keeps_the_socket(proxy):
    second = start_beside(proxy)
    assert second.returncode == 1
    assert second.stderr.endswith(f"imapmux: admin: {path_of(proxy)}: another process listens there\n")
    assert json.loads(done(proxy, "-j", "status"))["pid"] == proxy.process.pid


@pytest.mark.parametrize("path,said", [("nowhere/admin.sock", r"admin\.socket: .* FOLDER/nowhere: No such file or directory"),
                                       ("routes", "admin: FOLDER/routes: there is a file that is no socket")])
def test_a_socket_that_cannot_be_made(proxy, path, said):
    second = start_beside(proxy, path)
    assert second.returncode == 1
    assert re.search(f"^imapmux: {said.replace('FOLDER', str(proxy.folder))}\n\\Z", second.stderr, re.MULTILINE)
    assert (proxy.folder / "routes").is_file()


def test_a_socket_that_was_left_behind_is_replaced(begin):
    proxy = begin()
    proxy.process.kill()
    proxy.process.wait()
    assert ctl(proxy, "version").returncode == NO_CONNECTION and path_of(proxy).is_socket()
    proxy.lines.clear()
    proxy.start()
    done(proxy, "version")
    proxy.stop()
    assert not path_of(proxy).exists()


# Peers of the socket

def test_too_many_connections(proxy):
    peers = [admitted(proxy) for _ in range(CLIENTS_MAX)]
    result = ctl(proxy, "status")
    assert (result.returncode, result.stderr) == (FAILED, "imapmuxctl: too many connections\n")
    peers.pop().close()
    servers.wait_for(lambda: ctl(proxy, "version").returncode == DONE, "a place to become free")
    for peer in peers:
        peer.sendall(b'{"command":"version"}\n')
        peer.shutdown(socket.SHUT_WR)
        assert [answer["ok"] for answer in lines(peer)] == [True]
        peer.close()


@pytest.mark.parametrize("said,answers", [
    (b"", 0), (b"\n", 1), (b'{"command":"version"', 0), (b'{"command":\n"version"}\n', 2), (b"\0\0\n\xff\xfe\n", 2),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 0), (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 3),
    (b"{" * REQUEST_MAX + b"\n", 1), (b"x" * (REQUEST_MAX + 1), 1), (b"[" * (8 << 20), 1)],
    ids=lambda value: str(value)[:20])
def test_garbage(proxy, said, answers):
    with connect(proxy) as peer:
        try:
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
        except ConnectionError:
            assert len(said) > REQUEST_MAX
        told = [json.loads(line) for line in until_end(peer).splitlines()]
    assert [answer["ok"] for answer in told] == [False] * answers
    assert all(answer["error"] for answer in told)
    done(proxy, "version")


def test_a_request_octet_by_octet(proxy):
    with connect(proxy) as peer:
        answers = peer.makefile("rb")
        for _ in range(2):
            for octet in b'{"command":"cache flush"}\n':
                peer.sendall(bytes([octet]))
            assert json.loads(answers.readline()) == {"ok": True, "result": None}


def test_slow_ones_are_let_go(proxy):
    """Who sends nothing, half a request, or does not take its answers; meanwhile others are served."""
    silent, half, deaf = connect(proxy), connect(proxy), connect(proxy)
    half.sendall(b'{"command":"ver')
    deaf.settimeout(1)
    with pytest.raises(TimeoutError):
        while True:  # nothing is read while answers wait
            deaf.sendall(b'{"command":"metrics"}\n' * 100)
    begin = time.monotonic()
    done(proxy, "version")
    for peer in silent, half:
        assert until_end(peer) == b""
    done(proxy, "version")
    assert time.monotonic() - begin < 6 * PATIENCE_SECONDS
    deaf.settimeout(60)
    assert until_end(deaf).startswith(b'{"ok":true')
    for peer in silent, half, deaf:
        peer.close()


def test_clients_that_vanish(proxy):
    before = proxy.descriptors()
    for number in range(300):
        with connect(proxy) as peer, contextlib.suppress(ConnectionError):
            peer.sendall([b'{"command":"cache flush"}\n', b'{"command":"metrics"}\n' * 5, b'{"comm'][number % 3])
    servers.wait_for(lambda: proxy.descriptors() == before, "all connections to end")
    for peer in [admitted(proxy) for _ in range(CLIENTS_MAX)]:
        peer.close()


def test_many_at_once(proxy):
    with concurrent.futures.ThreadPoolExecutor(CLIENTS_MAX) as pool:
        peers = [admitted(proxy) for _ in range(CLIENTS_MAX)]
        requests = b"".join(b'{"command":"cache flush","arguments":{"user":"user%d"}}\n' % n for n in range(200))

        def play(peer):
            peer.sendall(requests)
            peer.shutdown(socket.SHUT_WR)
            with peer:
                return lines(peer)
        for answers in pool.map(play, peers):
            assert answers == [{"ok": True, "result": None}] * 200


# The end

@pytest.mark.parametrize("attempt", range(5))
def test_the_process_ends_while_workers_are_asked(begin, attempt):
    proxy = begin()
    peers = [connect(proxy) for _ in range(CLIENTS_MAX)]
    for peer in peers:
        peer.sendall(b'{"command":"cache flush"}\n' * 100)
    for peer in peers[:attempt]:
        assert peer.recv(1) == b"{"
    assert proxy.stop() == 0
    for peer in peers:
        assert set(until_end(peer).splitlines()[:-1]) <= {b'{"ok":true,"result":null}', b'"ok":true,"result":null}'}
        peer.close()
    assert not path_of(proxy).exists()


def test_status_tells_of_a_stop(begin):
    def hang(peer):
        peer.log_in()
        peer.line()
        peer.wait_for_end()

    with Store(hang) as store:
        proxy = begin(stop_timeout="60s", more=shard("hanging", store.port), routes={"alice": "hanging"})
        with proxy.logged_in() as wire:
            wire.send(b"t1 NOOP\r\n")
            proxy.process.send_signal(signal.SIGTERM)
            servers.wait_for(lambda: json.loads(done(proxy, "-j", "status"))["state"] == "stopping", "the stop")
            assert json.loads(done(proxy, "-j", "status"))["sessions"] == 1
        proxy.process.wait(60)
    assert not path_of(proxy).exists()
