"""
How many sessions a user, an address, and both together may have: at one proxy, and at two that count in one Redis. That
every place comes back, however a session, a proxy or Redis ends; what Redis counts is read from Redis.
"""
import collections
import contextlib
import json
import itertools
import os
import signal
import socket
import ssl
import subprocess

import pytest

import servers
from host import close_with_reset
from imapwire import Closed
from stage import CAPABILITIES, PASSWORD, PATIENCE_SECONDS, Proxy, Store, reset, shard

USERS = [f"user{number:02}" for number in range(40)]
OTHERS = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
WEBMAIL = "127.0.0.66"
TOO_MANY = {
    "user": b"in NO [LIMIT] You have too many mail connections open; please close some, or wait.\r\n",
    "address": b"in NO [LIMIT] Too many mail connections are open from your network address; please close some, or "
               b"wait.\r\n",
    "user_address": b"in NO [LIMIT] You have too many mail connections open from this network address; please close "
                    b"some, or wait.\r\n",
}
LOCAL = "limits {{ {limits} }} session {{ linger_timeout = 10m }}\n"
SHARED = """
limits {{ {limits} shared = yes }} session {{ linger_timeout = 10m }}
redis {{ address = "{redis}" connect_timeout = 1s timeout = 1s retry_max = 200ms node_expiry = {expiry} }}
"""
EXPIRY, NEVER = "2s", "10m"
MANY_LOGINS = int(os.environ.get("IMAPMUX_LIMIT_LOGINS", 600))
GROWTH_BYTES = 1 << 20

numbers = itertools.count()


class Moody:
    """A store that does as it should, or refuses logins while it `refuses`."""

    def __init__(self):
        self.refuses = False

    def __call__(self, peer):
        peer.greet()
        peer.until_login()
        if self.refuses:
            peer.send(b"L NO [UNAVAILABLE] Not today\r\n")
            peer.wait_for_end()
            return
        peer.send(b"L OK [CAPABILITY %s] Logged in\r\n" % CAPABILITIES)
        peer.serve()


class Counting(servers.Redis):
    """Redis, with what it counts."""

    def nodes(self):
        return {key.partition("{")[2].rstrip("}") for key in self.ask("KEYS", "imapmux:node:*")}

    def _sums(self, kind):
        nodes, sums = self.nodes(), collections.Counter()
        for key in self.ask("KEYS", f"imapmux:{kind}:*"):
            for field, count in self.ask("HGETALL", key).items():
                if field.split()[0] in nodes:
                    sums[key.partition("{")[2].rstrip("}")] += int(count)
        return +sums

    def sessions(self):
        """Of each user, at nodes that live."""
        return self._sums("sessions")

    def addresses(self):
        return self._sums("addresses")


@pytest.fixture(scope="module")
def mood():
    return Moody()


@pytest.fixture(scope="module")
def store(mood):
    with Store(mood) as only:
        yield only


@pytest.fixture(scope="module")
def redis(folder):
    with Counting(folder / "limits-redis") as only:
        yield only


@pytest.fixture
def proxies(folder, certificate, store):
    """Starts proxies, that count in `redis` if that is given; each is stopped at the end of the test."""
    with contextlib.ExitStack() as stack:
        def start_one(limits, redis=None, expiry=EXPIRY, is_up=True, **options):
            more = LOCAL.format(limits=limits) if redis is None else \
                SHARED.format(limits=limits, redis=redis.address, expiry=expiry)
            proxy = Proxy(folder / f"limits-{next(numbers)}", shards=shard("store", store.port), users=USERS,
                          certificate=certificate, more=more, workers=2, **options)
            stack.callback(proxy.stop)
            if redis is not None and is_up:
                servers.wait_for(lambda: up(proxy) == 2, "both workers to be known to Redis")
            return proxy
        yield start_one


def up(proxy):
    return proxy.metrics()["imapmux_registry_nodes_total"]


