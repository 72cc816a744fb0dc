"""
The log: what a line tells, and where lines go. That journald has each field, syslog each line, and nobody waits for
who reads them.
"""
import collections
import json
import socket
import subprocess
import threading

import pytest

import servers
from stage import PATIENCE_SECONDS, Proxy, Store, shard

JOURNALD = "/lib/systemd/systemd-journald"
SESSIONS = 40  # which log more than a pipe takes, and a socket
PIPE_BYTES = 4096
IN_PRIVATE = ("mount -t tmpfs run /run && mkdir -p /run/systemd/journal /run/log && "
              "mount --bind {folder} /run/systemd/journal")


@pytest.fixture(scope="module", autouse=True)
def mounts():
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("no right to mount anything")


class Journald(servers.Server):
    """systemd-journald, whose sockets are in its folder instead of /run/systemd/journal."""

    name = "journald"

    def command(self):
        (self.folder / "sockets").mkdir(exist_ok=True)
        (self.folder / "log").mkdir(exist_ok=True)
        private = IN_PRIVATE.format(folder=self.folder / "sockets")
        return ["unshare", "--mount", "sh", "-c",
                f"{private} && mount --bind {self.folder}/log /run/log && exec {JOURNALD}"]

    def ports(self):
        return [self.folder / "sockets/socket"]

    def ready(self):
        return (self.folder / "sockets/socket").exists()

    def entries(self):
        """Those of imapmux so far, as dictionaries."""
        return [json.loads(line) for line in self.show("json").splitlines()]

    def show(self, form):
        """What journalctl has of imapmux."""
        command = ["journalctl", "-D", self.folder / "log/journal", "-t", "imapmux", "--all", "-o", form]
        return subprocess.run(command, capture_output=True, text=True).stdout

    def events(self, name):
        return [entry for entry in self.entries() if entry["IMAPMUX_EVENT"] == name]


