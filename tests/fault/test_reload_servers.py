"""
Another configuration while directories and Redis are asked: logins that wait go on with what they began with, the next
ones go by what is new, and what is known of routes stays.
"""
import contextlib
import itertools
import re
import signal
import subprocess

import pytest

import servers
from stage import PASSWORD, Proxy, Store, directory_settings, shard
from test_directory_servers import BASE, OK, PEOPLE, REFUSED, UNAVAILABLE, Traffic, log_in
from test_fleet import ANN, BOB, EVE, FAR_MS, SOURCES, USERS, Told, identity, items
from test_admin import ctl
from test_reload import ADMIN, change, named, reloaded

numbers = itertools.count()


@pytest.fixture
def two(folder):
    """Two directories; the second knows one user more."""
    with contextlib.ExitStack() as stack:
        users, name = {user: PASSWORD for user in PEOPLE}, f"reload-slapd-{next(numbers)}"
        yield [stack.enter_context(servers.Slapd(folder / f"{name}-{number}", users={**users, **more}))
               for number, more in ((1, {}), (2, {"new": PASSWORD}))]


@pytest.fixture
def begin(folder, certificate):
    with contextlib.ExitStack() as stack:
        def begin_one(sources, more="", users=USERS, **options):
            stores = [stack.enter_context(Store(named(name))) for name in (b"first", b"second")]
            shards = shard("store", stores[0].port) + shard("red", stores[1].port)
            proxy = Proxy(folder / f"reload-servers-{next(numbers)}", shards=shards, users=users, workers=2, more=more,
                          certificate=certificate, sources=sources, **options)
            stack.callback(proxy.stop)
            return proxy
        yield begin_one


def directory(server, **settings):
    return directory_settings(uri=server.uri, base=BASE, connect_timeout="5s", timeout="5s", **settings)


def serves(proxy, server):
    return servers.connections_to(server.port, proxy.process)


def test_another_directory_while_users_log_in(begin, two):
    proxy = begin(directory(two[0]), ADMIN)
    assert re.match(REFUSED, log_in(proxy, "new"))
    with Traffic(proxy) as traffic:
        for old, new in (two, two[::-1]) * 3:
            assert reloaded(proxy, (old.uri, new.uri))["changed"] == ["ldap uri"]
            assert traffic.wait_for_ok() == []
            servers.wait_for(lambda server=old: not serves(proxy, server), "the old ones to end")
            assert re.match(OK if new is two[1] else REFUSED, log_in(proxy, "new"))


def test_who_waits_for_a_directory_gets_its_answer(begin, two):
    proxy = begin(directory(two[0]), ADMIN)
    assert re.match(OK, log_in(proxy, PEOPLE[0]))
    others = proxy.descriptors() - serves(proxy, two[0])
    two[0].pause()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(proxy.wire()) for _ in range(6)]
        gone = proxy.wire()
        for wire, user in zip([*waiting, gone], PEOPLE):
            wire.send(f"in LOGIN {user} {PASSWORD}\r\n".encode())
        servers.wait_for(lambda: proxy.metrics()['imapmux_sessions{phase="verify"}'] == 7, "all to wait")
        reloaded(proxy, (two[0].uri, two[1].uri))
        assert re.match(OK, log_in(proxy, "new"))
        gone.close()
        reloaded(proxy, (two[1].uri, two[0].uri), ("timeout = \"5s\"", "timeout = \"4s\""))
        reloaded(proxy, (two[0].uri, two[1].uri))
        two[0].resume()
        for wire in waiting:
            assert re.match(OK, wire.read_tagged(b"in"))
    servers.wait_for(lambda: not serves(proxy, two[0]), "the old ones to end")
    servers.wait_for(lambda: proxy.descriptors() - serves(proxy, two[1]) <= others, "nothing to be left")


def hanging_pipe(proxy, name):
    """A file that is not read to its end before something is written, as on a disk that hangs: its path."""
    path = proxy.folder / name
    subprocess.run(["mkfifo", path], check=True)
    return path


def test_authorities_that_hang_keep_nobody_from_the_directory(begin, two):
    """A reload that waits for its file: connections are made meanwhile, by the settings in force."""
    proxy = begin(directory(two[0]), ADMIN)
    pipe = hanging_pipe(proxy, "authorities")
    change(proxy, ('timeout = "5s"\n', 'timeout = "5s"\n start_tls = yes ca_file = "authorities"\n'))
    proxy.process.send_signal(signal.SIGHUP)
    with open(pipe, "w"):  # which waits for who reads it
        assert "under way" in ctl(proxy, "reload").stderr
        assert re.match(OK, log_in(proxy, PEOPLE[0]))
    proxy.wait_for_event("reloaded")