def refusals(proxy):
    metrics = proxy.metrics()
    return {limit: metrics[f'imapmux_limit_refusals_total{{limit="{limit}"}}'] for limit in TOO_MANY}


def answer(proxy, user="user00", source="127.0.0.1", password=PASSWORD):
    with proxy.wire(source=source) as wire:
        return wire.command(f"LOGIN {user} {password}".encode(), tag=b"in")


def is_in(proxy, user="user00", source="127.0.0.1"):
    """Whether it could log in; it does not stay."""
    return answer(proxy, user, source).startswith(b"in OK")


def wait_until_in(proxy, user="user00", source="127.0.0.1"):
    servers.wait_for(lambda: is_in(proxy, user, source), "room for one more")


def at_last(proxy, user="user00", **options):
    """A session, as soon as there is room for it: the ones before may still be on their way out."""
    def log_in():
        wire = proxy.wire(**options)
        if wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in").startswith(b"in OK"):
            return wire
        wire.close()
        return None
    return servers.wait_for(log_in, f"room for one more of {user}")


def exactly(redis, sessions):
    """Waits until Redis counts these, and nobody else."""
    wanted = +collections.Counter(sessions)
    servers.wait_for(lambda: redis.sessions() == wanted, f"counts to be {wanted}", PATIENCE_SECONDS)


# Each limit

def test_who_does_not_log_in(proxies):
    """Those of one address only; whoever logs in, or leaves, makes room; over TLS there is not even a handshake."""
    proxy = proxies("before_login = 3")
    waiting = [proxy.wire(), proxy.wire("starttls"), proxy.wire("tls")]
    with proxy.wire(greeting=False) as late:
        assert late.read_to_end() == b"* BYE [LIMIT] Too many connections from your address are open.\r\n"
    with pytest.raises((ssl.SSLError, OSError)):
        proxy.wire("tls")
    with proxy.wire(source=OTHERS[0]), proxy.wire("tls", source=OTHERS[0]):
        pass
    assert proxy.metrics()['imapmux_limit_refusals_total{limit="before_login"}'] == 2
    assert waiting[0].command(f"LOGIN user00 {PASSWORD}".encode(), tag=b"in").startswith(b"in OK")
    waiting += [proxy.wire()]
    for wire in waiting:
        wire.close()

    def is_greeted():
        with proxy.wire() as wire:
            return wire.greeting.startswith(b"* OK ")
    servers.wait_for(is_greeted, "room for one more")


def test_a_user(proxies):
    proxy = proxies("per_user = 2")
    with proxy.logged_in("user00"), proxy.logged_in("user00", source=OTHERS[0]) as second:
        assert answer(proxy) == answer(proxy, source=OTHERS[1]) == TOO_MANY["user"]
        assert is_in(proxy, "user01")
        assert answer(proxy, password="wrong").startswith(b"in NO [AUTHENTICATIONFAILED]")
        assert refusals(proxy) == {"user": 2, "address": 0, "user_address": 0}
        reasons = [event["reason"] for event in proxy.events("login refused")]
        assert reasons == ["user_limit", "user_limit", "credentials"]
        second.command(b"LOGOUT")
        wait_until_in(proxy)


def test_an_address(proxies):
    proxy = proxies("per_address = 2")
    with proxy.logged_in("user00"), proxy.logged_in("user01"):
        assert answer(proxy, "user02") == TOO_MANY["address"]
        assert is_in(proxy, "user02", OTHERS[0])
        assert refusals(proxy) == {"user": 0, "address": 1, "user_address": 0}
    wait_until_in(proxy, "user02")


def test_a_user_from_an_address(proxies):
    proxy = proxies("per_user = 3 per_user_address = 2")
    with proxy.logged_in(USERS[0]), proxy.logged_in(USERS[0]), proxy.logged_in(USERS[1]):
        assert answer(proxy) == TOO_MANY["user_address"]
        with proxy.logged_in(USERS[0], source=OTHERS[0]):
            assert answer(proxy, source=OTHERS[1]) == TOO_MANY["user"]
        assert refusals(proxy) == {"user": 1, "address": 0, "user_address": 1}
    wait_until_in(proxy)


