"""
Each peer of a session fails in each way in each phase: the process is killed or stops, the connection is reset or
trickles. The tables say what the client sees, and when; everything else is the same for all rows: a neighbour on the
same worker does not notice, the gauges return, and when the cause has gone the same user is served again.

What scripted stores do is in test_stores.py, clients that reset are in test_clients_misbehave.py, and bad networks in
test_network.py; here are real servers.
"""
import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import time
import typing

import pytest

import servers
from host import Host
from imapwire import Sync, whole
from passage import Passage, trickling
from stage import PASSWORD, Proxy, Store, directory_and_redis, reset, shard
from test_clients_misbehave import client_hello

USERS = [f"user{number:02}" for number in range(60)]
MAIL = b"Subject: long\r\n\r\n" + b"0123456789abcdef\r\n" * 400_000  # more than all buffers on its way hold
LIMITS = "connect_timeout = 1s login_timeout = 1s drain_time = 1s"
LIMIT_SECONDS, LOGIN_SECONDS, LINGER_SECONDS = 1, 2, 1
MORE = "login { timeout = 2s } session { linger_timeout = 1s }\n"
AT_ONCE = 0.8  # below all of these
PACE_SECONDS = 0.03

OK = rb"in OK [^\r\n]*\r\n"
UNAVAILABLE = rb"in NO \[UNAVAILABLE\] [^\r\n]*\r\n"
LOST = rb"\* BYE \[UNAVAILABLE\] The connection to the mail store was lost[^\r\n]*\r\n"
TOO_LATE = rb"\* BYE \[UNAVAILABLE\] Login takes too long[^\r\n]*\r\n"


class Site:
    """Real servers, each behind a passage; and bob, whose scripted store has nothing to do with them."""

    def __init__(self, stack, folder, certificate):
        enter = stack.enter_context
        users = {user: PASSWORD for user in [*USERS, "bob"]}
        self.servers = {"directory": enter(servers.Slapd(folder / "peers-slapd", users=users)),
                        "redis": enter(servers.Redis(folder / "peers-redis")),
                        "store": enter(servers.Dovecot(folder / "peers-dovecot", users=users))}
        self.passages = {name: enter(Passage(server.port)) for name, server in self.servers.items()}
        self.store = self.servers["store"]
        self.route()
        quiet = enter(Store(Host()))
        self.proxy = Proxy(folder / "peers", certificate=certificate, log="debug", more=MORE,
                           shards=shard("far", self.passages["store"].port, more=LIMITS) + shard("near", quiet.port),
                           sources=directory_and_redis(self.passages["directory"].port, self.passages["redis"].port),
                           pool="warm = 0 park_time = 1m")
        stack.callback(self.proxy.stop)
        self.bob = enter(self.proxy.logged_in("bob"))
        self.unused, self.orphans = iter(USERS), set()

    def route(self):
        self.servers["redis"].route({**{user: "far" for user in USERS}, "bob": "near"})

    def processes(self, name=None):
        """Dovecot's children, or those of this name."""
        found = set()
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
                title = (path / "cmdline").read_bytes().partition(b"\0")[0].decode().partition(" ")[0]
                if parent == self.store.process.pid and name in (None, title.removeprefix("dovecot/")):
                    found.add(int(path.name))
        return found


@pytest.fixture(scope="module")
def site(folder, certificate):
    with contextlib.ExitStack() as stack:
        yield Site(stack, folder, certificate)


