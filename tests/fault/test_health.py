"""
Whether a store answers is found out before clients have to: who is down refuses logins at once, who comes back takes
them slowly, and one that answers now and then changes nothing.
"""
import concurrent.futures
import os
import signal
import socket
import threading
import time

import pytest

import servers
from crowd import Crowd, CrowdStore, wait_for_metrics
from stage import CAPABILITIES, PASSWORD, PATIENCE_SECONDS, Gone, Store, good, shard

INTERVAL, TIMEOUT, FALL, RISE = 0.2, 0.5, 3, 2
QUICK = f"interval = {INTERVAL * 1000:.0f}ms timeout = {TIMEOUT * 1000:.0f}ms fall = {FALL} rise = {RISE} " \
        "max_interval = 400ms"
FOUND_SECONDS = 1.1 * INTERVAL + FALL * TIMEOUT + (FALL - 1) * 1.1 * min(INTERVAL, 1)  # as docs/operations.md has it
SLACK_SECONDS = 5  # for a busy machine
AT_ONCE_SECONDS = 3  # well below any time-out of a login
PROBE = 'probe_user = probe probe_password = "probe secret"'
PATIENT = "connect_timeout = 60s login_timeout = 60s"
USERS = [f"user{number}" for number in range(64)]


def login(proxy, user="alice"):
    """The answer to a login, and how long it took."""
    with proxy.wire() as wire:
        started = time.monotonic()
        answer = wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")
        return answer, time.monotonic() - started


def is_refused_at_once(proxy, user="alice", why="health checks"):
    before = len(proxy.events("login refused"))
    answer, seconds = login(proxy, user)
    assert answer.startswith(b"in NO [UNAVAILABLE] ") and seconds < AT_ONCE_SECONDS, (answer, seconds)
    servers.wait_for(lambda: len(proxy.events("login refused")) > before, "the log")
    assert why in proxy.events("login refused")[-1]["detail"], proxy.events("login refused")[-1]


def wait_for_events(proxy, name, count=1):
    servers.wait_for(lambda: len(proxy.events(name)) >= count, f"{count} times {name}")
    assert len(proxy.events(name)) == count
    return proxy.events(name)[-1]


def get_in(proxy, user="alice"):
    """As soon as the store takes logins."""
    servers.wait_for(lambda: login(proxy, user)[0].startswith(b"in OK "), "a login that goes well")


def checks_of(proxy):
    metrics = proxy.metrics()
    return {result: metrics[f'imapmux_health_checks_total{{result="{result}"}}'] for result in ("good", "failed")}


def after_checks(proxy, **more):
    """When so many more checks have been made."""
    before = checks_of(proxy)
    servers.wait_for(lambda: all(checks_of(proxy)[result] >= before[result] + count
                                 for result, count in more.items()), f"checks {more}")


# What scripts do

class Moods:
    """A script that does as `mood` says, a function of the peer; connections of before are not touched."""

    def __init__(self, mood=good):
        self.mood = mood

    def __call__(self, peer):
        self.mood(peer)


def hang(peer):
    peer.wait_for_end()


def close(peer):
    pass


def greet_bye(peer):
    peer.send(b"* BYE too busy\r\n")


def greet_preauth(peer):
    peer.send(b"* PREAUTH welcome\r\n")
    peer.wait_for_end()


def garbage(peer):
    peer.send(b"220 smtp.example.org\r\n")
    peer.wait_for_end()


def stuck_in_login(peer):
    peer.greet()
    peer.until_login()
    peer.wait_for_end()


def in_turn(*moods):
    """The first connection meets the first one, the next the second, and so on, for ever."""
    turn, lock = [0], threading.Lock()

    def script(peer):
        with lock:
            mood = moods[turn[0] % len(moods)]
            turn[0] += 1
        mood(peer)
    return script


# A real store that hangs

class Frozen:
    """All processes of a Dovecot stand still: the kernel takes connections for it, and nobody greets."""

    def __init__(self, dovecot):
        self.group = os.getpgid(dovecot.process.pid)

    def __enter__(self):
        os.killpg(self.group, signal.SIGSTOP)
        return self

    def __exit__(self, *_):
        os.killpg(self.group, signal.SIGCONT)


@pytest.fixture(scope="module")
def dovecots(folder, certificate):
    users = {user: PASSWORD for user in ("alice", "bob", "probe")}
    with (servers.Dovecot(folder / "health-one", users=users, certificate=certificate) as one,
          servers.Dovecot(folder / "health-two", users=users, certificate=certificate) as two):
        yield one, two