def test_webmail_comes_from_one_address(proxies):
    proxy = proxies(f'per_user = 2 per_address = 1 per_user_address = 1 trusted = {{"{WEBMAIL}"}}')
    with contextlib.ExitStack() as stack:
        for user in USERS[:10]:
            stack.enter_context(proxy.logged_in(user, source=WEBMAIL))
        stack.enter_context(proxy.logged_in(USERS[0], source=WEBMAIL))
        assert answer(proxy, USERS[0], WEBMAIL) == TOO_MANY["user"]
        stack.enter_context(proxy.logged_in(USERS[1]))
        assert answer(proxy, USERS[2]) == TOO_MANY["address"]


def test_the_next_try_on_the_same_connection(proxies):
    proxy = proxies("per_user = 1")
    with proxy.logged_in("user00") as first, proxy.wire() as second:
        login = f"LOGIN user00 {PASSWORD}".encode()
        assert second.command(login, tag=b"in") == TOO_MANY["user"]
        first.close()
        servers.wait_for(lambda: second.command(login, tag=b"in").startswith(b"in OK"), "room for one more")
        assert b"OK NOOP" in second.command(b"NOOP")


# Every place comes back

def by_logout(wire, store):
    assert b"* BYE" in wire.command(b"LOGOUT")  # and stays connected


def by_close(wire, store):
    wire.close()


def by_reset(wire, store):
    reset(wire.socket)


def by_the_store(wire, store):
    for peer in store.peers:
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_RDWR)
    assert wire.read_to_end().startswith(b"* BYE")  # and stays connected


def by_the_death_of_the_store(wire, store):
    for peer in store.peers:
        with contextlib.suppress(OSError):
            close_with_reset(peer)
            peer.socket.shutdown(socket.SHUT_RD)  # its script ends
    assert wire.read_to_end().startswith(b"* BYE")


ENDS = [by_logout, by_close, by_reset, by_the_store, by_the_death_of_the_store]


