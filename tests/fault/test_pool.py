"""
Connections to the stores that outlive a session, or are there before it, seen from the store: what the proxy says on
them, who gets them, and when they must not be used again.
"""
import collections
import contextlib
import itertools
import re
import select
import socket
import struct
import threading
import time

import pytest

import servers
from crowd import wait_for_metrics
from host import (RESETS, FirstSegment, Host, close_with_reset, die, end, hang, has_ended, heard, over_tls,
                  read_proxy_header, read_tlvs, say_bye, wait_for_end)
from imapwire import NonSync, Sync, single_bytes, whole
from stage import CAPABILITIES, PASSWORD, Store, reset, shard

USERS = [f"user{number}" for number in range(400)]
TIMEOUTS = "connect_timeout = 5s login_timeout = 5s "
IN = b"in OK [CAPABILITY IMAP4rev1 LITERAL+ ID IDLE UNSELECT] Logged in\r\n"
GOODBYE = b"* BYE Logging out\r\nout OK Logout completed.\r\n"
BOUND_SECONDS = 15  # for a login that meets a connection which hangs
AT_ONCE_SECONDS = 3
TLS_VERSIONS = {"TLSv1.2", "TLSv1.3"}

one_user = itertools.cycle(USERS)


def name_of(value):
    """How a parameter is called: a script, a command, or commands with the kind of their literals."""
    if callable(value):
        return value.__name__
    if isinstance(value, Sync):
        return type(value).__name__
    if isinstance(value, (tuple, list)):
        return " ".join(name_of(part) for part in value)[:60]
    return re.sub(r"[^ -~]|[{}\[\]]", "", value.decode(errors="replace"))


@pytest.fixture(scope="module")
def host():
    return Host()


@pytest.fixture(scope="module")
def store(host):
    with Store(host) as only:
        yield only


@pytest.fixture(scope="module")
def proxy(start, store):
    """Parks, and keeps nothing warm; one worker, so that things happen in an order."""
    return start(shard("store", store.port, more=TIMEOUTS), users=USERS, pool="warm = 0 park_time = 20m")


@pytest.fixture(autouse=True)
def as_usual(host, store):
    yield
    host.answers = {}
    failures, store.failures = store.failures, []
    assert not failures, failures


@pytest.fixture
def user():
    """One that has no connection parked yet."""
    return next(one_user)


@pytest.fixture
def own(start):
    """A store and a proxy for one test: `own(pool, ...)` gives Host, Store and Proxy."""
    with contextlib.ExitStack() as stack:
        def make(pool, settings="", host=None, **options):
            host = host or Host()
            store = stack.enter_context(Store(host))
            stack.callback(store.check)
            shards = shard("store", store.port, more=TIMEOUTS + settings)
            return host, store, start(shards, users=USERS, pool=pool, **options)
        yield make


# Proxies that several tests share, each with a shard and a store of its own: the settings of the pool, and for each
# shard how it speaks TLS and its other settings.
BY_HEADER, WITHOUT = "client_address = proxy", "client_address = none"
FROM = 'source_address = {"127.0.0.2", "127.0.0.3"}'
HOUSES = {
    "parks": ("warm = 0 park_time = 20m", [("none", "")] * 5 + [("implicit", "")] * 3),
    "warms": ("warm = 2 warm_time = 20m park_time = 0s", [("none", "")] * 8 + [("starttls", "")]),
    "resets": ("warm = 1 warm_time = 20m park_time = 0s", [("none", "max_connections = 1")] * 6),
    "passes": ("warm = 0 park_time = 0s", [("none", BY_HEADER), ("implicit", BY_HEADER)] * 2 + [
        ("none", WITHOUT), ("none", FROM), ("implicit", ""), ("starttls", ""), ("none", "")]),
}
ROOM_USERS = 8  # of each shard; the last two have the same name at the store
Room = collections.namedtuple("Room", "host store proxy users")


class House:
    """One proxy and its shards; `take` gives a room that nobody has had yet."""

    def __init__(self, stack, start, pool, rooms):
        self.rooms = rooms
        self.stores = [stack.enter_context(Store()) for _ in rooms]
        self.free = list(range(len(rooms)))
        routes = {user: f"room{number}" + " same" * (user in self._users(number)[-2:])
                  for number in self.free for user in self._users(number)}
        shards = [shard(f"room{number}", store.port, tls=tls, more=TIMEOUTS + settings)
                  for number, (store, (tls, settings)) in enumerate(zip(self.stores, rooms))]
        nobodys = shard("store", self.stores[0].port)  # stage.Proxy's default route wants it
        self.proxy = start(nobodys + "".join(shards), users=list(routes), routes=routes, pool=pool)

    @staticmethod
    def _users(number):
        return [f"guest{number}-{which}" for which in range(ROOM_USERS)]

    def take(self, host, tls, settings):
        number = next(number for number in self.free if self.rooms[number] == (tls, settings))
        self.free.remove(number)
        self.stores[number].script = host
        return Room(host, self.stores[number], self.proxy, self._users(number))


@pytest.fixture(scope="module")
def houses(start):
    with contextlib.ExitStack() as stack:
        built = {}

        def house(name):
            if name not in built:
                built[name] = House(stack, start, *HOUSES[name])
            return built[name]
        yield house


@pytest.fixture
def room(houses):
    """`room(house, ...)` gives a Room for this test."""
    with contextlib.ExitStack() as stack:
        def take(name, host=None, tls="none", settings=""):
            one = houses(name).take(host or Host(), tls, settings)
            stack.callback(one.store.check)
            return one
        yield take


# Steps

def kinds(proxy, user, count):
    """How the logins of this user got their connections, in order; there must be `count`."""
    def found():
        return [event["lease"] for event in proxy.events("login ok") if event["user"] == user]
    servers.wait_for(lambda: len(found()) >= count, f"{count} logins of {user} in the log")
    assert len(found()) == count
    return found()


def wait_for_answer(host, peer, command, times=1):
    """Until the store has answered this command of the proxy: the next login finds the connection parked."""
    servers.wait_for(lambda: host.answered[peer].count(command) >= times, f"{command}, {times} times")


def drops(metrics, reason):
    return metrics[f'imapmux_backend_drops_total{{reason="{reason}"}}']


def idle(wire):
    wire.send(b"i IDLE\r\n")
    assert wire.read_line() == b"+ idling\r\n"