@pytest.mark.parametrize("how", ["greeting", "starttls", "implicit", "probe"])
def test_a_store_that_hangs(start, dovecots, how):
    one, two = dovecots
    port = one.tls_port if how == "implicit" else one.port
    tls = "none" if how in ("greeting", "probe") else how
    probe = 'probe_user = probe probe_password = "secret"' if how == "probe" else ""
    proxy = start(shard("store", port, tls=tls, more=f"{PATIENT} {probe}") + shard("other", two.port, more=PATIENT),
                  health=QUICK, workers=2, routes={"bob": "other"})
    after_checks(proxy, good=4)
    assert wait_for_metrics(proxy, stores_down=0)['imapmux_health_checks_total{result="failed"}'] == 0
    with proxy.logged_in() as session, concurrent.futures.ThreadPoolExecutor() as pool:
        assert session.command(b"SELECT INBOX", tag=b"s").endswith(b"\r\n")
        with Frozen(one):
            frozen_at = time.monotonic()
            waiting = [pool.submit(login, proxy) for _ in range(5)]
            wait_for_events(proxy, "store is down")
            assert time.monotonic() - frozen_at < FOUND_SECONDS + SLACK_SECONDS
            # Who had waited for it is answered, as is who comes now; nobody waits for a time-out.
            for answer, seconds in (job.result(SLACK_SECONDS) for job in waiting):
                assert answer.startswith(b"in NO [UNAVAILABLE] ") and seconds < FOUND_SECONDS + SLACK_SECONDS
            for _ in range(3):
                is_refused_at_once(proxy)
            assert login(proxy, "bob")[0].startswith(b"in OK ")
            wait_for_metrics(proxy, stores_down=1, leases_waiting=0, logins_in_flight=0)
            session.send(b"n NOOP\r\n")
        wait_for_events(proxy, "store is back")
        assert b"n OK " in session.read_tagged(b"n")  # it was only kept waiting
        get_in(proxy)
    wait_for_metrics(proxy, stores_down=0, store_addresses_down=0)
    wait_for_events(proxy, "store is down")
    assert proxy.stop() == 0


# Stores that fail in their ways

@pytest.mark.parametrize("mood, why", [(hang, "no answer in time"), (close, "closed by the store"),
                                       (greet_bye, "BYE"), (greet_preauth, "PREAUTH"), (garbage, "IMAP")],
                         ids=lambda value: getattr(value, "__name__", None))
def test_what_is_no_answer(start, mood, why):
    moods = Moods(mood)
    with Store(moods) as store:
        proxy = start(shard("store", store.port, more=PATIENT), health=QUICK)
        assert why in wait_for_events(proxy, "store is down")["detail"]
        is_refused_at_once(proxy)
        moods.mood = good
        wait_for_events(proxy, "store is back")
        get_in(proxy)
        assert proxy.stop() == 0


def test_nobody_listens(start):
    port = servers.free_port()
    proxy = start(shard("store", port, more=PATIENT), health=QUICK)
    assert "refused" in wait_for_events(proxy, "store is down")["detail"]
    is_refused_at_once(proxy)
    assert proxy.stop() == 0


def test_a_name_that_nobody_knows(start):
    proxy = start('shard store { address = "no-such-host.invalid:143" tls = none }\n', health=QUICK)
    assert "no-such-host.invalid" in wait_for_events(proxy, "store is down")["detail"]
    is_refused_at_once(proxy)
    assert proxy.stop() == 0


def test_logins_are_the_first_to_know(start):
    """A login that fails brings the next check forward."""
    moods = Moods()
    with Store(moods) as store:
        proxy = start(shard("store", store.port, more=PATIENT), health="interval = 1h timeout = 500ms")
        after_checks(proxy, good=1) if not checks_of(proxy)["good"] else None
        moods.mood = close
        assert login(proxy)[0].startswith(b"in NO [UNAVAILABLE] ")
        wait_for_events(proxy, "store is down")
        is_refused_at_once(proxy)
        assert proxy.stop() == 0


def test_lost_sessions_are_the_first_to_know(start):
    moods = Moods()
    with Store(moods) as store:
        proxy = start(shard("store", store.port, more=PATIENT), health="interval = 1h timeout = 500ms")
        with proxy.logged_in() as wire:
            moods.mood = close
            store.peers[-1].socket.shutdown(socket.SHUT_RDWR)
            assert wire.read_to_end().startswith(b"* BYE ")
            wait_for_events(proxy, "store is down")
        assert proxy.stop() == 0