class Elsewhere(Proxy):
    """imapmux whose log goes elsewhere, to sockets in `sockets`; what is beneath is the shell's to prepare."""

    def prepare(self, sockets, **options):
        self.sockets = sockets
        super().prepare(**options)

    def command(self):
        dev = " ".join(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom"))
        log = (f"mount -t tmpfs dev /mnt && for at in {dev}; do touch /mnt/${{at#/dev/}} && "
               f"mount --bind $at /mnt/${{at#/dev/}} || exit 1; done && mkdir /mnt/shm && "
               f"ln -s /run/systemd/journal/dev-log /mnt/log && mount --move /mnt /dev")
        run = " ".join(super().command())
        return ["unshare", "--mount", "sh", "-c", f"{IN_PRIVATE.format(folder=self.sockets)} && {log} && exec {run}"]

    def wait_for_event(self, name, seconds=servers.START_SECONDS):
        servers.wait_for(self.ready, f"{self.name} to listen", seconds)


@pytest.fixture(scope="module")
def store():
    with Store() as store:
        yield store


@pytest.fixture(scope="module")
def journald(folder):
    with Journald(folder / "journald") as server:
        yield server


def options(store, certificate, log):
    return dict(shards=shard("store", store.port), certificate=certificate, log=log)


def text_of(field):
    """What journalctl shows of a field: a text, or the bytes of what is none."""
    return field if isinstance(field, str) else bytes(field).decode("latin-1")


def test_the_end_of_a_session_tells_its_story(folder, certificate, store):
    with Proxy(folder / "stories", **options(store, certificate, "info")) as proxy:
        with proxy.logged_in(listener="tls") as wire:
            peer = "%s:%d" % wire.socket.getsockname()
            wire.command(b"NOOP")
            wire.command(b"LOGOUT")
        end = proxy.wait_for_event("session end")
        login, = proxy.events("login ok")
        proxy.wire().close()
        servers.wait_for(lambda: len(proxy.events("session end")) == 2, "the end of the one without a login")
        without = proxy.events("session end")[1]
    assert end["session"] == login["session"] and int(end["duration_ms"]) >= 0 and int(end["bytes_out"]) > 0
    wanted = dict(user="alice", peer=peer, local=f"{servers.HOST}:{proxy.port['tls']}", listener="imaps",
                  method="LOGIN", tls="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256", shard="store",
                  store=f"{servers.HOST}:{store.port}", lease="new", commands="2",
                  bytes_in=str(len("a1 NOOP\r\na2 LOGOUT\r\n")), why="logout")
    assert {key: end.get(key) for key in wanted} == wanted
    assert without["local"] == f"{servers.HOST}:{proxy.port['plain']}" and without["listener"] == "plain"
    assert without["why"] == "closed by client before login" and not {"user", "method", "commands"} & set(without)


def test_journald_has_each_field(folder, certificate, store, journald):
    hostile = 'ann"\nMESSAGE=forged\xff peer=192.0.2.1:1'
    with Elsewhere(folder / "to-journald", sockets=journald.folder / "sockets",
                   **options(store, certificate, "info output = journald facility = local1"),
                   more="username { lowercase = no }\n") as proxy:
        with proxy.logged_in() as wire:
            wire.command(b"LOGOUT", tag=b"out")
        with proxy.wire() as wire:
            name = hostile.encode("latin-1")
            wire.send(b"in LOGIN {%d+}\r\n%s {5+}\r\nwrong\r\n" % (len(name), name))
            assert wire.read_tagged(b"in").startswith(b"in NO [AUTHENTICATIONFAILED]")
        servers.wait_for(lambda: [end for end in journald.events("session end") if "IMAPMUX_USER" in end],
                         "the end of alice's session")
        assert proxy.lines == []
    login, = journald.events("login ok")
    assert (login["IMAPMUX_USER"], login["IMAPMUX_SHARD"], login["PRIORITY"]) == ("alice", "store", "6")
    assert (login["SYSLOG_IDENTIFIER"], login["SYSLOG_FACILITY"]) == ("imapmux", "17")
    begin = f'event="login ok" session={login["IMAPMUX_SESSION"]} user=alice peer={servers.HOST}:'
    assert login["MESSAGE"].startswith(begin)
    refused, = journald.events("login refused")
    assert text_of(refused["IMAPMUX_USER"]) == hostile and refused["IMAPMUX_PEER"].startswith("127.0.0.1:")
    assert refused["IMAPMUX_REASON"] == "credentials"
    assert [entry for entry in journald.entries() if entry["MESSAGE"] == "forged"] == []
    servers.wait_for(lambda: journald.events("stopped"), "the last line: it was written before the process ended")


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_syslog_has_each_line(folder, certificate, store, form):
    sockets = folder / f"syslog-{form}"
    sockets.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.settimeout(PATIENCE_SECONDS)
        syslog.bind(str(sockets / "dev-log"))
        with Elsewhere(folder / f"to-syslog-{form}", sockets=sockets,
                       **options(store, certificate, f"info output = syslog format = {form}")) as proxy:
            proxy.logged_in().close()
            line = ""
            while "login ok" not in line:
                line = syslog.recv(4096).decode()
                head, _, text = line.partition(f" imapmux[{proxy.process.pid}]: ")
    assert head.startswith("<22>")  # mail, info
    if form == "json":
        assert list(json.loads(text))[:4] == ["level", "event", "session", "user"]
    else:
        assert text.startswith('level=info event="login ok" session=')


class Refuser:
    """Listens, and closes what connects, once it may; counts them."""

    def __init__(self):
        self.count = 0
        self.listener = socket.create_server((servers.HOST, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            self.listener.accept()[0].close()
            self.count += 1


def test_what_comes_again_and_again_is_held_back(folder, certificate, store):
    redis = Refuser()
    more = f'redis {{ address = "{servers.HOST}:{redis.port}" retry_max = 100ms }} limits {{ shared = yes }}\n'
    with Proxy(folder / "repeats", workers=2, more=more, **options(store, certificate, "info repeats = 4")) as proxy:
        servers.wait_for(lambda: redis.count >= 40, "many attempts")
        for _ in range(20):
            proxy.logged_in().close()
        servers.wait_for(lambda: len([end for end in proxy.events("session end") if "user" in end]) == 20, "the ends")
    assert len(proxy.events("login ok")) == 20
    for event in "redis connected", "redis not connected", "redis connection lost":
        lines, rest = proxy.events(event), [line for line in proxy.events("repeated") if line["of"] == event]
        by_detail = collections.Counter(line["detail"] for line in lines)
        windows = collections.Counter(line["detail"] for line in rest)
        assert all(count <= 4 * (windows[detail] + 1) for detail, count in by_detail.items()), by_detail
    told = sum(int(line["count"]) for line in proxy.events("repeated"))
    assert told >= 10, proxy.events("repeated")


@pytest.mark.parametrize("output", ["journald", "syslog"])
def test_a_log_without_a_receiver_is_refused(folder, certificate, store, output):
    (folder / f"no-{output}").mkdir()
    with pytest.raises(servers.ServerError, match=f'"output" of log: /.*: No such file or directory'):
        Elsewhere(folder / f"to-no-{output}", sockets=folder / f"no-{output}",
                  **options(store, certificate, f"info output = {output}"))


def serve_many(proxy):
    for _ in range(SESSIONS):
        proxy.logged_in().close()


def ends(events):
    return len([end for end in events if "user" in end or "IMAPMUX_USER" in end]) == SESSIONS


def test_nobody_waits_for_journald(folder, certificate, store, journald):
    with Elsewhere(folder / "to-slow-journald", sockets=journald.folder / "sockets",
                   **options(store, certificate, "debug output = journald")) as proxy:
        journald.pause()
        try:
            serve_many(proxy)
        finally:
            journald.resume()
        pid = str(proxy.process.pid)
        servers.wait_for(lambda: ends([end for end in journald.events("session end") if end["_PID"] == pid]),
                         "all lines to come")
        assert proxy.metrics()["imapmux_log_lost_total"] == 0


def test_nobody_waits_for_standard_error(folder, certificate, store):
    with Proxy(folder / "to-slow-pipe", **options(store, certificate, "debug")) as proxy:
        with proxy.unread(PIPE_BYTES):
            serve_many(proxy)
        servers.wait_for(lambda: ends(proxy.events("session end")), "all lines to come")
        assert proxy.metrics()["imapmux_log_lost_total"] == 0