def log_out(wire):
    answer = wire.command(b"LOGOUT", tag=b"out")
    assert answer.startswith(b"* BYE ") and b"\r\nout OK " in answer and answer.count(b"\n") == 2, answer
    assert wire.read_to_end() == b""
    wire.close()


def park(proxy, host, user, password=PASSWORD):
    """A session that leaves its connection parked, which is returned."""
    wire = proxy.wire()
    wire.login(user, password)
    peer = host.logged_in[-1]
    wire.command(b"SELECT INBOX")
    log_out(wire)
    wait_for_answer(host, peer, b"P UNSELECT\r\n")
    return peer


def next_login(proxy, user, kind, count=2):
    """The user's next session, number `count`, must get its connection in this way; returns its wire."""
    wire = proxy.wire()
    assert wire.login(user, PASSWORD) == IN
    assert kinds(proxy, user, count)[-1] == kind
    return wire


def is_not_used_again(proxy, store, user, peer, count=2):
    """The connection ends without having been asked by the proxy, and the user's next session gets a new one."""
    wait_for_end(peer)
    assert b"P NOOP" not in heard(peer)
    before = len(store.peers)
    with next_login(proxy, user, "new", count) as wire:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    assert len(store.peers) == before + 1


# Parked and used again

@pytest.mark.parametrize("cut", [whole, single_bytes])
@pytest.mark.parametrize("logout", [b"out LOGOUT\r\n", b"out logout\r\n", b"out LogOut\r\n"])
def test_logout_parks(host, store, proxy, user, cut, logout):
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        assert wire.command(b"SELECT INBOX", tag=b"s") == b"s OK SELECT done\r\n"
        wire.cut = cut
        wire.send(logout)
        assert wire.read_to_end() == GOODBYE
    wait_for_answer(host, peer, b"P UNSELECT\r\n")
    assert b"LOGOUT" not in heard(peer).upper()
    with next_login(proxy, user, "parked") as wire:
        assert store.peers[-1] is peer
        assert wire.command(b"SELECT INBOX", tag=b"n") == b"n OK SELECT done\r\n"
    assert b"s SELECT INBOX\r\nP UNSELECT\r\nP NOOP\r\nn SELECT INBOX\r\n" in heard(peer)


def test_one_that_has_just_spoken_is_not_asked(own):
    host, store, proxy = own("warm = 0 park_time = 20m", check_after="20m")
    peer = park(proxy, host, USERS[0])
    for count in range(2, 5):
        with next_login(proxy, USERS[0], "parked", count) as wire:
            assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
            log_out(wire)
        wait_for_answer(host, peer, b"P NOOP\r\n", count - 1)  # at the end of the session, as nothing was selected
    assert len(store.peers) == 1
    end(peer)  # whether it is asked or not
    wait_for_end(peer)
    servers.wait_for(lambda: proxy.metrics()["imapmux_backends_parked"] == 0, "it to be dropped")
    next_login(proxy, USERS[0], "new", 5).close()


def test_log_and_metrics_tell_the_kind(host, store, proxy, user):
    before = proxy.metrics()
    park(proxy, host, user)
    parked = wait_for_metrics(proxy, backends_parked=before["imapmux_backends_parked"] + 1)
    log_out(next_login(proxy, user, "parked"))
    servers.wait_for(lambda: sum(event.get("user") == user for event in proxy.events("session end")) == 2, "the log")
    ends = [event for event in proxy.events("session end") if event.get("user") == user]
    assert [(event["why"], event["lease"]) for event in ends] == [("logout", "new"), ("logout", "parked")]
    after = proxy.metrics()
    for kind in "new", "parked":
        name = f'imapmux_leases_total{{kind="{kind}"}}'
        assert after[name] == before[name] + 1
    assert after["imapmux_backends_open"] == parked["imapmux_backends_open"] == before["imapmux_backends_open"] + 1


def test_nothing_was_selected(host, store, proxy, user):
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    wait_for_answer(host, peer, b"P NOOP\r\n")
    assert b"UNSELECT" not in heard(peer)
    next_login(proxy, user, "parked").close()


@pytest.mark.parametrize("listener", ["plain", "tls"])
def test_client_closes(host, store, proxy, user, listener):
    """Between two commands, with nothing outstanding: as good as LOGOUT."""
    with proxy.logged_in(user, listener) as wire:
        peer = store.peers[-1]
        wire.command(b"SELECT INBOX")
    wait_for_answer(host, peer, b"P UNSELECT\r\n")
    next_login(proxy, user, "parked").close()


def test_many_sessions_on_one_connection(host, store, proxy, user):
    peer = park(proxy, host, user)
    for number in range(2, 12):
        wire = next_login(proxy, user, "parked", number)
        assert wire.command(b"SELECT INBOX", tag=b"s") == b"s OK SELECT done\r\n"
        log_out(wire)
        wait_for_answer(host, peer, b"P UNSELECT\r\n", number)
    assert store.peers[-1] is peer
    told = heard(peer)
    assert told.count(b"P NOOP\r\ns SELECT INBOX\r\nP UNSELECT\r\n") == 10 and told.count(b"AUTHENTICATE") == 1


def test_commands_behind_the_login(host, store, proxy, user):
    """What the client sends behind its login goes out behind the check."""
    peer = park(proxy, host, user)
    with proxy.wire() as wire:
        wire.send(f"in LOGIN {user} {PASSWORD}\r\na SELECT INBOX\r\nb NOOP\r\nc LOGOUT\r\n".encode())
        assert wire.read_line() == IN
        received = wire.read_to_end()
    assert received.startswith(b"a OK SELECT done\r\nb OK NOOP done\r\n* BYE "), received
    assert received.count(b"\n") == 4 and b"\r\nc OK " in received
    assert b"P NOOP\r\na SELECT INBOX\r\nb NOOP\r\n" in heard(peer)


def test_bytes_behind_the_logout(host, store, proxy, user):
    """Nobody sees them: not this session's store, and not the next session."""
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        wire.send(b"out LOGOUT\r\nc DELETE INBOX\r\n")
        assert wire.read_to_end() == GOODBYE
    wait_for_answer(host, peer, b"P NOOP\r\n")
    next_login(proxy, user, "parked").close()
    assert b"DELETE" not in heard(peer)


