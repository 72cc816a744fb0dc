"""
Upgrades: a new process takes the place of one that runs. No client is refused and no session dropped, whatever fails on
the way. With IMAPMUX_LARGE in the environment there are ten times as many sessions.
"""
import array
import concurrent.futures
import contextlib
import glob
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

import servers
from generations import Generations, subreaper
from imapwire import Wire
from stage import PASSWORD, Store, good, shard

IDLE, BUSY = (1000, 50) if os.environ.get("IMAPMUX_LARGE") else (100, 10)
STORM = 4
STAY = "drain_time = 7d"  # nobody is let go as long as a test takes
USERS = [f"user{number}" for number in range(20)]
BEGIN = {"command": "handover", "arguments": {"step": "begin", "protocol": "1"}}
RELEASE = {"command": "handover", "arguments": {"step": "release"}}
FINISH = {"command": "handover", "arguments": {"step": "finish"}}
BY_REDIS = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{redis}} keep_while_down = 1h timeout = 1s snapshot = "snapshot" }}
redis {{ address = "{redis}" connect_timeout = 500ms timeout = {timeout} retry_max = 200ms node_expiry = 2s }}
"""


@pytest.fixture(scope="module", autouse=True)
def orphans():
    with subreaper():
        yield


def patient(peer):
    """A store whose sessions may be idle for as long as they like."""
    peer.socket.settimeout(None)
    good(peer)


@pytest.fixture(scope="module")
def store():
    with Store(patient) as only:
        yield only
        only.check()


@pytest.fixture
def begin(folder, certificate, store, request):
    """Starts proxies, which end with the test."""
    with contextlib.ExitStack() as stack:
        def begin_one(shards=None, **options):
            name = f"{request.node.name}-{len(glob.glob(str(folder / '*')))}".replace("[", "-").replace("]", "")
            proxy = Generations(folder / name[:40], shards=shards or shard("store", store.port), certificate=certificate,
                                **{"users": USERS, "workers": 2, "process": STAY, **options})
            stack.callback(proxy.stop)
            return proxy
        yield begin_one


@pytest.fixture
def redis(folder):
    with servers.Redis(folder / f"upgrade-redis-{len(glob.glob(str(folder / '*')))}") as only:
        only.route({user: "store" for user in USERS})
        yield only


def lives(wire):
    return b" OK " in wire.command(b"NOOP")


def leave(*wires):
    for wire in wires:
        wire.command(b"LOGOUT")
        wire.socket.close()


def serves(proxy):
    wire = proxy.logged_in(USERS[0])
    assert lives(wire)
    leave(wire)
    return True


def move(proxy, user, where):
    return proxy.ctl("move", user, "--to", where, "--sync", "true", "--verify", "none", "--timeout", "10s")


class Heir:
    """One that asks for the place of a process, and no more: by this process, which may then be gone."""

    def __init__(self, proxy):
        self.path, self.peers, self.descriptors = str(proxy.path), [], array.array("i")
        self.life = self.send(BEGIN)
        self.said = b""
        while b'"id"' not in self.said and b'"ok"' not in self.said:
            data, controls, _, _ = self.life.recvmsg(4096, socket.CMSG_SPACE(1024))
            assert data
            self.said += data
            for _, _, content in controls:
                self.descriptors.frombytes(content)

    def send(self, request):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self.path)
        peer.sendall(json.dumps(request).encode() + b"\n")
        self.peers.append(peer)
        return peer

    def ask(self, request):
        return json.loads(self.send(request).makefile("rb").readline())

    def go(self):
        for descriptor in self.descriptors:
            os.close(descriptor)
        for peer in self.peers:
            peer.close()


def at_rest(proxy, count=None):
    """Descriptors and memory of the newest process once it has no session, nor anybody else (or so many descriptors)."""
    servers.wait_for(lambda: proxy.ask("status")["sessions"] == 0, "the last session to end")
    now = []

    def settled():
        now.append(proxy.descriptors_of(proxy.pids[-1]))
        return now[-1] == count if count else now[-10:] == [now[-1]] * 10
    with contextlib.suppress(servers.ServerError):
        servers.wait_for(settled, "what is closed to be closed", 10)
    return now[-1], proxy.resident_bytes_of(proxy.pids[-1])


# Under load

class Load:
    """Clients that log in and leave, and others that stay and work, until `stop`; a failure is one of the test."""

    def __init__(self, proxy):
        self.proxy, self.over, self.logins, self.commands = proxy, threading.Event(), 0, 0
        self.pool = concurrent.futures.ThreadPoolExecutor(STORM + BUSY)
        self.work = [self.pool.submit(self._storm, number) for number in range(STORM)]
        self.work += [self.pool.submit(self._work, number) for number in range(BUSY)]

    def _storm(self, number):
        while not self.over.is_set():
            wire = self.proxy.logged_in(USERS[number], listener=("plain", "tls")[number % 2])
            assert lives(wire)
            leave(wire)
            self.logins += 1

    def _work(self, number):
        wire = self.proxy.logged_in(USERS[number % len(USERS)])
        while not self.over.is_set():
            assert lives(wire)
            self.commands += 1
        leave(wire)

    def go_on(self, logins=20, commands=100):
        """Until so many more of each have been done."""
        wanted = self.logins + logins, self.commands + commands
        servers.wait_for(lambda: any(task.done() for task in self.work) or
                         self.logins >= wanted[0] and self.commands >= wanted[1], "the load to go on", 60)

    def stop(self):
        self.over.set()
        for task in self.work:
            task.result(60)
        self.pool.shutdown()


def reload(proxy, number):
    """Three times, each with something new: for all processes that are there, the newest one is asked."""
    for round in range(3):
        proxy.configure(lambda text: re.sub(r"stop_timeout = \d+s", f"stop_timeout = {20 + 3 * number + round}s", text))
        done = proxy.ctl("reload")
        assert done.returncode == 0 and "stop_timeout" in done.stdout, done


def test_reloads_and_three_upgrades_under_load(begin):
    proxy = begin()
    first = at_rest(proxy)
    idle = [[proxy.logged_in(USERS[number % len(USERS)]) for number in range(IDLE)]]
    load = Load(proxy)
    for number in range(3):
        load.go_on()
        reload(proxy, number)
        proxy.upgrade()
        load.go_on()
        idle.append([proxy.logged_in(user) for user in USERS[:5]])
        assert all(lives(wire) for wires in idle for wire in wires)
    reload(proxy, 3)
    load.go_on()
    status = proxy.all("status")
    assert sorted(status) == sorted(proxy.pids)
    assert [status[pid]["state"] for pid in proxy.pids] == ["draining", "draining", "draining", "running"]
    assert [status[pid]["sessions"] >= len(wires) for pid, wires in zip(proxy.pids, idle)] == [True] * 4
    load.stop()
    for pid, wires in zip(proxy.pids[:-1], idle):
        assert all(lives(wire) for wire in wires)
        leave(*wires)
        assert proxy.wait_for_end(pid) == 0
    leave(*idle[-1])
    last = at_rest(proxy, first[0])
    print(f"\n{IDLE} idle, {BUSY} busy, {load.logins} logins and {load.commands} commands over twelve reloads and three upgrades: first "
          f"process {first[0]} descriptors and {first[1] >> 10} KiB, last one {last[0]} and {last[1] >> 10} KiB")
    assert last[0] == first[0]
    assert proxy.sanitized or last[1] < first[1] * 2 + (8 << 20)
    assert not proxy.events("hand-over failed")
    assert glob.glob(f"{proxy.path}*") == [str(proxy.path)]


def test_generations_are_alike(begin):
    """Idle ones, that have all done the same: no descriptor and no memory is handed on and forgotten."""
    proxy = begin()
    used = []
    for _ in range(4):
        assert serves(proxy)
        used.append(at_rest(proxy, used[0][0] if used else None))
        proxy.upgrade()
        assert proxy.wait_for_end(proxy.pids[-2]) == 0
    print("\ndescriptors and KiB of each generation:", [(count, size >> 10) for count, size in used])
    assert len({count for count, _ in used}) == 1
    assert proxy.sanitized or used[-1][1] < used[0][1] + (2 << 20)


# What is changed by it

def test_other_workers_and_listeners(begin):
    proxy = begin()
    more = servers.free_port()
    for workers in (3, 1):
        def change(text, wanted=workers):
            text = text.replace(f"workers = {proxy.ask('status')['workers']} ", f"workers = {wanted} ")
            return text + (f'listener more {{ address = {{"{servers.HOST}:{more}"}} tls = none plaintext_login = yes }}\n'
                           if wanted == 3 else "")
        waiting = proxy.logged_in("user1")
        proxy.configure(change)
        proxy.upgrade()
        assert proxy.ask("status")["workers"] == workers
        for _ in range(20):  # to each of the sockets
            for port in (proxy.port["plain"], more):
                wire = Wire(servers.HOST, port)
                wire.login("user2", PASSWORD)
                assert lives(wire)
                leave(wire)
        assert lives(waiting)
        leave(waiting)
    proxy.configure(lambda text: text.replace("listener more", "#"))
    proxy.upgrade()
    servers.wait_for(lambda: not servers.accepts(more), "the listener to be gone")


def test_sigusr2(begin):
    proxy = begin()
    wire = proxy.logged_in("user1")
    proxy.process.send_signal(signal.SIGUSR2)
    proxy.wait_for_event("upgrade")
    proxy.pids.append(proxy.ask("status")["pid"])
    assert proxy.pids[0] != proxy.pids[1] and lives(wire)
    leave(wire)
    assert proxy.wait_for_end(proxy.pids[0]) == 0


def test_signals_for_all_do_not_end_a_new_process(begin):
    """They are for those that serve; this one reads its configuration, which comes through a pipe."""
    proxy = begin()
    pipe = proxy.folder / "pipe"
    os.mkfifo(pipe)
    proxy.configure(lambda text: text + 'include("pipe")\n')
    heir = proxy.take_over()
    with open(pipe, "w"):  # which waits for who reads it
        heir.send_signal(signal.SIGHUP)
        heir.send_signal(signal.SIGUSR2)
    servers.wait_for(lambda: proxy.ask("status")["pid"] == heir.pid, "it to serve")
    assert proxy.wait_for_end(proxy.pids[0]) == 0
    proxy.process = None  # the rest is that of one process
    heir.terminate()
    assert heir.wait(60) == 0


def test_http_goes_along(begin):
    port = servers.free_port()
    proxy = begin(more=f'http {{ address = "{servers.HOST}:{port}" }}')
    wire = proxy.logged_in("user1")

    def ready():
        with urllib.request.urlopen(f"http://{servers.HOST}:{port}/readyz", timeout=10) as answer:
            return answer.status == 200
    proxy.upgrade()
    assert ready()
    heir = Heir(proxy)  # which fails
    assert heir.ask(RELEASE)["ok"] is True
    assert not servers.accepts(port)
    heir.go()
    proxy.wait_for_event("hand-over failed")
    assert ready() and lives(wire)


def test_the_manager_hears_of_it(begin, tmp_path, monkeypatch):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(30)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("LISTEN_PID", "1")
    proxy = begin()
    wire = proxy.logged_in("user1")
    pid = proxy.upgrade()
    with open(f"/proc/{pid}/environ") as environment:
        assert "LISTEN_PID" not in environment.read()
    leave(wire)
    assert proxy.wait_for_end(proxy.pids[0]) == 0
    heard = [manager.recv(4096).decode()]
    while f"MAINPID={pid}" not in heard[-1]:
        heard.append(manager.recv(4096).decode())
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(manager.recv(4096).decode())
    assert not [text for text in heard if "STOPPING" in text]
    manager.close()


def test_the_manager_hears_of_it_before_the_old_process_may_end(begin, tmp_path):
    """It would take the end of the one that it knows for that of the service. The launcher does not hear yet."""
    proxy = begin()
    told, report = os.pipe()
    os.set_blocking(report, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(report, b"x")
    os.set_blocking(report, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        heir = proxy.take_over(environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "IMAPMUX_REPORT": str(report)},
                               pass_fds=[report])
        os.close(report)
        while f"MAINPID={heir.pid}" not in manager.recv(4096).decode():
            pass
    with open(told, "rb") as pipe:
        assert pipe.read().lstrip(b"x") == f"ready {heir.pid}".encode()
    assert proxy.wait_for_end(proxy.pids[0]) == 0
    proxy.process = None  # the rest is that of one process
    heir.terminate()
    assert heir.wait(60) == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_of_a_user_without_rights(folder, certificate, store):
    """The new process has the rights of root again, for its port and its key, which the old one has given up."""
    class Owned(Generations):
        def prepare(self, **options):
            super().prepare(**options)
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, "daemon", "daemon")

    with Owned(folder / "owned", shards=shard("store", store.port), certificate=certificate, users=USERS, workers=2,
               process=f'{STAY} user = "daemon"') as proxy:
        wire = proxy.logged_in("user1")
        port = next(port for port in range(1023, 600, -1) if not servers.accepts(port))
        plain = f'"{servers.HOST}:{proxy.port["plain"]}"'
        proxy.configure(lambda text: text.replace(plain, f'{plain}, "{servers.HOST}:{port}"'))
        for _ in range(2):
            pid = proxy.upgrade()
            assert uid_of(pid) == pwd.getpwnam("daemon").pw_uid
            assert Wire(servers.HOST, port).greeting.startswith(b"* OK") and serves(proxy) and lives(wire)


def uid_of(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Uid:"))


# What fails

def test_a_bad_configuration(begin):
    proxy = begin()
    wire = proxy.logged_in("user1")
    good = (proxy.folder / "proxy.conf").read_text()
    proxy.configure(lambda text: "process { workers = none }\n" + text)
    ended = proxy.ctl("upgrade")
    assert ended.returncode == 1
    assert f'{proxy.folder}/proxy.conf:1: setting "workers" of process: found "none"' in ended.stderr
    proxy.configure(lambda text: good)
    assert proxy.ask("status")["pid"] == proxy.pids[0] and serves(proxy) and lives(wire)
    proxy.upgrade()
    assert serves(proxy) and lives(wire)


def test_no_binary(begin, folder, monkeypatch):
    binary = folder / "imapmux-copy"
    with contextlib.suppress(FileExistsError):
        os.link(os.environ.get("IMAPMUX") or servers.REPOSITORY / "build/imapmux", binary)
    proxy = begin(binary=binary)
    ctl = binary.with_name("imapmuxctl")
    with contextlib.suppress(FileExistsError):
        ctl.symlink_to((servers.REPOSITORY / (os.environ.get("IMAPMUX") or "build/imapmux")).with_name("imapmuxctl"))
    binary.unlink()
    ended = proxy.ctl("upgrade")
    assert ended.returncode == 1 and "No such file" in ended.stderr
    assert serves(proxy)


@pytest.mark.parametrize("released", [False, True], ids=["begun", "released"])
def test_a_new_process_that_dies(begin, redis, store, released):
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="500ms"), more=shard("other", store.port))
    wire = proxy.logged_in("user1")
    heir = Heir(proxy)
    assert len(heir.descriptors) == 2 * len(proxy.port)
    if released:
        assert heir.ask(RELEASE)["ok"] is True
    ended = proxy.ctl("upgrade")  # another one meanwhile
    assert ended.returncode == 1 and f"process {os.getpid()} is about to take over already" in ended.stderr
    assert serves(proxy)
    heir.go()
    proxy.wait_for_event("hand-over failed")
    assert proxy.ask("status")["state"] == "running" and lives(wire)
    assert move(proxy, "user2", "other").returncode == 0  # it consents again
    proxy.upgrade()
    assert serves(proxy) and lives(wire)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """What the processes of a test write does not reach the disk for as long as this file is there."""
    held, library = tmp_path / "held", tmp_path / "held_fsync.so"
    subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", library,
                    servers.REPOSITORY / "tests/fault/held_fsync.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("HELD_FSYNC", str(held))
    return held


def test_a_new_process_that_dies_while_the_old_one_drains(begin, redis, disk):
    """And the disk is slow: what is released in the end is so for nobody."""
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="500ms"))
    wire = proxy.logged_in("user1")
    servers.wait_for((proxy.folder / "snapshot").exists, "the first snapshot")
    heir = Heir(proxy)
    disk.touch()
    heir.send(RELEASE)
    servers.wait_for((proxy.folder / "snapshot.new").exists, "the last one to be written")
    assert proxy.ctl("drain", "1h").returncode == 0
    heir.go()
    proxy.wait_for_event("hand-over failed")
    disk.unlink()
    servers.wait_for(lambda: not (proxy.folder / "snapshot.new").exists(), "it to be there")
    assert lives(wire)
    leave(wire)
    assert proxy.wait_for_end(proxy.pids[0]) == 0


def test_a_new_process_that_fails_in_the_end(begin, redis, disk):
    """Its own numbers do not take the place of those of the process that goes on."""
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="500ms"))
    metrics = proxy.folder / "metrics.prom"
    assert serves(proxy)
    servers.wait_for((proxy.folder / "snapshot").exists, "the first snapshot")
    proxy.configure(lambda text: text.replace("interval = 100ms", "interval = 1h", 1))
    assert proxy.ctl("reload").returncode == 0
    servers.wait_for(lambda: "imapmux_sessions_opened_total 1" in metrics.read_text(), "the last metrics for an hour")
    before = metrics.read_text()
    disk.touch()
    heir = proxy.take_over()
    beside = proxy.path.with_name(f"{proxy.path.name}.{heir.pid}")
    servers.wait_for((proxy.folder / "snapshot.new").exists, "the old process to release what it has")
    servers.wait_for(beside.exists, "its socket")
    beside.unlink()  # so it cannot be given the place
    disk.unlink()
    assert heir.wait(60) == 1
    proxy.wait_for_event("hand-over failed")
    assert metrics.read_text() == before and serves(proxy)


def test_an_old_process_that_stops_meanwhile(begin, store):
    """It was told to stop before the new one has its place: it does, and does not drain."""
    proxy = begin(stop_timeout="1s")
    wire = proxy.logged_in("user1")
    wire.socket.sendall(b"a APPEND INBOX {10+}\r\n12345")  # a command that does not end
    servers.wait_for(lambda: any(b"APPEND" in line for peer in store.peers for line in peer.heard), "the store to hear it")
    heir = Heir(proxy)
    assert heir.ask(RELEASE)["ok"] is True
    proxy.process.send_signal(signal.SIGTERM)
    proxy.wait_for_event("stopping")
    assert heir.ask(FINISH)["ok"] is True
    heir.go()
    assert proxy.wait_for_end(proxy.pids[0]) == 0


def test_a_new_process_that_is_killed(begin, redis):
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="20s"))
    wire = proxy.logged_in("user1")
    redis.pause()
    heir = proxy.take_over()
    proxy.wait_for_event("hand-over")  # and now waits for Redis
    heir.kill()
    proxy.wait_for_event("hand-over failed")
    redis.resume()
    assert proxy.ask("status")["pid"] == proxy.pids[0] and serves(proxy) and lives(wire)
    heir.wait(60)
    proxy.upgrade()
    assert serves(proxy) and lives(wire)


def test_an_old_process_that_is_killed(begin, redis):
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="20s"))
    redis.pause()
    heir = proxy.take_over()
    proxy.wait_for_event("hand-over")
    proxy.process.kill()
    proxy.process.wait()
    waiting = socket.create_connection((servers.HOST, proxy.port["plain"]))  # nobody accepts it now
    redis.resume()
    waiting.settimeout(60)
    assert waiting.recv(100).startswith(b"* OK")
    waiting.close()
    assert serves(proxy) and proxy.ask("status")["pid"] == heir.pid
    assert glob.glob(f"{proxy.path}*") == [str(proxy.path)]
    proxy.process = None  # the rest is that of one process
    heir.terminate()
    assert heir.wait(60) == 0


def test_without_redis_nothing_is_taken(begin, redis):
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="500ms"))
    wire = proxy.logged_in("user1")
    redis.pause()
    ended = proxy.ctl("upgrade")
    assert ended.returncode == 1 and "try again when Redis is back" in ended.stderr
    again = proxy.logged_in("user1")
    assert lives(wire) and lives(again)
    redis.resume()
    proxy.upgrade()
    assert lives(wire) and lives(again)


def test_two_at_once(begin, redis):
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="20s"))
    wire = proxy.logged_in("user1")
    redis.pause()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(proxy.ctl, "--json", "upgrade")
        proxy.wait_for_event("hand-over")
        second = proxy.ctl("upgrade")
        redis.resume()
        assert second.returncode == 1 and "a new process is on its way already" in second.stderr
        proxy.pids.append(json.loads(first.result().stdout)["pid"])
    assert proxy.ask("status")["pid"] == proxy.pids[1] and serves(proxy) and lives(wire)


def test_another_protocol(begin):
    proxy = begin()
    assert "by protocol 1, not by 99" in proxy.ctl("handover", "begin", "--protocol", "99").stderr
    assert "not about to take over" in proxy.ctl("handover", "release").stderr
    assert proxy.ask("status")["state"] == "running"


# Users who are moved, and what is known of routes

def test_a_user_of_the_old_process_is_moved(begin, redis):
    with Store() as other:
        proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="500ms"),
                      more=shard("other", other.port))
        wire, stays = proxy.logged_in("user1"), proxy.logged_in("user3")
        pid = proxy.upgrade()
        assert {row["pid"] for row in proxy.ask("proxies")} == set(proxy.pids)
        assert json.loads(proxy.ctl("--json", "who", "user1").stdout.splitlines()[0])["user"] == "user1"
        moved = move(proxy, "user1", "other")
        assert moved.returncode == 0, moved
        assert b"* BYE [UNAVAILABLE] Your mailbox is being moved" in wire.read_response()
        wire.socket.close()
        again = proxy.logged_in("user1")
        assert redis.ask("HGET", "imapmux:user:{user1}", "shard") == "other" and other.peers
        leave(again, stays)
        assert proxy.wait_for_end(proxy.pids[0]) == 0
        assert [json.loads(text)["pid"] for text in redis.ask("HVALS", "imapmux:proxies")] == [pid]
        assert lives(proxy.logged_in("user2"))


def test_routes_are_handed_on(begin, redis):
    proxy = begin(sources=BY_REDIS.format(redis=redis.address, timeout="500ms"))
    wire = proxy.logged_in("user1")
    proxy.upgrade()
    redis.pause()
    again = proxy.logged_in("user1")  # whom only the old one has asked Redis for
    assert lives(again) and lives(wire)
    redis.resume()
    assert not proxy.events("proxy forgotten")
    leave(wire, again)


# All processes

def test_all(begin):
    proxy = begin()
    wire = proxy.logged_in("user1")
    old, new = proxy.pids[0], proxy.upgrade()
    assert proxy.all("status")[old]["sessions"] == 1 and proxy.all("status")[new]["sessions"] == 0
    shown = proxy.ctl("--all", "version").stdout
    assert f"process {old}, at {proxy.path}.{old}:" in shown and f"process {new}, at {proxy.path}:" in shown
    left = socket.socket(socket.AF_UNIX)
    left.bind(f"{proxy.path}.999999")
    left.close()
    assert sorted(proxy.all("version")) == sorted([old, new])
    leave(wire)
    proxy.upgrade()
    assert not os.path.exists(f"{proxy.path}.999999")
    ended = proxy.ctl("--all", "waves")
    assert ended.returncode == 2 and "carried out by imapmuxctl itself" in ended.stderr
    ended = proxy.ctl("-s", str(proxy.folder / "nowhere"), "--all", "version")
    assert ended.returncode == 3 and "nobody listens there" in ended.stderr


# Sockets of systemd

AS_SYSTEMD = """
import os, socket, sys
count = int(sys.argv[1])
for port in sys.argv[2:2 + count]:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", int(port)))
    one.listen()
    os.set_inheritable(one.detach(), True)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(count)
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


def as_systemd(proxy, *ports):
    return [sys.executable, "-c", AS_SYSTEMD, str(len(ports)), *map(str, ports), *Generations.command(proxy)]


class Activated(Generations):
    def command(self):
        return as_systemd(self, self.port["plain"], self.port["tls"])


def listening_at(port):
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return [row for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]


def test_sockets_of_systemd(folder, certificate, store):
    with Activated(folder / "activated", shards=shard("store", store.port), certificate=certificate, users=USERS,
                   workers=3, process=STAY) as proxy:
        for _ in range(2):
            wires = [proxy.logged_in(user, listener) for user in USERS for listener in ("plain", "starttls", "tls")]
            assert all(lives(wire) for wire in wires)
            assert [len(listening_at(port)) for port in proxy.port.values()] == [1, 3, 1]
            leave(*wires)
            proxy.upgrade()


def test_a_socket_that_fits_nothing(begin):
    proxy = begin()
    port = servers.free_port()
    ended = subprocess.run(as_systemd(proxy, port), capture_output=True, text=True, timeout=60, cwd=proxy.folder)
    assert ended.returncode == 1
    assert f"the socket from systemd, {servers.HOST}:{port}, is no address of any listener section" in ended.stderr