class Session:
    """One row's session: its user, its wire once it has one, and Dovecot's process for it."""

    def __init__(self, site):
        self.site, self.user = site, next(site.unused)
        self.wire, self.imap = None, set()
        self.lines_before = len(site.proxy.lines)

    # How it gets to the phase in which something happens

    def connect(self, listener="plain", **options):
        self.wire = self.site.proxy.wire(listener, **options)

    def send_login(self):
        self.connect()
        self.wire.send(f"in LOGIN {self.user} {PASSWORD}\r\n".encode())

    def log_in(self):
        before = self.site.processes("imap")
        self.send_login()
        assert re.search(OK, self.wire.read_tagged(b"in"))
        self.imap = servers.wait_for(lambda: self.site.processes("imap") - before, "Dovecot's process")

    def verify(self):
        self.send_login()
        self._wait_for_phase("verify")

    def route(self):
        self.send_login()
        self._wait_for_phase("route")

    def lease(self):
        self.send_login()
        self._wait_for_phase("lease")

    def rest(self):
        self.log_in()

    def idle(self):
        self.log_in()
        assert b"s OK" in self.wire.command(b"SELECT INBOX", tag=b"s")
        self.wire.send(b"i IDLE\r\n")
        assert self.wire.read_line().startswith(b"+ ")

    def in_fetch(self):
        """A literal has begun that is longer than what the kernels hold."""
        self.log_in()
        assert b"a OK" in self.wire.command(b"APPEND INBOX ", Sync(MAIL), tag=b"a")
        assert b"s OK" in self.wire.command(b"SELECT INBOX", tag=b"s")
        self.wire.send(b"f FETCH 1 BODY.PEEK[]\r\n")
        self.wire.read_line()

    def in_append(self):
        self.log_in()
        self.wire.send(b"a APPEND INBOX {1000}\r\n")
        assert self.wire.read_line().startswith(b"+ ")
        self.wire.send(b"x" * 500)

    def parked(self):
        """Its first session is over; the second is about to begin."""
        self.log_in()
        self.wire.command(b"LOGOUT")
        servers.wait_for(lambda: self.site.proxy.metrics()["imapmux_backends_parked"] >= 1, "it to be parked")

    def _wait_for_phase(self, phase):
        def reached():
            return any(f'phase=\\"{phase}\\"' in line for line in self.site.proxy.lines[self.lines_before:])
        servers.wait_for(reached, f"phase {phase}")

    # What it hears

    def login_answer(self):
        return self.wire.read_tagged(b"in")

    def next_login(self):
        self.send_login()
        return self.login_answer()

    def all(self):
        return self.wire.read_to_end()

    def noop(self):
        return self.wire.command(b"NOOP", tag=b"n")


# What happens: each takes the site and the session.

def pauses(server):
    return lambda site, session: site.servers[server].pause()


def killed(server):
    """The process, and it does not come back by itself. Dovecot's children may outlive it."""
    def strike(site, session):
        site.orphans = site.processes() if server == "store" else set()
        site.servers[server].process.kill()
        site.servers[server].process.wait()
    return strike


def resumes(server):
    return lambda site, session: site.servers[server].resume()


def held(peer):
    return lambda site, session: site.passages[peer].hold()


def cut_off(peer, how="reset"):
    """Its connections end; new ones are welcome."""
    def strike(site, session):
        site.passages[peer].cut_off(how)
        site.passages[peer].release()
    return strike


def anew(peer):
    """Connections are to be made anew, and these are held up."""
    def strike(site, session):
        site.passages[peer].cut_off()
        site.passages[peer].hold()
    return strike


def trickles(peer):
    def strike(site, session):
        site.passages[peer].cut = trickling(PACE_SECONDS)
    return strike


def signals(name, number):
    """To Dovecot's processes of this name; some come and go by themselves."""
    def strike(site, session):
        for process in site.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
    return strike


def imap_gets(number):
    """Dovecot's process of this session, and no other."""
    def strike(site, session):
        for process in session.imap:
            os.kill(process, number)
    return strike


def nothing(site, session):
    pass


def together(*strikes):
    def strike(site, session):
        for each in strikes:
            each(site, session)
    return strike


@dataclasses.dataclass
class Row:
    peer: str
    phase: str  # of the session, by the Session's method
    fault: str
    strike: typing.Callable
    hears: str  # by the Session's method
    what: bytes
    within: float
    before: typing.Callable = nothing  # so that the phase lasts

    def __str__(self):
        return "-".join(f"{self.peer} {self.fault} in {self.phase}".split())


STOP, CONT, KILL = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
TWICE = 2 * LIMIT_SECONDS + AT_ONCE  # on one connection, and once more on a new one

GOES_ON = rb"n OK NOOP[^\r\n]*\r\n"
PART_OF_MAIL = rb"[0-9a-f\r\nSubject: long]*"  # and no BYE within it