CLEAN = [
    [b"NOOP"], [b"CAPABILITY"], [b'LIST "" "*"'], [b"LSUB \"\" *"], [b"NAMESPACE"], [b"STATUS INBOX (MESSAGES UNSEEN)"],
    [b"SELECT INBOX", b"FETCH 1:* (FLAGS UID)", b"STORE 1 +FLAGS (\\Seen)", b"UID SEARCH UNSEEN", b"EXPUNGE"],
    [b"EXAMINE INBOX", b"uid fetch 1 BODY.PEEK[]", b"SEARCH ALL", b"UID COPY 1 other", b"CLOSE"],
    [(b"APPEND INBOX ", Sync(b"x ENABLE CONDSTORE\r\n"))], [(b"APPEND INBOX (\\Seen) ", NonSync(b"to: me\r\n"))],
    [b"CREATE a", b"SUBSCRIBE a", b"UNSUBSCRIBE a", b"RENAME a b", b"DELETE b"],
]


def say(wire, command):
    return wire.command(*(command if isinstance(command, tuple) else (command,)))


@pytest.mark.parametrize("commands", CLEAN, ids=name_of)
def test_clean_commands(host, store, proxy, user, commands):
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        for command in commands:
            assert b" OK " in say(wire, command)
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    servers.wait_for(lambda: host.answered[peer] and host.answered[peer][-1].startswith(b"P "), "P UNSELECT or P NOOP")
    next_login(proxy, user, "parked").close()


@pytest.mark.parametrize("command", [b"COMPRESS DEFLATE", b"STARTTLS", b"LOGIN a b", b"AUTHENTICATE PLAIN AAAA",
                                     b"UNAUTHENTICATE"], ids=name_of)
def test_refused_commands_do_no_harm(host, store, proxy, user, command):
    """They never reach the store."""
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        assert wire.command(command, tag=b"x").startswith(b"x BAD ")
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    wait_for_answer(host, peer, b"P NOOP\r\n")
    next_login(proxy, user, "parked").close()


def test_idle_that_was_ended(host, store, proxy, user):
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        idle(wire)
        wire.send(b"DONE\r\n")
        assert wire.read_tagged(b"i") == b"i OK IDLE done\r\n"
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    wait_for_answer(host, peer, b"P NOOP\r\n")
    next_login(proxy, user, "parked").close()


# Tainted

TAINTS = [
    b"ENABLE CONDSTORE", b"enable utf8=accept", b"EnAbLe X-ANYTHING", b"ID NIL", b'id ("name" "x")',
    b"NOTIFY SET (SELECTED (MessageNew))", b"notify none", b"LANGUAGE de", b"XPING", b"X-Set-Something on",
    b"SELECT INBOX (CONDSTORE)", b"examine INBOX (QRESYNC (1 2))", b"SELECT INBOX (X-NEW)",
    b"FETCH 1 (FLAGS MODSEQ)", b"fetch 1 (flags modseq)", b"UID FETCH 1 (FLAGS) (CHANGEDSINCE 5 VANISHED)",
    b"FETCH 1 FLAGS (changedsince 5)", b"STORE 1 (UNCHANGEDSINCE 5) +FLAGS (\\Seen)",
    b"STATUS INBOX (MESSAGES HIGHESTMODSEQ)", b"status INBOX (highestmodseq)",
    b"SEARCH MODSEQ 5", b"UID SEARCH mOdSeQ 5", b'SEARCH "MODSEQ" 5',
    b"SEARCH RETURN (SAVE) ALL", b"UID SEARCH RETURN (MIN SAVE) ALL", b"SEARCH RETURN (UPDATE) ALL",
    b"SORT RETURN (CONTEXT) (DATE) UTF-8 ALL",
    (b"SELECT ", Sync(b"INBOX"), b" (CONDSTORE)"), (b"SELECT ", NonSync(b"INBOX"), b" (condstore)"),
    (b"SEARCH TEXT ", NonSync(b"x"), b" MODSEQ 5"), (b"SEARCH TEXT ", Sync(b"a"), b" FROM ", Sync(b"b"), b" modseq 5"),
    (b"SELECT INBOX ", NonSync(b"x"), b" (UTF8)"), (b"SEARCH ", NonSync(b"MODSEQ"), b" 5"), (b"XSTORE ", Sync(b"NOOP")),
]


@pytest.mark.parametrize("cut", [whole, single_bytes])
@pytest.mark.parametrize("command", TAINTS, ids=name_of)
def test_tainted(store, proxy, user, command, cut):
    """The command reaches the store; after it the connection is nobody else's."""
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        wire.cut = cut
        assert b" OK " in say(wire, command)
        assert b" OK " in say(wire, b"NOOP")
        log_out(wire)
    is_not_used_again(proxy, store, user, peer)


def test_tainted_in_one_piece(store, proxy, user):
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        wire.send(b"a NOOP\r\nb ENABLE CONDSTORE\r\nout LOGOUT\r\n")
        assert wire.read_to_end().startswith(b"a OK NOOP done\r\nb OK ENABLE done\r\n* BYE ")
    is_not_used_again(proxy, store, user, peer)


def test_tainted_though_refused(host, store, proxy, user):
    """A store may have done half of what it says NO to."""
    host.answers = {b"ENABLE": b"e NO not now\r\n"}
    with proxy.logged_in(user) as wire:
        peer = store.peers[-1]
        assert wire.command(b"ENABLE CONDSTORE", tag=b"e") == b"e NO not now\r\n"
        log_out(wire)
    is_not_used_again(proxy, store, user, peer)


def test_taint_outlives_a_later_logout_and_is_counted(store, proxy, user):
    before = drops(proxy.metrics(), "unclean")
    with proxy.logged_in(user) as wire:
        wire.command(b"ENABLE CONDSTORE")
        wire.command(b"SELECT INBOX")
        wire.command(b"CLOSE")
        peer = store.peers[-1]
    wait_for_end(peer)
    servers.wait_for(lambda: drops(proxy.metrics(), "unclean") == before + 1, "the drop to be counted")


# What is under way when the client leaves: not clean

def leave_half_a_command(wire):
    wire.send(b"x NOO")


def leave_half_a_logout(wire):
    wire.send(b"x LOGOUT")


def leave_an_open_command(wire):
    wire.send(b"x FETCH 1 BODY[]\r\n")


def leave_idle(wire):
    idle(wire)


def leave_half_a_done(wire):
    leave_idle(wire)
    wire.send(b"DO")


def leave_a_sync_literal(wire):
    wire.send(b"x APPEND INBOX {10}\r\n")
    assert wire.read_line() == b"+ go\r\n"