def test_a_store_that_answers_every_other_check(start):
    """It counts as up: sessions stay, and its state does not go to and fro."""
    moods = Moods()
    with Store(moods) as store:
        proxy = start(shard("store", store.port, more=PATIENT), health=QUICK)
        with proxy.logged_in() as session:
            moods.mood = in_turn(close, good)
            after_checks(proxy, good=6, failed=6)
            for _ in range(6):
                answer, seconds = login(proxy)
                assert answer.startswith((b"in OK ", b"in NO [UNAVAILABLE] ")) and seconds < AT_ONCE_SECONDS
            assert session.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
        assert not proxy.events("store is down") and not proxy.events("store is back")
        # Nor does it come up while it is down.
        moods.mood = close
        wait_for_events(proxy, "store is down")
        moods.mood = in_turn(good, close)
        after_checks(proxy, good=6, failed=6)
        assert not proxy.events("store is back")
        moods.mood = good
        wait_for_events(proxy, "store is back")
        get_in(proxy)
        assert proxy.stop() == 0


def test_a_store_with_no_room_for_checks_is_not_down(start):
    """While others are greeted, what checks meet is not the whole truth; nor is a login cut off that takes long."""
    ended = threading.Event()

    def slow_for_probes(peer):
        peer.greet()
        said = peer.until_login()
        if b"AHByb2Jl" in said:  # \0probe
            peer.wait_for_end()
            return
        if b"AGJvY" in said:  # \0bob
            ended.wait()
        peer.send(b"L OK [CAPABILITY %s] Logged in\r\n" % CAPABILITIES)
        peer.serve()

    def log_in_until_the_end():
        while not ended.is_set():
            answer, _ = login(proxy)
            assert answer.startswith(b"in OK "), (answer, proxy.events("login refused"))

    with Store(slow_for_probes) as store, concurrent.futures.ThreadPoolExecutor() as pool:
        proxy = start(shard("store", store.port, more=f"{PATIENT} {PROBE}"), users=("alice", "bob"),
                      health="interval = 1s timeout = 2s fall = 2")
        others = [pool.submit(log_in_until_the_end) for _ in range(4)]
        slow = pool.submit(login, proxy, "bob")
        try:
            servers.wait_for(lambda: checks_of(proxy)["failed"] >= 3, "checks that fail")
            assert not proxy.events("store is down") and not proxy.events("login refused")
        finally:
            ended.set()
        assert slow.result()[0].startswith(b"in OK ")
        for other in others:
            other.result()
        wait_for_events(proxy, "store is down")  # once nobody is greeted any more
        assert proxy.stop() == 0


# The probe user

def test_the_probe_user_logs_in_and_out(start):
    with Store() as store:
        proxy = start(shard("store", store.port, more=PROBE), health=QUICK)
        after_checks(proxy, good=3)
        heard = [b"".join(peer.heard) for peer in list(store.peers)[:3]]
        for said in heard:
            assert said == b"L AUTHENTICATE PLAIN AHByb2JlAHByb2JlIHNlY3JldA==\r\nP LOGOUT\r\n"
        assert "probe secret" not in proxy.output() and "AHByb2JlA" not in proxy.output()
        assert proxy.stop() == 0


def test_without_a_probe_user_nobody_logs_in(start):
    with Store() as store:
        proxy = start(shard("store", store.port), health=QUICK)
        after_checks(proxy, good=3)
        assert {b"".join(peer.heard) for peer in list(store.peers)[:3]} == {b"P LOGOUT\r\n"}
        metrics = proxy.metrics()
        assert metrics["imapmux_backend_connects_total"] == metrics["imapmux_backends_open"] == 0  # of sessions
        assert proxy.stop() == 0


def test_a_store_that_greets_and_logs_nobody_in(start):
    moods = Moods(stuck_in_login)
    with Store(moods) as store:
        proxy = start(shard("store", store.port, more=f"{PATIENT} {PROBE}"), health=QUICK)
        assert "login takes too long" in wait_for_events(proxy, "store is down")["detail"]
        is_refused_at_once(proxy)
        moods.mood = good
        wait_for_events(proxy, "store is back")
        assert proxy.stop() == 0


