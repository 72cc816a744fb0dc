"""
A mailbox is moved under its sessions, the routes in a real Redis: what clients hear are whole responses, what they had
asked is answered, what they ask while it is moved waits, and is answered by the new store; and nothing of theirs is
at the old store from then on.
"""
import base64
import contextlib
import json
import signal
import threading

import pytest

import servers
from imapwire import Closed, Sync
from stage import CAPABILITIES, PASSWORD, Store, shard
from test_admin import done

MOVED = b"* BYE [UNAVAILABLE] Your mailbox is being moved, please connect again.\r\n"
REFUSED = b"in NO [UNAVAILABLE] Your mailbox is being moved, please try again in a moment.\r\n"
ADMIN = 'admin { socket = "admin.sock" }\n'
PARKING = "warm = 0 park_time = 20m"
SETTINGS = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{redis}} cache_ttl = 0s }}
redis {{ address = "{redis}" retry_max = 200ms }}
cutover {{ hold_timeout = {hold} end_timeout = {end} }}
session {{ linger_timeout = 10m }}
"""
LONG, SHORT = "10m", "300ms"
LITERAL = b"0123456789" * 1000
ROUNDS = 5
USERS = [f"user{number}" for number in range(12)]


class Mailboxes:
    """
    A store that keeps what is appended, by user, and knows how many connections each user has. It answers FETCH when
    `gate` opens, and says when one has come.
    """

    def __init__(self, name):
        self.name = name
        self.lock = threading.Lock()
        self.appended, self.connected = {}, {}
        self.fetched, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, peer):
        peer.greet(CAPABILITIES + b" UNSELECT")
        user = self._user_of(peer.until_login())
        with self.lock:
            self.connected[user] = self.connected.get(user, 0) + 1
        try:
            peer.send(b"L OK [CAPABILITY %s UNSELECT] Logged in\r\n" % CAPABILITIES)
            self._serve(peer, user)
        finally:
            with self.lock:
                self.connected[user] -= 1

    @staticmethod
    def _user_of(command):
        return base64.b64decode(command.split()[3]).split(b"\0")[1].decode()

    def _serve(self, peer, user):
        while True:
            command = peer.command()
            tag, name = command.split()[:2]
            name = name.upper()
            if name == b"LOGOUT":
                peer.send(b"* BYE bye\r\n" + tag + b" OK bye\r\n")
                return
            if name == b"IDLE":
                peer.send(b"+ idling\r\n")
                assert peer.line() == b"DONE\r\n"
            elif name == b"APPEND":
                with self.lock:
                    self.appended.setdefault(user, []).append(tag)
            elif name == b"FETCH":
                self.fetched.set()
                peer.send(b"* 1 FETCH (BODY[] {%d}\r\n" % len(LITERAL) + LITERAL[:100])
                assert self.gate.wait(30)
                peer.send(LITERAL[100:] + b")\r\n")
            elif name == b"WHERE":
                peer.send(b"* WHERE %s\r\n" % self.name)
            peer.send(tag + b" OK " + name + b" done\r\n")

    def has(self, user):
        with self.lock:
            return self.connected.get(user, 0)


class Move:
    """What a cutover says of a user in Redis, step by step."""

    def __init__(self, redis, user, to, epoch):
        self.redis, self.key, self.to, self.epoch = redis, f"imapmux:user:{{{user}}}", to, epoch

    def begin(self):
        self.redis.call("HSET", self.key, "state", "moving", "target", self.to, "epoch", str(self.epoch))

    def end(self):
        self.redis.call("HSET", self.key, "state", "active", "shard", self.to, "epoch", str(self.epoch + 1))


@pytest.fixture(scope="module")
def redis(folder):
    with servers.Redis(folder / "hold-redis") as only:
        yield only


@pytest.fixture
def stores():
    old, new = Mailboxes(b"old"), Mailboxes(b"new")
    with Store(old) as one, Store(new) as other:
        old.store, new.store = one, other
        yield old, new
        old.gate.set()
        one.check()
        other.check()


@pytest.fixture
def proxy(start, stores, redis):
    """Starts a proxy whose users are all at the old store."""
    def start_one(hold=LONG, end=LONG, log="info", forget=True):
        if forget:
            redis.call("FLUSHALL")
        redis.route(dict.fromkeys(["alice", "bob", *USERS], "old"))
        shards = shard("old", stores[0].store.port) + shard("new", stores[1].store.port)
        return start(shards, sources=SETTINGS.format(redis=redis.address, hold=hold, end=end), more=ADMIN, workers=2,
                     pool=PARKING, log=log, users=["alice", "bob", *USERS])
    return start_one


def asks_to_log_in(proxy, user="alice"):
    """A login whose route says that she is moving: from then on she is held there."""
    wire = proxy.wire()
    wire.send(b"in LOGIN %s %s\r\n" % (user.encode(), PASSWORD.encode()))
    return wire


def is_told(wire, before=b""):
    assert wire.read_to_end() == before + MOVED


def where(wire):
    return wire.command(b"WHERE").split()[2]


def is_held(proxy):
    return any("held" in line for line in proxy.output().splitlines() if "event=phase" in line)


def ends_say(proxy, why, count):
    servers.wait_for(lambda: sum(event["why"] == why for event in proxy.events("session end")) == count,
                     f"{count} ends because of {why}")


def test_sessions_in_all_that_they_do(proxy, stores, redis):
    old, new = stores
    proxy = proxy()
    rests, idles, appends, fetches, pipelines = wires = [proxy.logged_in() for _ in range(5)]
    other = proxy.logged_in("bob")
    with proxy.logged_in() as parked:
        parked.command(b"LOGOUT")
    idles.send(b"i IDLE\r\n")
    assert idles.read_line() == b"+ idling\r\n"
    appends.send(b"a APPEND INBOX {%d}\r\n" % len(LITERAL))
    assert appends.read_line() == b"+ go\r\n"
    appends.send(LITERAL[:5000])
    old.gate.clear()
    fetches.send(b"f FETCH 1 BODY[]\r\ng NOOP\r\n")
    pipelines.send(b"".join(b"p%d NOOP\r\n" % number for number in range(100)))
    pipelines.read_tagged(b"p99")
    assert old.fetched.wait(30)
    servers.wait_for(lambda: old.has("alice") == 6, "all at the old store")

    move = Move(redis, "alice", "new", 1)
    move.begin()
    waits = asks_to_log_in(proxy)
    for wire in rests, idles, pipelines:
        is_told(wire)
    servers.wait_for(lambda: old.has("alice") == 2, "those without a command to leave, and what was parked")
    appends.send(LITERAL[5000:] + b"\r\n")
    is_told(appends, b"a OK APPEND done\r\n")
    old.gate.set()
    fetched = b"* 1 FETCH (BODY[] {%d}\r\n" % len(LITERAL) + LITERAL + b")\r\nf OK FETCH done\r\n"
    is_told(fetches, fetched + b"g OK NOOP done\r\n")
    servers.wait_for(lambda: old.has("alice") == 0, "all to leave the old store")
    assert old.appended == {"alice": [b"a"]}

    late = asks_to_log_in(proxy)
    servers.wait_for(lambda: old.has("bob") == 1, "bob to stay")
    move.end()
    for wire in waits, late:
        assert b"in OK" in wire.read_tagged(b"in")
        assert where(wire) == b"new"
    assert where(other) == b"old"
    assert old.has("alice") == 0
    for wire in wires:
        wire.close()
    ends_say(proxy, "moved", len(wires))


def test_who_finds_no_boundary_is_cut_off(proxy, stores, redis):
    old, _ = stores
    proxy = proxy(end=SHORT)
    appends, fetches = [proxy.logged_in() for _ in range(2)]
    appends.send(b"a APPEND INBOX {10}\r\n")
    assert appends.read_line() == b"+ go\r\n"
    appends.send(b"01234")
    old.gate.clear()
    fetches.send(b"f FETCH 1 BODY[]\r\n")
    half = b"* 1 FETCH (BODY[] {%d}\r\n" % len(LITERAL) + LITERAL[:100]
    assert fetches.read_exactly(len(half)) == half
    Move(redis, "alice", "new", 1).begin()
    asks_to_log_in(proxy)
    is_told(appends)
    assert fetches.read_to_end() == b""  # nothing of ours within a literal
    old.gate.set()
    servers.wait_for(lambda: old.has("alice") == 0, "all to leave the old store")
    assert old.appended == {}


def test_who_waits_too_long_is_refused(proxy, redis):
    proxy = proxy(hold=SHORT)
    Move(redis, "alice", "new", 1).begin()
    wire = asks_to_log_in(proxy)
    assert wire.read_response() == REFUSED
    assert b"x OK" in wire.command(b"NOOP", tag=b"x")


def test_a_move_that_goes_back(proxy, stores, redis):
    old, _ = stores
    proxy = proxy(log="debug")
    Move(redis, "alice", "new", 1).begin()
    wire = asks_to_log_in(proxy)
    servers.wait_for(lambda: is_held(proxy), "the login to be held")
    Move(redis, "alice", "old", 1).end()
    assert b"in OK" in wire.read_tagged(b"in")
    assert where(wire) == b"old"


def test_who_waits_hears_of_the_stop(proxy, redis):
    proxy = proxy(log="debug")
    Move(redis, "alice", "new", 1).begin()
    wire, told = asks_to_log_in(proxy), proxy.logged_in("bob")
    servers.wait_for(lambda: is_held(proxy), "the login to be held")
    proxy.process.send_signal(signal.SIGTERM)
    for client in wire, told:
        assert client.read_to_end() == b"* BYE [UNAVAILABLE] The server is shutting down, please connect again.\r\n"
        client.close()
    assert proxy.process.wait(30) == 0


def appends_until_stopped(proxy, user, stop, sure, unsure, failures):
    """A client that appends on and on, and comes again when it is told to go; it knows what it was told."""
    number = 0
    try:
        while not stop.is_set():
            try:
                wire = proxy.logged_in(user)
                while not stop.is_set():
                    number += 1
                    tag = b"%s-%d" % (user.encode(), number)
                    unsure.add(tag)
                    answer = wire.command(b"APPEND INBOX ", Sync(LITERAL[:100]), tag=tag)
                    assert answer == b"+ go\r\n" + tag + b" OK APPEND done\r\n", answer
                    sure.append(tag)
                    unsure.discard(tag)
            except Closed as end:
                assert end.received in (MOVED, b"+ go\r\n" + MOVED), end.received
            except (BrokenPipeError, ConnectionResetError):
                pass
    except Exception as failure:
        failures.append(failure)


def step(proxy, what, *words):
    return json.loads(done(proxy, "--json", "cutover", what, *words))


def all_have_let_go(proxy, begun):
    """Whether every proxy says so; the move stays alive."""
    return not step(proxy, "look", begun["user"], begun["move"])["missing"]


def test_nothing_is_lost_or_astray(proxy, stores):
    """
    Busy clients of many users at two proxies, moved to and fro by cutovers: each OK is at the store that was theirs at
    that time.
    """
    proxies = [proxy(), proxy(forget=False)]
    stop, failures = threading.Event(), []
    sure, unsure = {user: [] for user in USERS}, {user: set() for user in USERS}
    threads = [threading.Thread(target=appends_until_stopped,
                                args=(proxies[number % 2], user, stop, sure[user], unsure[user], failures))
               for number, user in enumerate(USERS)]
    for thread in threads:
        thread.start()
    here, there = stores
    for number in range(ROUNDS):
        with contextlib.ExitStack() as stack:
            at_rest = [stack.enter_context(each.logged_in(user)) for user in USERS for each in proxies]
            moves = [step(proxies[number % 2], "begin", user, there.name.decode()) for user in USERS]
            waiting = [stack.enter_context(asks_to_log_in(each, user)) for user in USERS for each in proxies]
            for move in moves:
                servers.wait_for(lambda: all_have_let_go(proxies[0], move), "all proxies to have let go")  # noqa: B023
            servers.wait_for(lambda: not any(here.has(user) for user in USERS), "the store to notice")
            counts = {user: len(here.appended.get(user, [])) for user in USERS}
            for wire in at_rest:
                is_told(wire)
            for move in moves:
                step(proxies[number % 2], "commit", move["user"], move["move"])
            for wire in waiting:
                assert b"in OK" in wire.read_tagged(b"in")
                assert where(wire) == there.name
            servers.wait_for(lambda: all(there.has(user) >= 3 for user in USERS), "all to come again")
            assert counts == {user: len(here.appended.get(user, [])) for user in USERS}
        here, there = there, here
    stop.set()
    for thread in threads:
        thread.join(30)
    assert not failures, failures
    for user in USERS:
        kept = [tag for side in stores for tag in side.appended.get(user, [])]
        assert sorted(set(kept) - unsure[user]) == sorted(sure[user]) and len(set(kept)) == len(kept)
        assert len(sure[user]) > ROUNDS