def leave_half_a_literal(wire):
    wire.send(b"x APPEND INBOX {10+}\r\nabc")


@pytest.mark.parametrize("leave", [leave_half_a_command, leave_half_a_logout, leave_an_open_command, leave_idle,
                                   leave_half_a_done, leave_a_sync_literal, leave_half_a_literal], ids=name_of)
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_left_in_the_middle(host, store, proxy, user, leave, how):
    host.answers = {b"FETCH": hang}
    wire = proxy.logged_in(user)
    peer = store.peers[-1]
    assert wire.command(b"SELECT INBOX", tag=b"s") == b"s OK SELECT done\r\n"
    leave(wire)
    if how == "reset":
        reset(wire.socket)
    else:
        wire.close()
    is_not_used_again(proxy, store, user, peer)
    assert b"P UNSELECT" not in heard(peer)


# Not fit to be parked

REFUSE_TO_PART = {
    "NO": b"P NO not now\r\n",
    "BAD": b"P BAD what\r\n",
    "other tag": b"Q OK done\r\n",
    "plus": b"+ go on\r\n",
    "BYE": b"* BYE going down\r\nP OK done\r\n",
    "no IMAP": b"\0\xff\r\nP OK done\r\n",
    "response behind it": b"P OK done\r\n* 5 EXISTS\r\n",
    "second answer": b"P OK done\r\nP OK done\r\n",
    "plus behind it": b"P OK done\r\n+ \r\n",
}


@pytest.mark.parametrize("name", REFUSE_TO_PART)
def test_store_does_not_part_cleanly(host, store, proxy, user, name):
    with proxy.logged_in(user) as wire:
        host.answers = {b"P UNSELECT": REFUSE_TO_PART[name]}
        peer = store.peers[-1]
        wire.command(b"SELECT INBOX")
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    is_not_used_again(proxy, store, user, peer)


@pytest.mark.parametrize("script", [hang, die], ids=name_of)
def test_store_does_not_part_at_all(host, store, proxy, user, script):
    """Neither this client nor its next session waits for that."""
    with proxy.logged_in(user) as wire:
        host.answers = {b"P UNSELECT": script}
        peer = store.peers[-1]
        wire.command(b"SELECT INBOX")
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    servers.wait_for(lambda: b"P UNSELECT\r\n" in peer.heard, "P UNSELECT")
    started = time.monotonic()
    next_login(proxy, user, "new").close()
    assert time.monotonic() - started < AT_ONCE_SECONDS
    end(peer)


def test_store_cannot_unselect(room):
    host, store, proxy, users = room("parks", Host(CAPABILITIES))
    with proxy.logged_in(users[0]) as wire:
        wire.command(b"SELECT INBOX")
        log_out(wire)
    wait_for_end(store.peers[0])
    proxy.logged_in(users[0]).close()
    assert kinds(proxy, users[0], 2) == ["new", "new"]
    assert b"UNSELECT" not in heard(store.peers[0])


# While parked

def test_store_may_say_ok(host, store, proxy, user):
    """Alerts are for the next session; the rest is for nobody."""
    peer = park(proxy, host, user)
    peer.send(b"* OK Still here\r\n* OK [ALERT] Disk nearly full {3}\r\n* ok still\r\n")
    with proxy.wire() as wire:
        assert wire.login(user, PASSWORD) == b"* OK [ALERT] Disk nearly full {3}\r\n" + IN
    assert kinds(proxy, user, 2) == ["new", "parked"]
    wait_for_answer(host, peer, b"P NOOP\r\n", 2)  # the check, and the leaving
    next_login(proxy, user, "parked", 3).close()  # is told nothing any more


def test_alert_byte_by_byte(host, store, proxy, user):
    peer = park(proxy, host, user)
    for piece in single_bytes(b"* OK Still here\r\n* OK [ALERT] Sunday\r\n"):
        peer.send(piece)
    with proxy.wire() as wire:
        assert wire.login(user, PASSWORD) == b"* OK [ALERT] Sunday\r\n" + IN


def test_lent_in_the_middle_of_a_line(own):
    """The session gets what there is of it, and leaves a connection that can be parked again."""
    host, store, proxy = own("warm = 0 park_time = 20m", check_after="20m")
    peer, half = park(proxy, host, USERS[0]), b"* OK Still here, and longer than any answer to NOOP"
    peer.send(b"* OK [ALERT] Sunday\r\n" + half)
    with proxy.wire() as wire:
        assert wire.login(USERS[0], PASSWORD) == b"* OK [ALERT] Sunday\r\n" + IN
        peer.send(b" is\r\n")
        assert wire.read_line() == half + b" is\r\n"
        log_out(wire)
    wait_for_answer(host, peer, b"P NOOP\r\n")
    next_login(proxy, USERS[0], "parked", 3).close()
    assert len(store.peers) == 1


WHILE_PARKED = {
    "EXISTS": b"* 5 EXISTS\r\n",
    "NO": b"* NO something is wrong\r\n",
    "BAD": b"* BAD something is wrong\r\n",
    "CAPABILITY": b"* CAPABILITY IMAP4rev1\r\n",
    "FLAGS": b"* FLAGS (\\Seen)\r\n",
    "BYE": b"* BYE Autologout\r\n",
    "tagged": b"P OK once more\r\n",
    "plus": b"+ \r\n",
    "literal": b"* LIST () \"/\" {3}\r\nabc\r\n",
    "no IMAP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "NUL": b"\0\0\r\n",
    "good, then bad": b"* OK Still here\r\n* 5 EXISTS\r\n",
    "endless line": b"* OK " + b"x" * 200_000,
}


@pytest.mark.parametrize("name", WHILE_PARKED)
def test_store_says_what_it_must_not(host, store, proxy, user, name):
    peer = park(proxy, host, user)
    with contextlib.suppress(ConnectionError):  # of the endless line
        peer.send(WHILE_PARKED[name])
    is_not_used_again(proxy, store, user, peer)


def end_in_this_way(peer, how):
    """The store ends a connection that its script reads from."""
    if how == "reset":
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.shutdown(socket.SHUT_RD)  # wakes the script, which closes; till then it would still read
        wait_for_end(peer)
        return
    if how == "BYE and closed":
        peer.send(b"* BYE Autologout\r\n")
    end(peer)


