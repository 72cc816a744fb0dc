"""
Who is here: sessions, users and the pool, as administration tells of them; with many sessions that come and go meanwhile,
and clients of administration that do not take what they asked for.
"""
import contextlib
import json
import socket
import threading

import pytest

import servers
from host import Host
from stage import Store, shard
from test_admin import ctl, done, path_of
from test_storm import of_worker

COUNT = 2000
REQUESTS = [b'{"command":"sessions"}\n', b'{"command":"sessions","arguments":{"sort":"age"}}\n', b'{"command":"users"}\n',
            b'{"command":"pool"}\n']
USERS = [of_worker(0)[0], of_worker(1)[0], of_worker(0)[1]]


@pytest.fixture(scope="module")
def begin(start):
    with Store(Host()) as store:
        yield lambda **options: start(shard("store", store.port), **{
            "workers": 2, "users": USERS, "pool": "warm = 1 park_time = 1m", "more": 'admin { socket = "admin.sock" }', **options})


@pytest.fixture(scope="module")
def proxy(begin):
    return begin()


def rows(proxy, *words):
    """Items come one in a line, other lists in one."""
    parsed = [json.loads(line) for line in done(proxy, "--json", *words).splitlines()]
    return parsed[0] if parsed and isinstance(parsed[0], list) else parsed


def silent_clients(proxy, count):
    return [socket.create_connection((proxy.host, proxy.port["plain"])) for _ in range(count)]


def all_gone(proxy):
    servers.wait_for(lambda: json.loads(done(proxy, "--json", "status"))["sessions"] == 0, "the last session to end")


@contextlib.contextmanager
def stage_of_three(proxy):
    """Two sessions of one user, one of another by TLS, and a client that has not said anything."""
    with contextlib.ExitStack() as stack:
        for user, listener in ((USERS[0], "plain"), (USERS[0], "plain"), (USERS[1], "tls")):
            stack.enter_context(proxy.logged_in(user, listener))
        stack.enter_context(proxy.wire())
        yield
    all_gone(proxy)


def test_sessions_in_all_phases(proxy):
    with stage_of_three(proxy):
        every = rows(proxy, "sessions")
        assert sorted((row["user"] or "", row["phase"], row["listener"], row["shard"]) for row in every) == sorted(
            [(USERS[0], "relay", "plain", "store")] * 2 + [(USERS[1], "relay", "imaps", "store"), ("", "command", "plain", None)])
        assert len({row["session"] for row in every}) == 4
        relayed = [row for row in every if row["phase"] == "relay"]
        assert all(row["store"] and row["lease"] in ("new", "warm") and row["idle_seconds"] is not None for row in relayed)
        assert {row["tls"].startswith("TLSv1.") for row in every if row["listener"] == "imaps"} == {True}
        assert rows(proxy, "sessions", "--phase", "command")[0]["lease"] is None


def test_titles_that_are_no_utf8(begin, certificate):
    """Nor are they when they are cut in the middle of a character."""
    ports = {"latin": servers.free_port(), "long": servers.free_port()}
    more = "".join(f'listener "{title}" {{ address = "{servers.HOST}:{ports[name]}" tls = none }}\n'
                   for name, title in (("latin", "B\\xfcro"), ("long", "ü" * 40)))
    proxy = begin(ports=ports, more='admin { socket = "admin.sock" }\n' + more +
                  f'certificate "B\\xfcro" {{ chain = "{certificate[0]}" key = "{certificate[1]}" }}\n')
    clients = [socket.create_connection((proxy.host, port)) for port in ports.values()]
    servers.wait_for(lambda: len(rows(proxy, "sessions")) == 2, "both to be here")
    assert {row["listener"] for row in rows(proxy, "sessions")} == {"B?ro", "?" * 63}
    status = json.loads(done(proxy, "--json", "status"))
    assert {certificate["title"] for certificate in status["certificates"]} == {"main", "B?ro"}
    for client in clients:
        client.close()


@pytest.mark.parametrize("words, count", [
    (["--user", USERS[0]], 2), (["--user", USERS[2]], 0), (["--phase", "relay"], 3), (["--phase", "proxy-header"], 0),
    (["--listener", "imaps"], 1), (["--shard", "store"], 3), (["--address", "127.0.0.0/8"], 4), (["--address", "192.0.2.1"], 0),
    (["--limit", "3"], 3), (["--sort", "user", "--limit", "2"], 2), (["--phase", "relay", "--user", USERS[1].upper()], 1)])
def test_filters(proxy, words, count):
    with stage_of_three(proxy):
        assert len(rows(proxy, "sessions", *words)) == count