def test_routes_that_hang_keep_no_login_from_its_end(folder, begin):
    """One that began two configurations ago ends while a reload waits for its file of routes."""
    with Told(folder / f"reload-redis-{next(numbers)}") as redis:
        sources = SOURCES.format(redis=redis.address, keep="1h", expiry="10m", route='file = "routes"')
        proxy = begin(re.sub("timeout = (1s|500ms)", "timeout = 20s", sources).replace("{redis}", "{redis, file}"))
        redis.pause()
        with proxy.wire() as waiting:
            waiting.send(f"in LOGIN {ANN} {PASSWORD}\r\n".encode())
            servers.wait_for(lambda: proxy.metrics()['imapmux_sessions{phase="route"}'] == 1, "it to wait for Redis")
            reloaded(proxy, more='login { greeting = "another one." }\n')
            pipe = hanging_pipe(proxy, "slow-routes")
            change(proxy, ('file = "routes"', 'file = "slow-routes"'))
            proxy.process.send_signal(signal.SIGHUP)
            with open(pipe, "w") as routes:
                assert "under way" in ctl(proxy, "reload").stderr
                redis.resume()
                assert re.match(OK, waiting.read_tagged(b"in"))
                assert all(re.match(OK, log_in(proxy, user)) for user in (ANN, BOB))
                routes.write("* store\n")
            servers.wait_for(lambda: len(proxy.events("reloaded")) == 2, "the reload")


def test_routes_are_known_while_redis_is_away(folder, begin):
    with Told(folder / f"reload-redis-{next(numbers)}") as redis:
        redis.route({ANN: "store", BOB: "red"})
        proxy = begin(SOURCES.format(redis=redis.address, keep="1h", expiry="1s", route=""))
        assert all(re.match(OK, log_in(proxy, user)) for user in (ANN, BOB))
        redis.pause()
        assert re.match(OK, log_in(proxy, ANN))
        assert reloaded(proxy, ("keep_while_down = 1h", "keep_while_down = 2h"))["changed"] == ["route keep_while_down"]
        assert b"first" in log_in(proxy, ANN) and b"second" in log_in(proxy, BOB)
        assert re.match(UNAVAILABLE, log_in(proxy, EVE))
        reloaded(proxy, ("shard red", "shard blue"))
        assert b"first" in log_in(proxy, ANN) and re.match(rb"in NO ", log_in(proxy, BOB))
        reloaded(proxy, ("shard blue", "shard red"))
        assert b"second" in log_in(proxy, BOB)
        redis.resume()
        reloaded(proxy, ("shard red", "shard blue"))
        redis.route({EVE: "blue"})
        servers.wait_for(lambda: b"second" in log_in(proxy, EVE), "Redis to be back")
        redis.pause()
        assert b"second" in log_in(proxy, EVE)  # what is new is remembered, too


def test_who_is_held_for_a_move_is_held_on(folder, begin):
    with Told(folder / f"reload-redis-{next(numbers)}") as redis:
        redis.route({user: "store" for user in USERS})
        proxy = begin(SOURCES.format(redis=redis.address, keep="1h", expiry="1s", route="cache_ttl = 1m"))
        with proxy.logged_in(BOB) as other:
            redis.set(ANN, 1, "moving", until=FAR_MS)
            servers.wait_for(lambda: redis.acks(ANN) == {identity(proxy): "1"}, "it to consent")
            with proxy.wire() as held:
                held.send(f"in LOGIN {ANN} {PASSWORD}\r\n".encode())
                servers.wait_for(lambda: [item["phase"] for item in items(proxy, "who", ANN)] == ["held"], "the hold")
                reloaded(proxy, ("cache_ttl = 1m", "cache_ttl = 2m"))
                with proxy.wire() as later:
                    later.send(f"in LOGIN {ANN} {PASSWORD}\r\n".encode())
                    servers.wait_for(lambda: [item["phase"] for item in items(proxy, "who", ANN)] == ["held"] * 2,
                                     "the hold of both")
                    redis.set(ANN, 2, "active", shard="red")
                    assert b"second" in held.read_tagged(b"in") and b"second" in later.read_tagged(b"in")
            assert b"NOOP done" in other.command(b"NOOP")
            redis.set(BOB, 1, "disabled")
            assert b"* BYE" in other.read_to_end()


def test_limits_that_all_proxies_share(folder, begin):
    with Told(folder / f"reload-redis-{next(numbers)}") as redis:
        redis.route({user: "store" for user in USERS})
        both = [begin(SOURCES.format(redis=redis.address, keep="1h", expiry="2s", route=""),
                      "limits { shared = yes per_user = 3 }\n") for _ in range(2)]
        with both[0].logged_in(ANN), both[1].logged_in(ANN):
            for proxy in both:
                reloaded(proxy, ("per_user = 3", "per_user = 2"))
            servers.wait_for(lambda: re.match(UNAVAILABLE.replace(b"UNAVAILABLE", b"LIMIT"), log_in(both[0], ANN)),
                             "the limit to count")
            assert b"LIMIT" in log_in(both[1], ANN)
            reloaded(both[0], ("per_user = 2", "per_user = 4"))
            assert re.match(OK, log_in(both[0], ANN))