@pytest.mark.parametrize("answer", [b"NO [AUTHENTICATIONFAILED] who?", b"NO [LIMIT] too many", b"NO [EXPIRED] old"])
def test_a_probe_user_that_is_refused_is_not_the_store_s_fault(start, answer):
    def refuse(peer):
        peer.greet()
        who = peer.until_login()
        peer.send(b"L " + (answer if b"AHByb2Jl" in who else b"OK [CAPABILITY %s] in" % CAPABILITIES) + b"\r\n")
        peer.serve()

    with Store(refuse) as store:
        proxy = start(shard("store", store.port, more=PROBE), health=QUICK)
        after_checks(proxy, good=6)
        assert len(proxy.events("probe user refused")) == 1
        assert login(proxy)[0].startswith(b"in OK ")
        assert proxy.stop() == 0


def test_a_probe_user_for_whom_the_store_has_no_answer(start):
    def fail(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L NO [UNAVAILABLE] Temporary authentication failure.\r\n")
        peer.serve()

    with Store(fail) as store:
        proxy = start(shard("store", store.port, more=PROBE), health=QUICK)
        assert "Temporary authentication failure" in wait_for_events(proxy, "store is down")["detail"]
        assert proxy.stop() == 0


def test_a_store_that_wants_a_proxy_header(start):
    """It gets one that says that the connection is for nobody (LOCAL)."""
    seen = []

    def after_header(peer):
        seen.append(peer.exactly(16))
        peer.exactly(int.from_bytes(seen[-1][14:16], "big"))
        good(peer)

    with Store(after_header) as store:
        proxy = start(shard("store", store.port, more="client_address = proxy"), health=QUICK)
        after_checks(proxy, good=3)
        assert seen[0] == b"\r\n\r\n\0\r\nQUIT\n" + b"\x20\0\0\0"
        assert login(proxy)[0].startswith(b"in OK ")
        assert proxy.stop() == 0


# Two addresses

def test_one_of_two_addresses_is_down(start):
    """It is tried last: nobody waits for it."""
    moods = Moods()
    with Store(moods) as first, Store() as second:
        proxy = start(shard("store", first.port, second.port, more="connect_timeout = 60s"), health=QUICK)
        after_checks(proxy, good=4)
        assert login(proxy)[0].startswith(b"in OK ")
        assert any(b"AUTHENTICATE" in line for peer in first.peers for line in peer.heard)
        moods.mood = hang
        assert f":{first.port} of shard store" in wait_for_events(proxy, "store address is down")["detail"]
        for _ in range(5):
            answer, seconds = login(proxy)
            assert answer.startswith(b"in OK ") and seconds < AT_ONCE_SECONDS
        wait_for_metrics(proxy, store_addresses_down=1, stores_down=0)
        assert not proxy.events("store is down")
        moods.mood = good
        wait_for_events(proxy, "store address is back")
        before = len(second.peers)
        sessions = [proxy.logged_in() for _ in range(3)]
        assert sum(b"AUTHENTICATE" in line for peer in list(second.peers)[before:] for line in peer.heard) == 0
        for wire in sessions:
            wire.close()
        assert proxy.stop() == 0


def test_who_is_at_an_address_that_is_found_down(start):
    """Who is not greeted goes to the other one; a login that was sent is answered; what is idle is let go."""
    moods = Moods()
    with Store(moods) as first, Store() as second:
        proxy = start(shard("store", first.port, second.port, more=PATIENT), health=QUICK,
                      pool="warm = 1 park_time = 0s", users=("alice", "bob"))
        with proxy.logged_in(), concurrent.futures.ThreadPoolExecutor() as pool:
            wait_for_metrics(proxy, backends_warm=1)  # at the first address
            moods.mood = hang
            before = len(first.peers)
            warm = next(peer for peer in reversed(first.peers) if not peer.heard)
            waits = pool.submit(login, proxy, "alice")  # on the warm connection, which still serves
            assert waits.result()[0].startswith(b"in OK ") and warm.heard
            servers.wait_for(lambda: len(first.peers) > before, "a connection that is not greeted")
            late = [pool.submit(login, proxy, user) for user in ("alice", "bob", "bob")]
            wait_for_events(proxy, "store address is down")
            for answer, _ in (job.result(PATIENCE_SECONDS / 2) for job in late):
                assert answer.startswith(b"in OK ")
            assert not proxy.events("login refused")

            moods.mood = good
            wait_for_events(proxy, "store address is back")
            moods.mood = stuck_in_login
            before = len(first.peers)
            stuck = [pool.submit(login, proxy, user) for user in ("alice", "bob")]
            servers.wait_for(lambda: any(b"AUTHENTICATE" in line for peer in first.peers[before:]
                                         for line in peer.heard), "a login that hangs")
            moods.mood = hang
            wait_for_events(proxy, "store address is down", 2)
            for answer, _ in (job.result(PATIENCE_SECONDS / 2) for job in stuck):
                assert answer.startswith((b"in OK ", b"in NO [UNAVAILABLE] "))
            assert "its address was found down" in proxy.events("login refused")[-1]["detail"]
        assert proxy.stop() == 0


def test_both_of_two_addresses_are_down(start):
    moods = Moods(hang)
    with Store(moods) as first, Store(moods) as second:
        proxy = start(shard("store", first.port, second.port, more=PATIENT), health=QUICK)
        wait_for_events(proxy, "store address is down", 2)
        wait_for_events(proxy, "store is down")
        is_refused_at_once(proxy)
        moods.mood = good
        wait_for_events(proxy, "store is back")
        get_in(proxy)
        assert proxy.stop() == 0


# Coming back

def test_slow_start_after_checks(start):
    """A store that the checks have found well again gets few logins at first."""
    count, limit, seconds = 300, 40, 2
    with CrowdStore(login_seconds=0.1) as store:
        proxy = start(shard("store", store.port, more=f"max_logins_in_flight = {limit} queue_timeout = 60s "
                                                      f"slow_start = {seconds}s"),
                      users=USERS, workers=2, health=QUICK)
        store.lose_all("closed")
        wait_for_events(proxy, "store is down")
        store.listen()
        wait_for_events(proxy, "store is back")
        came_back = time.monotonic()
        crowd = Crowd(proxy.port["plain"])
        crowd.rush(USERS[number % len(USERS)] for number in range(count))
        crowd.answered(count)
        assert crowd.counts["in"] == count
        for until in 0.25, 0.5, 0.75:
            most = max(seen for when, seen in store.history if when < came_back + until * seconds)
            assert most <= limit * until + 2, f"{most} of {limit} logins at once within {until * seconds} s"
        assert limit / 2 < store.most_logging_in <= limit
        crowd.say_goodbye()
        store.check()
        assert proxy.stop() == 0


def test_lines_before_a_store_are_emptied(start):
    """Logins that wait in line when it is found down, on both workers, are answered at once."""
    with CrowdStore(login_seconds=None) as store:
        proxy = start(shard("store", store.port, more=f"{PATIENT} {PROBE} max_logins_in_flight = 5 "
                                                      "queue_timeout = 60s"),
                      users=USERS, workers=2, health="interval = 500ms timeout = 1s max_interval = 500ms")
        crowd = Crowd(proxy.port["plain"])
        crowd.rush(USERS)
        wait_for_metrics(proxy, leases_waiting=len(USERS) - 5, logins_in_flight=5)
        crowd.answered(len(USERS))
        assert crowd.counts["refused"] == len(USERS)
        assert all("health checks" in event["detail"] for event in proxy.events("login refused"))
        wait_for_events(proxy, "store is down")
        wait_for_metrics(proxy, leases_waiting=0, logins_in_flight=0, backends_open=0)
        store.answer_logins(0)
        wait_for_events(proxy, "store is back")
        for member in crowd.members:
            member.log_in()
        crowd.answered(2 * len(USERS))
        assert crowd.counts["in"] == len(USERS)
        crowd.say_goodbye()
        assert proxy.stop() == 0


def test_what_is_idle_is_let_go(start):
    """Warm and parked connections to a store that is down are of no use to anybody."""
    moods = Moods()
    with Store(moods) as store:
        proxy = start(shard("store", store.port, more=PATIENT), health=QUICK, pool="warm = 2 park_time = 10m")
        with proxy.logged_in() as wire:
            wait_for_metrics(proxy, backends_warm=2)
            assert wire.command(b"NOOP", tag=b"n")
        moods.mood = hang
        wait_for_events(proxy, "store is down")
        wait_for_metrics(proxy, PATIENCE_SECONDS / 3, backends_open=0)  # before the store loses patience
        assert proxy.stop() == 0


def test_a_stop_while_checks_hang(start):
    with Store(hang) as store:
        proxy = start(shard("store", store.port), health="interval = 50ms timeout = 60s")
        servers.wait_for(lambda: store.peers, "a check")
        assert proxy.stop() == 0