def test_order(proxy):
    with stage_of_three(proxy):
        with proxy.logged_in(USERS[2]) as busy:
            busy.command(b"NOOP")
            first = rows(proxy, "sessions", "--sort", "bytes")[0]
            assert (first["user"], first["commands"]) == (USERS[2], 1) and first["in_bytes"] > 0 < first["out_bytes"]
            names = [row["user"] or "" for row in rows(proxy, "sessions", "--sort", "user")]
            assert names == sorted(names) and len(names) == 5
            for word in "age", "idle":
                times = [row[f"{word}_seconds"] or 0 for row in rows(proxy, "sessions", "--sort", word)]
                assert times == sorted(times, reverse=True)


def test_users(proxy):
    with stage_of_three(proxy):
        listed = rows(proxy, "users")
        assert [(row["user"], row["sessions"], row["shard"]) for row in listed[:2]] == [(USERS[0], 2, "store"),
                                                                                       (USERS[1], 1, "store")]
        assert [row["user"] for row in rows(proxy, "users", "--limit", "1")] == [USERS[0]]
    with proxy.logged_in(USERS[0]) as last:
        last.command(b"LOGOUT")
    servers.wait_for(lambda: [row["parked"] for row in rows(proxy, "users", "--shard", "store")
                              if row["user"] == USERS[0]] == [2], "both connections of hers to be parked")
    assert {row["sessions"] for row in rows(proxy, "users")} == {0}


def test_pool(begin):
    fresh = begin()
    with fresh.logged_in(USERS[0]):
        servers.wait_for(lambda: rows(fresh, "pool")[0]["warm"] == 1, "the spare one")
        row, = rows(fresh, "pool")
        assert (row["shard"], row["open"], row["leased"], row["misses"], row["waiting"]) == ("store", 2, 1, 1, 0)
        by_worker = rows(fresh, "pool", "--by", "worker")
        assert [(row["worker"], row["open"]) for row in by_worker] == [(0, 2), (1, 0)]
        with fresh.logged_in(USERS[2]):
            assert rows(fresh, "pool")[0]["hits_warm"] == 1


@pytest.mark.parametrize("words, reason", [
    (["--shard", "none"], "there is no shard"), (["--address", "nowhere"], "is no address"), (["--user", "@"], "cannot be"),
    (["--limit", "many"], "expected a number from 1 to"), (["--limit", "-1"], "expected a number from 1 to")])
def test_what_is_wrong_is_said(proxy, words, reason):
    refused = ctl(proxy, "sessions", *words)
    assert refused.returncode == 1 and reason in refused.stderr, refused


def ids(proxy, *words):
    return [row["session"] for row in rows(proxy, "sessions", *words)]


def test_many_that_come_and_go(begin):
    """Those who stay are told of once, each; whoever comes and goes meanwhile does no harm."""
    proxy = begin(throttle="")
    staying = silent_clients(proxy, COUNT)
    servers.wait_for(lambda: len(ids(proxy)) == COUNT, "all of them")
    expected = set(ids(proxy))
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            for peer in silent_clients(proxy, 20):
                peer.close()
    disturbance = threading.Thread(target=come_and_go)
    disturbance.start()
    try:
        for words in [], ["--sort", "age"]:
            for _ in range(2):
                told = ids(proxy, *words)
                assert expected <= set(told) and len(told) == len(set(told))
        assert len(ids(proxy, "--limit", "100")) == 100
    finally:
        over.set()
        disturbance.join()
    for peer in staying:
        peer.close()
    all_gone(proxy)


def test_who_does_not_take_what_it_asked_for(begin):
    """It is waited for, or forgotten when it leaves; others are served meanwhile, and the process ends in order."""
    proxy = begin(throttle="")
    staying = silent_clients(proxy, COUNT)
    servers.wait_for(lambda: len(ids(proxy)) == COUNT, "all of them")
    asking = []
    for line in REQUESTS * 4:
        asking.append(socket.socket(socket.AF_UNIX))
        asking[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        asking[-1].connect(str(path_of(proxy)))
        asking[-1].sendall(line)
    assert len(ids(proxy)) == COUNT
    for peer in asking[:8]:
        peer.close()
    assert len(ids(proxy, "--sort", "age")) == COUNT
    for peer in staying:
        peer.close()
    assert proxy.stop() == 0
    for peer in asking[8:]:
        peer.close()


def test_what_many_workers_tell_waits_for_the_reader(begin):
    """They all tell at a time, of more than is kept for somebody who does not read."""
    proxy = begin(throttle="", workers=96)
    staying = silent_clients(proxy, 3 * COUNT)
    servers.wait_for(lambda: len(ids(proxy, "--limit", "1000000")) == 3 * COUNT, "all of them")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        asking.connect(str(path_of(proxy)))
        asking.sendall(REQUESTS[0])
        assert len(ids(proxy, "--sort", "age")) == 3 * COUNT  # of all workers: they have told something
        asking.shutdown(socket.SHUT_WR)
        answer = [json.loads(line) for line in asking.makefile("rb")]
    assert len(answer) == 3 * COUNT + 1 and answer[-1]["ok"] is True
    for peer in staying:
        peer.close()
