"""
Two imapmux that share one Redis: who, kick and proxies ask both; what is published makes them act, what was missed is
read again; and how long they serve while Redis is away.
"""
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess

import pytest

import servers
from stage import PASSWORD, Proxy, Store, shard
from test_admin import FAILED, ctl, done
from test_storm import of_worker

USERS = [*of_worker(0)[:2], *of_worker(1)[:2]]
ANN, BOB, EVE, KIM = USERS
SOURCES = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{redis}} keep_while_down = {keep} timeout = 1s {route} }}
redis {{ address = "{redis}" connect_timeout = 500ms timeout = 500ms retry_max = 200ms node_expiry = {expiry} }}
admin {{ socket = "admin.sock" }}
"""
BYE_KICKED = b"* BYE Your session has been ended by an administrator.\r\n"
BYE_MOVED = b"* BYE [UNAVAILABLE] Your mailbox is being moved, please connect again.\r\n"
BYE_STRAY = b"* BYE [UNAVAILABLE] Your mailbox has been moved, please connect again.\r\n"
FAR_MS = 99999999999999

numbers = itertools.count()


class Told(servers.Redis):
    """Redis, and what is done to routes there."""

    def ask(self, *words):
        said = subprocess.run(["redis-cli", "-p", str(self.port), "--json", *map(str, words)], capture_output=True,
                              check=True, timeout=20)
        return json.loads(said.stdout)

    def set(self, user, epoch, state, publish=True, **fields):
        pairs = itertools.chain.from_iterable({"state": state, "epoch": epoch, **fields}.items())
        self.ask("HSET", f"imapmux:user:{{{user}}}", *pairs)
        if state in ("moving", "committed"):
            self.ask("HSET", "imapmux:moving", user, epoch)
        else:
            self.ask("HDEL", "imapmux:moving", user)
        if publish:
            event = {"event": "route", "user": user, "epoch": epoch, "state": state}
            self.ask("PUBLISH", "imapmux:events", json.dumps(event))

    def acks(self, user):
        return self.ask("HGETALL", f"imapmux:acks:{{{user}}}")

    def proxies(self):
        return self.ask("HGETALL", "imapmux:proxies")


@pytest.fixture(scope="module")
def store():
    with Store() as only:
        yield only


@pytest.fixture
def redis(folder):
    with Told(folder / f"fleet-redis-{next(numbers)}") as only:
        only.route({user: "store" for user in USERS})
        yield only


@pytest.fixture
def proxies(folder, certificate, store, redis):
    """Starts proxies; each is stopped, in order, at the end of the test."""
    with contextlib.ExitStack() as stack:
        def start_one(keep="1h", expiry="10s", route="", **options):
            sources = SOURCES.format(redis=redis.address, keep=keep, expiry=expiry, route=route)
            proxy = Proxy(folder / f"fleet-{next(numbers)}", shards=shard("store", store.port), users=USERS, workers=2,
                          certificate=certificate, **{"sources": sources, **options})
            stack.callback(proxy.stop)
            return proxy
        yield start_one


@pytest.fixture
def two(proxies):
    pair = [proxies(expiry="1s"), proxies(expiry="1s")]
    for proxy in pair:
        servers.wait_for(lambda: metric(proxy, "reads_total"), "the moves to be read")
    return pair


def metric(proxy, name):
    return proxy.metrics().get(f"imapmux_fleet_{name}", 0)


def identity(proxy):
    return re.search(r'event="proxy known" detail="id=([0-9a-f]{16})"', proxy.output()).group(1)


def items(proxy, *words):
    """What a command says piece by piece, when all is well."""
    lines = [json.loads(line) for line in done(proxy, "--json", *words).splitlines()]
    return [item for item in lines if item is not None]


def is_served(wire):
    return wire.command(b"NOOP", tag=b"n").endswith(b"n OK NOOP done\r\n")


def login(proxy, user=ANN):
    with proxy.wire() as wire:
        return wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")


# All are asked

def test_who(two):
    sessions = [(proxy, user, proxy.logged_in(user)) for proxy in two for user in (ANN, ANN, BOB, KIM)]
    for asked in two:
        everybody = items(asked, "who")
        assert sorted((item["proxy"], item["user"]) for item in everybody) == \
            sorted((identity(proxy), user) for proxy, user, _ in sessions)
        assert len({item["session"] for item in everybody}) == len(sessions)
        for item in everybody:
            assert list(item) == ["user", "address", "shard", "proxy", "session", "since_seconds", "tls", "phase"]
            assert (item["address"], item["shard"], item["tls"]) == ("127.0.0.1", "store", "none")
            assert item["phase"] == "relay"
        assert [item["user"] for item in items(asked, "who", ANN.upper())] == [ANN] * 4
        assert items(asked, "who", EVE) == []
        for of_all in (["127.0.0.1"], ["127.0.0.0/8"], ["store"], ["store", "--by", "shard"]):
            assert {item["session"] for item in items(asked, "who", *of_all)} == {item["session"] for item in everybody}
        assert items(asked, "who", "192.0.2.1") == items(asked, "who", "--by", "user", "store") == []
    table = done(two[0], "who", BOB)
    assert table.count(BOB) == 2 and all(identity(proxy) in table for proxy in two)
    for _, _, wire in sessions:
        wire.close()


@pytest.mark.parametrize("words,reason", [
    (["who", "--by", "shard", "elsewhere"], 'there is no shard "elsewhere"'),
    (["who", "--by", "address", "ann"], '"ann" is no address'),
    (["who", "not a user"], "this cannot be the name of a user"), (["who", "--by", "user"], "which user?"),
    (["kick"], "either a user or a session is needed"), (["kick", ANN, "--session", "1"], "either a user or a session"),
    (["kick", "not a user"], "this cannot be the name of a user"), (["kick", EVE], "there is no such session"),
    (["kick", "--session", "none"], "there is no such session"),
    (["proxies", "forget", "none"], "there is no proxy none"),
])
def test_what_is_wrong_is_said(lone, words, reason):
    result = ctl(lone, *words)
    assert (result.returncode, result.stdout) == (FAILED, "") and reason in result.stderr, result


@pytest.fixture(scope="module")
def lone(folder, certificate, store):
    with Told(folder / "fleet-redis-lone") as redis:
        sources = SOURCES.format(redis=redis.address, keep="1h", expiry="10s", route="")
        proxy = Proxy(folder / "fleet-lone", shards=shard("store", store.port), users=USERS, certificate=certificate,
                      sources=sources)
        yield proxy
        proxy.stop()


def test_kick(two):
    kicked = [proxy.logged_in(user) for proxy in two for user in (ANN, ANN)]
    kept = [proxy.logged_in(BOB) for proxy in two]
    assert json.loads(done(two[0], "--json", "kick", ANN)) == {"sessions": 4, "proxies": 2}
    assert [wire.read_to_end() for wire in kicked] == [BYE_KICKED] * 4
    assert all(is_served(wire) for wire in kept)
    session = next(item["session"] for item in items(two[0], "who", BOB) if item["proxy"] == identity(two[1]))
    assert re.fullmatch(r"sessions +1\nproxies +1\n", done(two[0], "kick", "--session", session))
    assert kept[1].read_to_end() == BYE_KICKED and is_served(kept[0])
    kept[0].close()


def test_a_silent_proxy_is_named(two):
    with two[0].logged_in(ANN), two[1].logged_in(ANN) as kicked:
        two[0].pause()
        name = re.escape(f"({identity(two[0])})")
        whom = rf"imapmuxctl: 1 of the proxies did not answer: .* {name}\n"
        result = ctl(two[1], "--json", "who", ANN)
        assert result.returncode == FAILED and re.fullmatch(whom, result.stderr), result
        assert [json.loads(line)["proxy"] for line in result.stdout.splitlines()] == [identity(two[1])]
        result = ctl(two[1], "--json", "kick", ANN)
        assert result.returncode == FAILED and re.fullmatch(whom, result.stderr), result
        assert json.loads(result.stdout) == {"sessions": 1, "proxies": 1}
        assert kicked.read_to_end() == BYE_KICKED
        two[0].resume()


def test_many_sessions_are_told_of_in_pieces(proxies):
    pair = [proxies(expiry="1s"), proxies(expiry="1s")]
    wires = [pair[1].wire() for _ in range(600)]
    for wire in wires:
        wire.send(f"in LOGIN {ANN} {PASSWORD}\r\n".encode())
    for wire in wires:
        assert wire.read_tagged(b"in").endswith(b"Logged in\r\n")
    assert len({item["session"] for item in items(pair[0], "who")}) == 600
    assert done(pair[1], "who").count(ANN) == 600
    assert json.loads(done(pair[0], "--json", "kick", ANN)) == {"sessions": 600, "proxies": 1}
    for wire in wires:
        wire.close()


def test_proxies(two, redis):
    with two[1].logged_in(ANN):
        servers.wait_for(lambda: metric(two[0], "proxies") == 2, "both to be known")
        listed = json.loads(done(two[0], "--json", "proxies"))
        assert {row["id"]: (row["pid"], row["state"]) for row in listed} == {
            identity(two[0]): (two[0].process.pid, "self"), identity(two[1]): (two[1].process.pid, "live")}
        assert all(list(row) == ["id", "host", "pid", "seen_seconds", "sessions", "state"] and row["seen_seconds"] < 60
                   for row in listed)
    assert done(two[1], "proxies").count("\n") == 3
    alive = ctl(two[0], "proxies", "forget", identity(two[1]))
    assert alive.returncode == FAILED and "lives" in alive.stderr
    assert two[1].stop() == 0
    assert list(redis.proxies()) == [identity(two[0])]  # it has said so itself
    dead = {"host": "mx", "pid": 1, "seen_ms": FAR_MS - 10**9, "fence_ms": 10**9, "sessions": 0}
    dead["seen_ms"] = int(redis.ask("TIME")[0]) * 1000 - 60000
    redis.ask("HSET", "imapmux:proxies", "0" * 16, json.dumps(dead))
    assert "silent" in done(two[0], "proxies")
    assert done(two[0], "proxies", "forget", "0" * 16) == ""
    assert list(redis.proxies()) == [identity(two[0])]


def test_without_redis_a_process_is_alone(proxies):
    proxy = proxies(sources="""
        auth { sources = {passwd} } passwd { file = "passwd" } route { sources = {file} file = "routes" }
        admin { socket = "admin.sock" }""")
    with proxy.logged_in(ANN) as wire:
        assert [item["user"] for item in items(proxy, "who")] == [ANN]
        rows = json.loads(done(proxy, "--json", "proxies"))
        assert [(row["pid"], row["sessions"], row["state"]) for row in rows] == [(proxy.process.pid, 1, "self")]
        assert json.loads(done(proxy, "--json", "kick", ANN)) == {"sessions": 1, "proxies": 1}
        assert wire.read_to_end() == BYE_KICKED
    assert "there is no Redis" in ctl(proxy, "proxies", "forget", "0").stderr


# Events

def test_events_end_sessions_and_hold_logins(two, redis):
    with two[0].logged_in(ANN) as here, two[1].logged_in(ANN) as there, two[1].logged_in(BOB) as other:
        redis.set(ANN, 1, "moving", until=FAR_MS)
        assert here.read_to_end() == there.read_to_end() == BYE_MOVED
        assert is_served(other)
    both = {identity(proxy): "1" for proxy in two}
    servers.wait_for(lambda: redis.acks(ANN) == both, "both to consent")
    with two[0].wire() as held:
        held.send(f"in LOGIN {ANN} {PASSWORD}\r\n".encode())
        servers.wait_for(lambda: [item["phase"] for item in items(two[1], "who", ANN)] == ["held"], "her to be held")
        redis.set(ANN, 2, "active", shard="store")
        assert held.read_tagged(b"in").endswith(b"Logged in\r\n")
        redis.set(ANN, 3, "disabled")
        assert held.read_to_end() == BYE_KICKED
    assert login(two[1]).startswith(b"in NO [CONTACTADMIN]")


def test_what_was_missed_is_read_again(two, redis):
    with two[0].logged_in(ANN) as here, two[1].logged_in(ANN) as there:
        redis.set(ANN, 1, "moving", until=FAR_MS, publish=False)
        assert is_served(here) and is_served(there)
        redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
        assert here.read_to_end() == there.read_to_end() == BYE_MOVED
    servers.wait_for(lambda: len(redis.acks(ANN)) == 2, "both to consent")
    with two[0].wire() as held:
        held.send(f"in LOGIN {ANN} {PASSWORD}\r\n".encode())
        servers.wait_for(lambda: [item["phase"] for item in items(two[1], "who", ANN)] == ["held"], "her to be held")
        redis.set(ANN, 2, "active", publish=False)
        redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
        assert held.read_tagged(b"in").endswith(b"Logged in\r\n")


def test_a_move_that_nobody_looks_after_is_over(proxies, redis):
    proxy = proxies(expiry="1s")
    with proxy.logged_in(ANN) as wire:
        redis.set(ANN, 1, "moving", until=int(redis.ask("TIME")[0]) * 1000)
        assert wire.read_to_end() == BYE_MOVED
    assert login(proxy).endswith(b"Logged in\r\n")
    assert redis.ask("HMGET", f"imapmux:user:{{{ANN}}}", "state", "epoch", "until") == ["active", "2", None]


def test_consents_are_repeated_to_a_redis_that_has_lost_them(two, redis):
    redis.set(ANN, 1, "moving", until=FAR_MS)
    servers.wait_for(lambda: len(redis.acks(ANN)) == 2, "both to consent")
    redis.ask("DEL", f"imapmux:acks:{{{ANN}}}")
    redis.ask("CLIENT", "KILL", "TYPE", "pubsub")
    servers.wait_for(lambda: len(redis.acks(ANN)) == 2, "both to consent again")


# Redis is away

def test_a_frozen_redis(two, redis):
    with two[0].logged_in(ANN) as wire:
        redis.pause()
        servers.wait_for(lambda: proxy_is_cut_off(two[0]), "it to notice")
        assert is_served(wire)
        assert login(two[0]).endswith(b"Logged in\r\n")  # by her last known route
        assert login(two[0], BOB).startswith(b"in NO [UNAVAILABLE]")
        result = ctl(two[0], "--json", "who", ANN)
        assert result.returncode == FAILED and "Redis does not answer" in result.stderr
        assert json.loads(result.stdout.splitlines()[0])["user"] == ANN
        result = ctl(two[0], "--json", "proxies")
        assert result.returncode == FAILED and json.loads(result.stdout)["state"] == "self"
        redis.resume()
        servers.wait_for(lambda: login(two[0], BOB).endswith(b"Logged in\r\n"), "Redis to answer")
        redis.set(ANN, 1, "moving", until=FAR_MS)
        assert wire.read_to_end() == BYE_MOVED


def proxy_is_cut_off(proxy):
    return metric(proxy, 'beats_total{result="failed"}') > 0


def test_the_fence(proxies, redis):
    proxy = proxies(keep="5s", expiry="1s")
    with proxy.logged_in(ANN) as wire, proxy.logged_in(BOB) as other:
        redis.pause()
        servers.wait_for(lambda: proxy_is_cut_off(proxy), "it to notice")
        assert is_served(wire)
        assert login(proxy).endswith(b"Logged in\r\n")
        wire.read_to_end()
        other.read_to_end()
    servers.wait_for(lambda: metric(proxy, "fences_total") == 1, "the fence to pass")
    assert proxy.events("fence near") and proxy.events("fence passed")
    assert login(proxy).startswith(b"in NO [UNAVAILABLE]")
    redis.resume()
    servers.wait_for(lambda: login(proxy).endswith(b"Logged in\r\n"), "Redis to answer")
    with proxy.logged_in(ANN) as wire:
        assert is_served(wire)
    assert metric(proxy, "fences_total") == 1


def test_others_go_on_without_one_that_is_beyond_its_fence(proxies, redis):
    lost, other = proxies(keep="1s", expiry="1s"), proxies(expiry="1s")
    with lost.logged_in(ANN) as wire:
        os.kill(lost.process.pid, signal.SIGSTOP)
        name = identity(lost)
        servers.wait_for(lambda: name not in redis.proxies(), "its record to lapse")
        redis.set(ANN, 1, "moving", until=FAR_MS)
        servers.wait_for(lambda: list(redis.acks(ANN)) == [identity(other)], "the other to consent")
        os.kill(lost.process.pid, signal.SIGCONT)
        wire.read_to_end()
    servers.wait_for(lambda: metric(lost, "fences_total") == 1, "the fence to pass")
    servers.wait_for(lambda: name in redis.acks(ANN), "it to be back")


def test_one_that_was_forgotten_looks_where_its_users_are(two, redis):
    forgotten = two[0]
    with forgotten.logged_in(ANN) as moved, forgotten.logged_in(BOB) as other:
        redis.set(ANN, 2, "active", publish=False, shard="elsewhere")
        redis.ask("HDEL", "imapmux:proxies", identity(forgotten))
        assert moved.read_to_end() == BYE_STRAY
        assert is_served(other)
    assert forgotten.events("proxy forgotten") and not two[1].events("proxy forgotten")


def test_a_start_without_redis(proxies, redis):
    redis.pause()
    proxy = proxies()
    assert login(proxy).startswith(b"in NO [UNAVAILABLE]")
    redis.resume()
    servers.wait_for(lambda: login(proxy).endswith(b"Logged in\r\n"), "Redis to answer")


# A start in the place of another process

@pytest.fixture
def kept(proxies):
    """A proxy with a snapshot, which knows ann and bob."""
    proxy = proxies(expiry="1s", route='snapshot = "routes.kept"')
    for user in (ANN, BOB):
        assert login(proxy, user).endswith(b"Logged in\r\n")
    return proxy


def kill(proxy):
    proxy.process.kill()
    proxy.process.wait()
    proxy.process.stderr.close()


def start_again(proxy):
    proxy.lines.clear()
    proxy.start()


def written(proxy, *users):
    path = proxy.folder / "routes.kept"
    servers.wait_for(lambda: path.exists() and all(f"{user}\t" in path.read_text() for user in users), "the snapshot")


def test_known_users_are_served_after_a_start_without_redis(kept, redis):
    written(kept, ANN, BOB)
    dead = identity(kept)
    kill(kept)
    redis.pause()
    start_again(kept)
    assert login(kept).endswith(b"Logged in\r\n")
    assert login(kept, EVE).startswith(b"in NO [UNAVAILABLE]")
    redis.resume()
    kept.wait_for_event("proxy known")
    servers.wait_for(lambda: list(redis.proxies()) == [identity(kept)], "the dead one to be forgotten")
    assert identity(kept) != dead and not kept.events("proxy forgotten")
    servers.wait_for(lambda: login(kept, EVE).endswith(b"Logged in\r\n"), "Redis to answer")


def test_who_has_been_moved_is_not_served_from_the_snapshot(kept, redis):
    written(kept, ANN, BOB)
    redis.set(ANN, 1, "moving", until=FAR_MS)
    servers.wait_for(lambda: redis.acks(ANN), "the consent")
    kill(kept)
    redis.pause()
    start_again(kept)
    assert login(kept).startswith(b"in NO [UNAVAILABLE]")
    assert login(kept, BOB).endswith(b"Logged in\r\n")


def test_a_snapshot_is_void_once_redis_has_forgotten_the_process(kept, redis):
    written(kept, ANN, BOB)
    dead = identity(kept)
    kill(kept)
    redis.ask("HDEL", "imapmux:proxies", dead)
    redis.pause()
    start_again(kept)
    with kept.logged_in(ANN) as wire:  # as far as it knows
        redis.resume()
        kept.wait_for_event("proxy forgotten")
        assert is_served(wire)  # she had not been moved


def test_an_orderly_end_leaves_nothing_to_be_served_from(kept, redis):
    written(kept, ANN, BOB)
    kept.stop()
    assert redis.proxies() == {}
    redis.pause()
    start_again(kept)
    assert login(kept).startswith(b"in NO [UNAVAILABLE]")


def test_an_orderly_end_without_redis_keeps_what_is_known(kept, redis):
    written(kept, ANN, BOB)
    redis.pause()
    servers.wait_for(lambda: proxy_is_cut_off(kept), "it to notice")
    kept.stop()
    start_again(kept)
    assert login(kept).endswith(b"Logged in\r\n")


def test_a_snapshot_that_another_process_uses(kept, proxies):
    other = proxies(route=f'snapshot = "{kept.folder / "routes.kept"}"')
    assert other.events("snapshot not kept") and not kept.events("snapshot not kept")
    assert login(other).endswith(b"Logged in\r\n")