@pytest.mark.parametrize("how", ["closed", "reset", "BYE and closed"])
def test_store_ends_a_parked_connection(host, store, proxy, user, how):
    peer = park(proxy, host, user)
    parked = proxy.metrics()["imapmux_backends_parked"]
    end_in_this_way(peer, how)
    wait_for_metrics(proxy, backends_parked=parked - 1)
    is_not_used_again(proxy, store, user, peer)


# The check before it is used again

@pytest.mark.parametrize("answer", [b"P NO\r\n", b"P BAD what\r\n", b"Q OK done\r\n", b"+ go\r\n",
                                    b"\0\xff\r\nP OK\r\n", b"* BYE so long\r\nP OK done\r\n", die, say_bye,
                                    close_with_reset], ids=name_of)
def test_check_fails(host, store, proxy, user, answer):
    """The client is given a new connection instead, and does not notice."""
    host.answers = {b"P NOOP": answer}
    peer, before = park(proxy, host, user), len(store.peers)
    with next_login(proxy, user, "new") as wire:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    assert b"P NOOP\r\n" in peer.heard and len(store.peers) == before + 1
    wait_for_end(peer)


def test_check_hangs(host, store, proxy, user):
    host.answers = {b"P NOOP": hang}
    peer = park(proxy, host, user)
    started = time.monotonic()
    next_login(proxy, user, "new").close()
    print(f"\nreplaced after {time.monotonic() - started:.2f} s")
    assert time.monotonic() - started < BOUND_SECONDS
    wait_for_end(peer)


def test_check_brings_news(host, store, proxy, user):
    """What comes before the answer to the check is not for the client, who has selected nothing."""
    host.answers = {b"P NOOP": b"* 7 EXISTS\r\n* OK [ALERT] Sunday\r\nP OK done\r\n"}
    park(proxy, host, user)
    with proxy.wire() as wire:
        answer = wire.login(user, PASSWORD)
        assert b"EXISTS" not in answer and b"P OK" not in answer and answer.endswith(IN)
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


def test_end_comes_with_the_next_login(host, store, proxy):
    """The store closes, and the user comes at the same moment: whatever is noticed first, the login succeeds."""
    for user in itertools.islice(one_user, 10):
        peer = park(proxy, host, user)
        with proxy.wire() as wire:
            wire.send(f"in LOGIN {user} {PASSWORD}\r\n".encode())
            end(peer)
            assert wire.read_tagged(b"in") == IN
            kind = kinds(proxy, user, 2)[1]
            if kind == "new":
                assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


# Whose it is

def test_not_for_other_users(host, store, proxy, user):
    peer, before = park(proxy, host, user), len(store.peers)
    other = next(one_user)
    next_login(proxy, other, "new", 1).close()
    assert len(store.peers) == before + 1 and not has_ended(peer)
    next_login(proxy, user, "parked").close()


def test_not_for_another_name_at_the_store(room):
    """Two of our users with one name at the store: to each its own."""
    host, store, proxy, users = room("parks")
    one, two = users[-2:]
    park(proxy, host, one)
    next_login(proxy, two, "new", 1).close()
    next_login(proxy, one, "parked").close()