@pytest.mark.parametrize("shared", [False, True], ids=["local", "shared"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_place_comes_back(proxies, store, redis, end, shared):
    proxy = proxies("per_user = 1 per_address = 1 per_user_address = 1", redis if shared else None)
    for _ in range(3):
        with at_last(proxy) as wire:
            assert answer(proxy) == TOO_MANY["user"]
            end(wire, store)
            wait_until_in(proxy)
    if shared:
        exactly(redis, {})
        servers.wait_for(lambda: not redis.addresses(), "addresses to be empty")


@pytest.mark.parametrize("shared", [False, True], ids=["local", "shared"])
def test_a_place_comes_back_when_the_store_refuses(proxies, mood, redis, shared):
    proxy = proxies("per_user = 1 per_address = 1", redis if shared else None)
    mood.refuses = True
    try:
        with proxy.wire() as wire:
            for _ in range(3):
                assert wire.command(f"LOGIN user00 {PASSWORD}".encode(), tag=b"in").startswith(b"in NO [UNAVAILABLE]")
            mood.refuses = False
            with at_last(proxy):
                assert answer(proxy) == TOO_MANY["user"]
            servers.wait_for(lambda: wire.command(f"LOGIN user00 {PASSWORD}".encode(), tag=b"in").startswith(b"in OK"),
                             "room on the same connection")
            assert answer(proxy) == TOO_MANY["user"]
    finally:
        mood.refuses = False
    wait_until_in(proxy)


# Two proxies

def test_two_proxies_are_one(proxies, redis):
    proxy, other = (proxies("per_user = 3 per_address = 8 per_user_address = 2", redis) for _ in range(2))
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(proxy.logged_in(USERS[0]))
        last = enter(other.logged_in(USERS[0]))
        assert answer(proxy) == answer(other) == TOO_MANY["user_address"]
        enter(other.logged_in(USERS[0], source=OTHERS[0]))
        assert answer(proxy, source=OTHERS[1]) == answer(other, source=OTHERS[1]) == TOO_MANY["user"]
        assert redis.sessions() == {USERS[0]: 3}
        assert redis.addresses() == {"127.0.0.1": 2, OTHERS[0]: 1}
        last.command(b"LOGOUT")
        exactly(redis, {USERS[0]: 2})
        enter(at_last(proxy, USERS[0]))
        for number, at in enumerate([proxy, other] * 3):
            enter(at.logged_in(USERS[number + 1]))
        assert answer(proxy, USERS[9]) == answer(other, USERS[9]) == TOO_MANY["address"]
        exactly(redis, {USERS[0]: 3, **{user: 1 for user in USERS[1:7]}})
    exactly(redis, {})
    assert proxy.metrics()["imapmux_registry_unknown_total"] == 0


def test_a_killed_proxy_s_sessions_do_not_count(proxies, redis):
    proxy, other = (proxies("per_user = 2 per_address = 4", redis) for _ in range(2))
    with contextlib.ExitStack() as stack:
        for user in USERS[:2]:
            stack.enter_context(proxy.logged_in(user))
            stack.enter_context(other.logged_in(user))
        assert answer(proxy, USERS[0]) == TOO_MANY["user"]
        assert answer(proxy, USERS[2]) == TOO_MANY["address"]
        nodes = redis.nodes()
        os.kill(other.process.pid, signal.SIGKILL)
        other.process.wait()
        assert redis.nodes() == nodes  # nobody has told it
        wait_until_in(proxy, USERS[0])
        wait_until_in(proxy, USERS[2])
        assert redis.nodes() < nodes and len(redis.nodes()) == 2
        exactly(redis, {USERS[0]: 1, USERS[1]: 1})
        fields = redis.ask("HGETALL", f"imapmux:sessions:{{{USERS[0]}}}")
        assert len(fields) == 1  # what the dead one had left was taken away
    other.process = None


def test_a_proxy_that_stops_takes_its_sessions_along(proxies, redis):
    proxy, other = (proxies("per_user = 1", redis, expiry=NEVER, stop_timeout="100ms") for _ in range(2))
    with other.logged_in("user00") as wire:
        wire.send(b"x APPEND inbox {10}\r\n")  # in the middle of a command: it is cut off when the time is up
        assert answer(proxy) == TOO_MANY["user"]
        other.stop()
        assert len(redis.nodes()) == 2
        assert is_in(proxy)


# Redis goes and comes

def login_all(proxy, users, stack):
    return {user: stack.enter_context(proxy.logged_in(user)) for user in users}


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_redis_goes_and_comes_back(proxies, redis, how):
    """Logins go on by the counts of each proxy; afterwards all are told, with what has changed meanwhile."""
    proxy, other = (proxies("per_user = 3 per_address = 200", redis, expiry="3s") for _ in range(2))
    with contextlib.ExitStack() as stack:
        here, there = login_all(proxy, USERS, stack), login_all(other, USERS, stack)
        exactly(redis, {user: 2 for user in USERS})
        before = up(proxy), up(other)
        redis.kill() if how == "killed" else redis.pause()
        for user in USERS[:5]:
            here.pop(user).command(b"LOGOUT")
            there.pop(user).command(b"LOGOUT")
        for user in USERS[5:10]:  # nobody is refused because of Redis, but each proxy still counts its own
            for _ in range(2):
                stack.enter_context(proxy.logged_in(user))
            assert answer(proxy, user) == TOO_MANY["user"]
            assert is_in(other, user)
        assert up(proxy) == before[0]
        redis.start() if how == "killed" else redis.resume()
        servers.wait_for(lambda: up(proxy) >= before[0] + 2 and up(other) >= before[1] + 2, "new nodes")
        exactly(redis, {**{user: 4 for user in USERS[5:10]}, **{user: 2 for user in USERS[10:]}})
        servers.wait_for(lambda: redis.addresses() == {"127.0.0.1": 80}, "the count of the address")
        assert answer(proxy, USERS[6]) == answer(other, USERS[6]) == TOO_MANY["user"]
        assert is_in(other, USERS[0])
        assert len(redis.nodes()) == 4
    exactly(redis, {})


def test_redis_that_forgets_is_told_again(proxies, redis):
    proxy = proxies("per_user = 3", redis, expiry="3s")
    with contextlib.ExitStack() as stack:
        login_all(proxy, USERS, stack)
        redis.call("FLUSHALL")
        exactly(redis, {user: 1 for user in USERS})


def test_redis_comes_later(proxies, folder):
    with Counting(folder / "limits-late-redis") as redis:
        redis.kill()
        proxy = proxies("per_user = 1", redis, is_up=False)
        with proxy.logged_in("user00"):
            assert answer(proxy) == TOO_MANY["user"]
            redis.start()
            exactly(redis, {"user00": 1})


def test_clients_do_not_wait_for_redis(proxies, redis):
    """They reset while it is asked, and it answers late, or never."""
    proxy = proxies("per_user = 1 per_address = 20", redis)
    for _ in range(3):
        before = up(proxy)
        redis.pause()
        for user in USERS[:10]:
            wire = proxy.wire()
            wire.send(f"in LOGIN {user} {PASSWORD}\r\n".encode())
            reset(wire.socket)
        with contextlib.ExitStack() as stack:
            for user in USERS[:10]:
                stack.enter_context(at_last(proxy, user))
            redis.resume()
            servers.wait_for(lambda: up(proxy) > before, "a new node")
            exactly(redis, {user: 1 for user in USERS[:10]})
    exactly(redis, {})


# Nothing is left behind

def churn(proxy, redis, count):
    for number in range(count):
        user, source = USERS[number % len(USERS)], f"127.0.{number % 7}.{1 + number % 250}"
        with contextlib.suppress(Closed, AssertionError):
            with proxy.wire(source=source) as wire:
                wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")
                if number % 3 == 0:
                    wire.command(b"LOGOUT")
                elif number % 3 == 1:
                    reset(wire.socket)
    if redis is not None:
        exactly(redis, {})


@pytest.mark.parametrize("shared", [False, True], ids=["local", "shared"])
def test_memory_and_descriptors_are_flat(proxies, redis, shared):
    redis.call("FLUSHALL")
    proxy = proxies("per_user = 2 per_address = 3 per_user_address = 2", redis if shared else None)
    churn(proxy, redis if shared else None, MANY_LOGINS)
    metrics = proxy.metrics()
    servers.wait_for(lambda: proxy.metrics()["imapmux_backends_open"] == 0, "all sessions to end")
    memory, descriptors = proxy.resident_bytes(), proxy.descriptors()
    churn(proxy, redis if shared else None, MANY_LOGINS)
    servers.wait_for(lambda: proxy.metrics()["imapmux_backends_open"] == 0, "all sessions to end")
    if not proxy.sanitized:
        assert proxy.resident_bytes() - memory < GROWTH_BYTES
    servers.wait_for(lambda: proxy.descriptors() == descriptors, "descriptors to be as many as before")
    if shared:
        keys = sorted(key.partition("{")[0] for key in redis.ask("KEYS", "*"))
        assert keys == ["imapmux:beats", "imapmux:node:", "imapmux:node:", "imapmux:proxies"]
        commands = proxy.metrics()["imapmux_redis_commands_total"] - metrics["imapmux_redis_commands_total"]
        assert commands <= 2 * MANY_LOGINS + 60  # a login and a logout, and the nodes' own