ROWS = [
    # The directory: what is lost with a connection is asked once more.
    Row("directory", "verify", "reset", cut_off("directory"), "login_answer", OK, AT_ONCE, held("directory")),
    Row("directory", "verify", "closed", cut_off("directory", "closed"), "login_answer", OK, AT_ONCE,
        held("directory")),
    Row("directory", "verify", "killed", killed("directory"), "login_answer", UNAVAILABLE, AT_ONCE,
        pauses("directory")),
    Row("directory", "verify", "resumed", resumes("directory"), "login_answer", OK, AT_ONCE, pauses("directory")),
    Row("directory", "send_login", "slow", nothing, "login_answer", UNAVAILABLE, TWICE, trickles("directory")),
    Row("directory", "verify", "mute", nothing, "login_answer", UNAVAILABLE, TWICE, anew("directory")),
    # Redis likewise.
    Row("redis", "route", "reset", cut_off("redis"), "login_answer", OK, AT_ONCE, held("redis")),
    Row("redis", "route", "closed", cut_off("redis", "closed"), "login_answer", OK, AT_ONCE, held("redis")),
    Row("redis", "route", "killed", killed("redis"), "login_answer", UNAVAILABLE, AT_ONCE, pauses("redis")),
    Row("redis", "route", "resumed", resumes("redis"), "login_answer", OK, AT_ONCE, pauses("redis")),
    Row("redis", "send_login", "slow", nothing, "login_answer", UNAVAILABLE, TWICE, trickles("redis")),
    Row("redis", "route", "mute", nothing, "login_answer", UNAVAILABLE, TWICE, anew("redis")),
    # The store, up to the end of the login.
    Row("store", "send_login", "mute", nothing, "login_answer", UNAVAILABLE, TWICE, held("store")),
    Row("store", "send_login", "slow", nothing, "login_answer", UNAVAILABLE, TWICE, trickles("store")),
    Row("store", "send_login", "login-process-stopped", nothing, "login_answer", UNAVAILABLE, TWICE,
        signals("imap-login", STOP)),
    Row("store", "lease", "login-process-resumed", signals("imap-login", CONT), "login_answer", OK, AT_ONCE,
        signals("imap-login", STOP)),
    Row("store", "send_login", "auth-stopped", nothing, "login_answer", UNAVAILABLE, TWICE, signals("auth", STOP)),
    Row("store", "lease", "auth-resumed", signals("auth", CONT), "login_answer", OK, AT_ONCE, signals("auth", STOP)),
    Row("store", "lease", "login-process-killed", signals("imap-login", KILL), "login_answer", UNAVAILABLE, TWICE,
        signals("auth", STOP)),
    # And after it.
    Row("store", "rest", "killed", imap_gets(KILL), "all", LOST, LIMIT_SECONDS + AT_ONCE),
    Row("store", "rest", "reset", cut_off("store"), "all", LOST, LIMIT_SECONDS + AT_ONCE),
    Row("store", "rest", "resumed", together(imap_gets(STOP), imap_gets(CONT)), "noop", GOES_ON, AT_ONCE),
    Row("store", "rest", "master-killed", killed("store"), "noop", GOES_ON, AT_ONCE),
    Row("store", "idle", "killed", imap_gets(KILL), "all", LOST, LIMIT_SECONDS + AT_ONCE),
    Row("store", "in_append", "killed", imap_gets(KILL), "all", LOST, AT_ONCE),
    Row("store", "in_fetch", "killed", imap_gets(KILL), "all", PART_OF_MAIL, LINGER_SECONDS + AT_ONCE),
    # Parked: the next session gets a new connection instead.
    Row("store", "parked", "killed", imap_gets(KILL), "next_login", OK, AT_ONCE),
    Row("store", "parked", "reset", cut_off("store"), "next_login", OK, AT_ONCE),
    Row("store", "parked", "stopped", imap_gets(STOP), "next_login", OK, TWICE),
]