def test_not_for_another_client_program(room):
    """What the client says in its ID goes to the store at login: so it must be the same."""
    host, store, proxy, users = room("parks")
    for number, program in enumerate((b"one", b"two", b"one", b"two"), start=1):
        with proxy.wire() as wire:
            assert b"i OK" in wire.command(b'ID ("name" "' + program + b'")', tag=b"i")
            wire.login(users[0], PASSWORD)
            wire.command(b"SELECT INBOX")
            log_out(wire)
        peer = store.peers[(number - 1) % 2]
        wait_for_answer(host, peer, b"P UNSELECT\r\n", (number + 1) // 2)
        assert b'"name" "' + program in heard(peer)
    assert kinds(proxy, users[0], 4) == ["new", "new", "parked", "parked"]
    assert len(store.peers) == 2


HASH_OF_EIGHT = "abD6HAB6eqg.k"  # crypt(3) of old: it looks at no more than the first eight octets, "longpass"


def test_not_for_another_password(own):
    """The user has a new password: what the old one opened is closed. A wrong one closes nothing."""
    host, store, proxy = own("warm = 0 park_time = 1m")
    proxy.stop()
    with open(proxy.folder / "passwd", "a") as passwords:
        passwords.write(f"changing:{HASH_OF_EIGHT}\n")
    proxy.lines.clear()
    proxy.start()
    peer = park(proxy, host, "changing", "longpass-old")
    with proxy.wire() as wire:
        assert wire.command(b"LOGIN changing wrong", tag=b"x").startswith(b"x NO [AUTHENTICATIONFAILED] ")
        wire.login("changing", "longpass-old")
    wait_for_answer(host, peer, b"P NOOP\r\n", 2)  # the check, and the leaving
    assert not has_ended(peer)
    with proxy.wire() as wire:
        wire.login("changing", "longpass-new")
        wait_for_end(peer)
    assert kinds(proxy, "changing", 3) == ["new", "parked", "new"]
    assert drops(proxy.metrics(), "purged") == 1


# How many and for how long

def several(proxy, users):
    wires = [proxy.logged_in(user) for user in users]
    for wire in wires:
        log_out(wire)


def test_limit_for_a_user(room):
    """Two, if nothing is configured."""
    host, store, proxy, users = room("parks")
    before = drops(proxy.metrics(), "limit")
    several(proxy, users[:1] * 5)
    servers.wait_for(lambda: sum(has_ended(peer) for peer in store.peers) == 3, "the end of three connections")
    servers.wait_for(lambda: drops(proxy.metrics(), "limit") == before + 3, "the drops to be counted")
    parked = [peer for peer in store.peers if not has_ended(peer)]
    for peer in parked:
        wait_for_answer(host, peer, b"P NOOP\r\n")
    wires = [proxy.logged_in(users[0]) for _ in range(3)]
    assert kinds(proxy, users[0], 8)[5:] == ["parked", "parked", "new"]
    for wire in wires:
        wire.close()


def test_limit_for_a_shard(own):
    _, _, proxy = own("warm = 0 park_time = 1m park_per_shard = 3")
    several(proxy, USERS[:6])
    assert drops(wait_for_metrics(proxy, backends_parked=3, backends_open=3), "limit") == 3


def test_limit_in_all(start):
    """Of all shards together; each of two workers has half of it."""
    with Store(Host()) as one, Store(Host()) as two:
        proxy = start(shard("store", one.port, more=TIMEOUTS) + shard("two", two.port, more=TIMEOUTS), users=USERS,
                      routes={user: "two" for user in USERS[::2]}, pool="warm = 0 park_time = 1m park_total = 4",
                      workers=2)
        several(proxy, USERS[:40])
        assert drops(wait_for_metrics(proxy, backends_parked=4, backends_open=4), "limit") == 36


def test_lifetime(own):
    """A connection that has lived long enough ends with its session; a NOOP now and then tells the time."""
    _, store, proxy = own("warm = 0 park_time = 1m lifetime = 1s")
    wire = proxy.logged_in(USERS[0])
    born = time.monotonic()
    pace = threading.Event()
    while time.monotonic() - born < 1.2:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
        pace.wait(0.1)
    log_out(wire)
    wait_for_end(store.peers[0])
    assert b"UNSELECT" not in heard(store.peers[0])
    wait_for_metrics(proxy, backends_parked=0, backends_open=0)


def test_park_time(own):
    host, store, proxy = own("warm = 0 park_time = 1s")
    started = time.monotonic()
    peer = park(proxy, host, USERS[0])
    wait_for_end(peer)
    assert 1 <= time.monotonic() - started < 1 + AT_ONCE_SECONDS
    metrics = wait_for_metrics(proxy, backends_parked=0, backends_open=0)
    assert drops(metrics, "expired") == 1
    next_login(proxy, USERS[0], "new").close()


def test_stop_with_idle_connections(own):
    """They hold up nothing."""
    host, store, proxy = own("warm = 2 park_time = 1m")
    park(proxy, host, USERS[0])
    wait_for_metrics(proxy, backends_parked=1, backends_warm=2)
    started = time.monotonic()
    assert proxy.stop() == 0
    assert time.monotonic() - started < AT_ONCE_SECONDS
    for peer in store.peers:
        wait_for_end(peer)
    metrics = proxy.metrics()
    for state in "open", "parked", "warm":
        assert metrics[f"imapmux_backends_{state}"] == 0


# Warm

def wait_for_spares(host, count=2):
    servers.wait_for(lambda: len(host.spares()) == count, f"{count} spares")


def test_spares(own):
    """None before the first login, then so many; each is greeted and no more, and its login is one write."""
    script = FirstSegment(Host())
    _, store, proxy = own("warm = 2 park_time = 0s", host=script)
    with proxy.wire() as wire:
        assert wire.command(b"LOGIN user0 wrong", tag=b"x").startswith(b"x NO ")
    assert proxy.metrics()["imapmux_backends_open"] == 0 and store.peers == []

    proxy.logged_in(USERS[0]).close()
    metrics = wait_for_metrics(proxy, backends_warm=2, backends_open=2)
    assert len(store.peers) == 3 and not any(peer.heard for peer in store.peers[1:])
    assert metrics['imapmux_leases_total{kind="new"}'] == 1

    with proxy.logged_in(USERS[1]) as wire:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
        assert kinds(proxy, USERS[1], 1) == ["warm"]
        used, = [peer for peer in store.peers[1:3] if peer.heard]
        assert re.fullmatch(rb"I ID \([^\r]*\)\r\nL AUTHENTICATE PLAIN [A-Za-z0-9+/=]+\r\n", script.segments[used])
        metrics = wait_for_metrics(proxy, backends_warm=2, backends_open=3)
        assert metrics['imapmux_leases_total{kind="warm"}'] == 1
    assert len(store.peers) == 4


def test_spares_behind_tls(room, certificate):
    """TLS is done and the capabilities are known before anybody logs in."""
    host, store, proxy, users = room("warms", Host(prologue=over_tls(certificate, "starttls")), tls="starttls")
    proxy.logged_in(users[0]).close()
    wait_for_spares(host)
    for spare in host.spares():
        assert spare.heard == [b"S STARTTLS\r\n", b"C CAPABILITY\r\n"]
    proxy.logged_in(users[1]).close()
    assert kinds(proxy, users[1], 1) == ["warm"]


def test_spares_are_renewed_while_the_shard_is_used(own):
    """None is older than warm_time; when nobody comes any more, none is left."""
    born, ages = {}, []

    def prologue(peer):
        born[peer] = time.monotonic()
    host, store, proxy = own("warm = 2 warm_time = 1s park_time = 0s", host=Host(prologue=prologue))
    proxy.logged_in(USERS[0]).close()
    wait_for_spares(host)
    first = host.spares()
    while not all(has_ended(peer) for peer in first):  # used or expired
        proxy.logged_in(USERS[0]).close()
        ages += [time.monotonic() - born[peer] for peer in host.spares()]
    assert max(ages) < 1 + AT_ONCE_SECONDS
    wait_for_metrics(proxy, backends_warm=0, backends_open=0)
    count = len(store.peers)
    metrics = proxy.metrics()
    assert metrics["imapmux_backends_open"] == 0 and len(store.peers) == count
    assert drops(metrics, "expired") >= 2


@pytest.mark.parametrize("how", ["closed", "reset", "BYE and closed"])
def test_dead_spare(room, how):
    """It had died before the user came, or just as she comes: she does not notice."""
    host, store, proxy, users = room("warms")
    proxy.logged_in(users[0]).close()
    wait_for_spares(host)
    for peer in host.spares():
        end_in_this_way(peer, how)
    with proxy.logged_in(users[1]) as wire:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


@pytest.mark.parametrize("script", [say_bye, die, close_with_reset], ids=name_of)
def test_spare_dies_at_login(room, script):
    """It has had the login, but ends without a tagged answer to it; as do all the others of its age."""
    host, store, proxy, users = room("warms")
    proxy.logged_in(users[0]).close()
    wait_for_spares(host)
    spares = host.spares()
    host.at_login = dict.fromkeys(spares, script)
    with proxy.wire() as wire:
        assert wire.login(users[1], PASSWORD) == IN
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    assert any(b"AUTHENTICATE" in heard(peer) for peer in spares)
    assert kinds(proxy, users[1], 1)[0] in ("new", "warm")


def test_spare_refuses_the_login(room):
    """That is an answer: it is not asked for a second time elsewhere."""
    def refuse(peer):
        peer.send(b"L NO [AUTHENTICATIONFAILED] who are you\r\n")
        peer.wait_for_end()
    host, store, proxy, users = room("warms")
    proxy.logged_in(users[0]).close()
    wait_for_spares(host)
    spares = host.spares()
    host.at_login = dict.fromkeys(spares, refuse)
    with proxy.wire() as wire:
        answer = wire.command(f"LOGIN {users[1]} {PASSWORD}".encode(), tag=b"in")
        assert answer.startswith(b"in NO [AUTHENTICATIONFAILED] ")
    assert sum(b"AUTHENTICATE" in heard(peer) for peer in spares) == 1
    assert len(host.logged_in) == 1


def test_spares_of_a_store_that_is_down(room):
    """It is not asked again and again; when it is well again, so are the spares."""
    host, store, proxy, users = room("warms")
    with proxy.logged_in(users[0]):
        wait_for_spares(host)
        host.is_down = True
        before = len(store.peers)
        for peer in host.spares():
            end(peer)
        threading.Event().wait(1.5)  # the time itself is what is tested
        assert len(store.peers) - before <= 10, "spares are tried too often"
    with proxy.wire() as wire:
        answer = wire.command(f"LOGIN {users[1]} {PASSWORD}".encode(), tag=b"in")
        assert answer.startswith(b"in NO [UNAVAILABLE] ")
        host.is_down = False
        wire.login(users[1], PASSWORD)
        wait_for_spares(host)


# Reset

RESET_ANSWERS = {
    "with a list": b"P OK [CAPABILITY " + RESETS + b"] forgotten\r\n",
    "without a list": b"P OK forgotten\r\n",
}


def reset_and_use(host, store, proxy, users, answer):
    """There is room for one connection only, so the next user gets the one that was reset."""
    host.answers = {b"P UNAUTHENTICATE": RESET_ANSWERS[answer]}
    with proxy.logged_in(users[0]) as wire:
        wire.command(b"SELECT INBOX")
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    peer, = store.peers
    asked = [b"P UNAUTHENTICATE\r\n"] + [b"C CAPABILITY\r\n"] * (answer == "without a list")
    wait_for_answer(host, peer, asked[-1])
    assert peer.heard[peer.heard.index(asked[0]):] == asked
    with proxy.logged_in(users[1]) as wire:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    assert kinds(proxy, users[1], 1) == ["reset"]
    assert store.peers == [peer] and heard(peer).count(b"L AUTHENTICATE PLAIN ") == 2


@pytest.mark.parametrize("answer", RESET_ANSWERS)
def test_reset(room, answer):
    """The store forgets the user, and the connection serves another one."""
    one = room("resets", Host(RESETS), settings="max_connections = 1")
    before = one.proxy.metrics()
    reset_and_use(*one, answer)
    name = 'imapmux_leases_total{kind="reset"}'
    assert one.proxy.metrics()[name] == before[name] + 1


def test_reset_when_parked_for_too_long(own):
    host, store, proxy = own("warm = 1 park_time = 1s", "max_connections = 1", host=Host(RESETS))
    reset_and_use(host, store, proxy, USERS, "without a list")
    assert b"P UNSELECT\r\nP UNAUTHENTICATE\r\n" in heard(store.peers[0])


@pytest.mark.parametrize("answer", [b"P NO not you\r\n", b"P BAD what\r\n", die, b"* BYE so long\r\nP OK\r\n"],
                         ids=name_of)
def test_reset_fails(room, answer):
    host, store, proxy, users = room("resets", Host(RESETS), settings="max_connections = 1")
    host.answers = {b"P UNAUTHENTICATE": answer}
    with proxy.logged_in(users[0]) as wire:
        assert wire.command(b"LOGOUT", tag=b"out") == GOODBYE
    wait_for_end(store.peers[0])
    assert b"P UNAUTHENTICATE\r\n" in store.peers[0].heard
    host.answers = {}
    proxy.logged_in(users[1]).close()
    assert kinds(proxy, users[1], 1)[0] in ("new", "warm")
    assert heard(store.peers[0]).count(b"AUTHENTICATE PLAIN") == 1


# The way to the store: addresses, PROXY protocol, TLS

@pytest.mark.parametrize("listener", ["plain", "tls"])
@pytest.mark.parametrize("tls", ["none", "implicit"])
def test_proxy_header_to_the_store(room, certificate, listener, tls):
    prologue = read_proxy_header if tls == "none" else over_tls(certificate, tls, read_proxy_header)
    _, store, proxy, users = room("passes", Host(prologue=prologue), tls, BY_HEADER)
    for number, user in enumerate(users[:2]):
        with proxy.logged_in(user, listener) as wire:
            told = store.peers[number].told
            assert told["source"] == wire.socket.getsockname()
            assert told["destination"] == (servers.HOST, proxy.port[listener])
            kinds(proxy, user, 1)
            session, = [event["session"] for event in proxy.events("login ok") if event["user"] == user]
            assert told["tlvs"][0x05].decode() == session
            if listener == "plain":
                assert 0x20 not in told["tlvs"]
            else:
                assert told["tlvs"][0x20][0] & 1  # PP2_CLIENT_SSL
                about_tls = read_tlvs(told["tlvs"][0x20][5:])
                assert about_tls[0x21].decode() == wire.socket.version() in TLS_VERSIONS
                assert about_tls[0x23].decode() == wire.socket.cipher()[0]
            assert b"x-originating" not in heard(store.peers[number])


def test_no_address_to_the_store(room):
    _, store, proxy, users = room("passes", settings=WITHOUT)
    proxy.logged_in(users[0]).close()
    assert b" ID " not in heard(store.peers[0]) and b"x-originating" not in heard(store.peers[0])


def test_source_addresses(room):
    seen = []
    host = Host(prologue=lambda peer: seen.append(peer.socket.getpeername()[0]))
    _, store, proxy, users = room("passes", host, settings=FROM)
    for user in users[:6]:
        proxy.logged_in(user).close()
    assert sorted(seen[:2]) == ["127.0.0.2", "127.0.0.3"] and seen == seen[:2] * 3


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_tls_to_the_store_is_resumed(room, certificate, tls):
    resumed, versions = [], []
    wrap = over_tls(certificate, tls)

    def prologue(peer):
        wrap(peer)
        resumed.append(peer.socket.session_reused)
        versions.append(peer.socket.version())
    _, store, proxy, users = room("passes", Host(prologue=prologue), tls)
    before = proxy.metrics()["imapmux_backend_tls_resumed_total"]
    for user in users[:4]:
        with proxy.logged_in(user) as wire:
            assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    assert resumed == [False, True, True, True], versions
    assert proxy.metrics()["imapmux_backend_tls_resumed_total"] == before + 3


@pytest.mark.parametrize("what", ["used", "EXISTS", "closed"])
def test_parked_behind_tls(room, certificate, what):
    """As in clear: what comes while parked is seen, though OpenSSL has read it."""
    host, store, proxy, users = room("parks", Host(prologue=over_tls(certificate, "implicit")), "implicit")
    if what == "EXISTS":  # in one TLS record with the answer before it
        host.answers = {b"P UNSELECT": b"P OK done\r\n* 5 EXISTS\r\n"}
    peer = park(proxy, host, users[0])
    if what == "used":
        next_login(proxy, users[0], "parked").close()
        return
    if what == "closed":
        end(peer)
    is_not_used_again(proxy, store, users[0], peer)


# Loops

def refused_login(proxy, wire, user):
    """For the reason of a loop; returns the line of the log."""
    answer = wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")
    assert answer.startswith(b"in NO [CONTACTADMIN] "), answer
    servers.wait_for(lambda: any(event["user"] == user for event in proxy.events("login refused")), "the log")
    return next(event for event in proxy.events("login refused") if event["user"] == user)


def test_ttl_counts_down(room):
    _, store, proxy, users = room("passes")
    for given in 3, 2:
        with proxy.wire() as wire:
            wire.command(b'ID ("name" "x" "x-proxy-ttl" "%d")' % given)
            wire.login(users[0], PASSWORD)
            assert b'"x-proxy-ttl" "%d"' % (given - 1) in heard(store.peers[-1])
    with proxy.wire() as wire:
        wire.command(b'ID ("x-proxy-ttl" "0")')
        assert refused_login(proxy, wire, users[0])["reason"] == "config"
    assert len(store.peers) == 2


def test_proxy_that_is_its_own_store(start):
    """The login goes round a few times, and is refused."""
    port = servers.free_port()
    listener = f'listener loop {{ address = {{"{servers.HOST}:{port}"}} tls = none plaintext_login = yes }}\n'
    proxy = start(shard("store", port, more=TIMEOUTS), users=USERS, more=listener, workers=2)
    with proxy.wire() as wire:
        started = time.monotonic()
        assert refused_login(proxy, wire, USERS[0])["reason"] == "config"
        assert time.monotonic() - started < AT_ONCE_SECONDS
    wait_for_metrics(proxy, backends_open=0, logins_in_flight=0)
    assert not proxy.events("login ok") and len(proxy.events("login refused")) <= 10


# Still here

STILL_HERE = b"* OK Still here\r\n"
NOTIFY_SECONDS = 0.3


@pytest.fixture(scope="module")
def notifying(start):
    host = Host()
    with Store(host) as store:
        more = f"session {{ idle_notify = {int(NOTIFY_SECONDS * 1000)}ms }}\n"
        yield store, start(shard("store", store.port, more=TIMEOUTS), users=USERS, more=more)
        store.check()


def test_idle_notify(notifying):
    """An idling client hears something now and then; one that does not idle does not."""
    store, proxy = notifying
    with proxy.logged_in(USERS[0]) as calm, proxy.logged_in(USERS[1]) as wire:
        idle(wire)
        times = [time.monotonic()]
        for _ in range(3):
            assert wire.read_line() == STILL_HERE
            times.append(time.monotonic())
        for before, after in zip(times, times[1:]):
            assert 0.6 * NOTIFY_SECONDS < after - before < NOTIFY_SECONDS + AT_ONCE_SECONDS
        wire.send(b"DONE\r\n")
        assert wire.read_tagged(b"i").replace(STILL_HERE, b"") == b"i OK IDLE done\r\n"
        assert select.select([calm.socket], [], [], 0)[0] == []
        assert calm.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    assert not any(line.startswith(b"* OK") for peer in store.peers for line in peer.heard)


def test_idle_notify_stands_between_responses(notifying):
    """Never within a line or a literal of the store, however long that takes."""
    store, proxy = notifying
    pieces = [b"* 5 EXI", b"STS\r\n* LIST () \"/\" {5}\r\na", b"bcde\r\n"]
    with proxy.logged_in(USERS[0]) as wire:
        idle(wire)
        pace = threading.Event()
        for piece in pieces:
            store.peers[-1].send(piece)
            pace.wait(2 * NOTIFY_SECONDS)  # the time itself is what is tested
        wire.send(b"DONE\r\n")
        received = wire.read_tagged(b"i")
    rest = received.replace(STILL_HERE, b"")
    assert rest == b"".join(pieces) + b"i OK IDLE done\r\n"
    assert received.count(STILL_HERE) <= 6


def test_what_becomes_idle_makes_room(start):
    """Somebody waits for the only connection while it is being cleaned: it is not kept, but gives its place away."""
    cleaning, go_on = threading.Event(), threading.Event()

    def script(peer):
        peer.log_in(CAPABILITIES + b" UNSELECT")
        while True:
            tag, name = peer.command().split()[:2]
            if tag == b"P" and name == b"NOOP":
                cleaning.set()
                go_on.wait(20)
            peer.send(tag + b" OK done\r\n")
    with Store(script) as store:
        proxy = start(shard("store", store.port, more="max_connections = 1 queue_timeout = 20s"), pool="warm = 0")
        log_out(proxy.logged_in("alice"))
        assert cleaning.wait(20)
        with proxy.wire() as wire:
            wire.send(b"in LOGIN bob secret\r\n")
            servers.wait_for(lambda: proxy.metrics()["imapmux_leases_waiting"] == 1, "bob to wait")
            go_on.set()
            wire.socket.settimeout(5)
            assert wire.read_tagged(b"in").startswith(b"in OK ")


def test_no_reset_behind_a_proxy_header(start):
    """The store would take the next user for a client at the first one's address."""
    host = Host(RESETS, prologue=read_proxy_header)
    with Store(host) as store:
        proxy = start(shard("store", store.port, more="client_address = proxy"), pool="warm = 2 park_time = 300ms")
        log_out(proxy.logged_in("alice"))
        wait_for_end(store.peers[0])
        assert b"UNAUTHENTICATE" not in heard(store.peers[0])
        with proxy.logged_in("bob") as wire:
            assert store.peers[-1].told["source"] == wire.socket.getsockname()