def heal(site, session):
    """All is as it was: what was killed is started, what was stopped goes on, the passages are free."""
    for process in site.orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    servers.wait_for(lambda: not any(pathlib.Path(f"/proc/{process}/cmdline").exists() for process in site.orphans),
                     "the end of Dovecot's children")
    site.orphans = set()
    for server in site.servers.values():
        if server.process.poll() is None:
            server.resume()
        else:
            server.stop()
            server.start()
    for name in ("imap", "imap-login", "auth"):
        signals(name, CONT)(site, session)
    for passage in site.passages.values():
        passage.cut = whole
        passage.release()
    site.route()


def check_well(site, session):
    """The same user is served, and nothing is left of what went wrong."""
    session.wire.close()

    def works():
        return re.search(OK, session.next_login())
    servers.wait_for(works, "logins to work", 10)
    session.wire.close()

    def rests():
        found = site.proxy.metrics()
        at_stores = found["imapmux_backends_open"] - found["imapmux_backends_parked"]
        clients = found["imapmux_sessions_opened_total"] - found["imapmux_sessions_closed_total"]
        return at_stores == clients == 1 and found["imapmux_logins_in_flight"] == found["imapmux_leases_waiting"] == 0
    servers.wait_for(rests, "only bob to be left", 10)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_peer(site, row):
    session = Session(site)
    try:
        row.before(site, session)
        getattr(session, row.phase)()
        started = time.monotonic()
        row.strike(site, session)
        heard = getattr(session, row.hears)()
        took = time.monotonic() - started
        assert re.fullmatch(row.what, heard), heard[-300:]
        assert took < row.within, took
        assert b"OK NOOP" in site.bob.command(b"NOOP")
    finally:
        heal(site, session)
    check_well(site, session)


# Clients

TOO_SLOW = {  # what drips, and what is heard in the end
    "line": ("plain", b"x NOOP \"" + b"y" * 1000, TOO_LATE),
    "literal": ("plain", b"x LOGIN {1000}\r\n" + b"y" * 1000, rb"\+ [^\r\n]*\r\n" + TOO_LATE),
    "commands": ("plain", b"x NOOP\r\n" * 200, rb"(?:x OK[^\r\n]*\r\n)+" + TOO_LATE),
    "handshake": ("tls", None, b""),
}


def drip(site, listener, data):
    """Octet by octet until the other side has had enough; returns what it says, and when."""
    wire = Raw(site.proxy.port[listener]) if listener == "tls" else site.proxy.wire(listener)
    started = time.monotonic()
    with contextlib.suppress(OSError):
        for piece in trickling(PACE_SECONDS)(data or client_hello()):
            wire.send(piece)
    heard = b""
    with contextlib.suppress(OSError):
        heard = wire.read_to_end()
    wire.close()
    return heard, time.monotonic() - started


def test_clients_that_drip(site):
    """Each octet comes in time, but login.timeout counts all of it."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = {name: pool.submit(drip, site, *row[:2]) for name, row in TOO_SLOW.items()}
    for name, answer in answers.items():
        heard, took = answer.result()
        assert re.fullmatch(TOO_SLOW[name][2], heard), (name, heard[-300:])
        assert LOGIN_SECONDS - 0.2 < took < LOGIN_SECONDS + LINGER_SECONDS + AT_ONCE, (name, took)
    session = Session(site)
    session.connect()
    check_well(site, session)


class Raw:
    """A connection on which TLS has not begun."""

    def __init__(self, port):
        self.socket = socket.create_connection((servers.HOST, port), timeout=10)
        self.send, self.close = self.socket.sendall, self.socket.close

    def read_to_end(self):
        return self.socket.recv(4096)


@pytest.mark.parametrize("peer, phase", [("directory", "verify"), ("redis", "route"), ("store", "lease")])
def test_client_that_leaves_while_others_hang(site, peer, phase):
    """It is gone at once, though what it has asked for is never answered."""
    session = Session(site)
    before = len(site.proxy.events("session end"))
    site.passages[peer].hold()
    try:
        getattr(session, phase)()
        started = time.monotonic()
        reset(session.wire.socket)
        servers.wait_for(lambda: len(site.proxy.events("session end")) > before, "its session to end")
        assert time.monotonic() - started < AT_ONCE
    finally:
        heal(site, session)
    check_well(site, session)
