"""
A store is lost under many sessions: every client is told once, clients that only wait are told spread over
drain_time so that they do not all come back together, and nothing of it is left when all have come back.
IMAPMUX_LETTING_GO says how many sessions there are.
"""
import contextlib
import select
import socket
import struct
import time

import pytest

import servers
from crowd import GOING_DOWN, Crowd, CrowdStore, is_sanitized, size_of
from stage import CAPABILITIES, PATIENCE_SECONDS, Store, shard

USERS = [f"user{number}" for number in range(50)]
TIMEOUTS = "connect_timeout = 10s login_timeout = 10s queue_timeout = 30s "
DRAIN_SECONDS = 2
AT_ONCE_SECONDS = 1  # far from drain_time, for a crowd
SLACK_SECONDS = 2
FAIR_SHARE = 0.6  # of a third: chance alone does not get below it
LOGINS_AT_ONCE = 16
FIRST = 4  # losses of each second, shard and worker that are told at once
GROWTH_BYTES = 512 << 10
WAYS = ["BYE", "closed", "reset"]

# What clients do when the store is lost, and how many of ten do it.
WITHOUT_COMMAND, IN_IDLE, COMMAND_OUTSTANDING, SPEAKS = "without command", "in IDLE", "command outstanding", "speaks"
KINDS = [WITHOUT_COMMAND] * 4 + [IN_IDLE] * 4 + [COMMAND_OUTSTANDING, SPEAKS]
FIRST_WORDS = {WITHOUT_COMMAND: b"", IN_IDLE: b"i IDLE\r\n", COMMAND_OUTSTANDING: b"f FETCH 1 BODY[]\r\n", SPEAKS: b""}


def kind_of(number):
    return KINDS[number % len(KINDS)]


def told(member, way):
    """When this client was told, in the one line that it must have got."""
    assert len(member.lines) == 1, member.lines
    when, line = member.lines[0]
    if way == "BYE":
        assert line == GOING_DOWN
    else:
        assert line.startswith(b"* BYE [UNAVAILABLE] ") and line.endswith(b"\r\n"), line
    return when


def all_log_in(proxy, store, count):
    """Not all at once: what many passwords need that are verified together would hide what the sessions need."""
    crowd = Crowd(proxy.port["plain"])
    crowd.rush((USERS[number % len(USERS)] for number in range(count)), lambda number: FIRST_WORDS[kind_of(number)],
               until="answered", at_once=LOGINS_AT_ONCE)
    crowd.answered(count)
    assert crowd.counts["in"] == count
    crowd.turn_until(lambda: crowd.counts["idling"] == count * KINDS.count(IN_IDLE) // len(KINDS), "IDLE of all")
    servers.wait_for(lambda: store.fetches == count // len(KINDS), "the FETCHes to reach the store")
    return crowd


def lose_and_check(proxy, store, crowd, way):
    """The store is lost; who is told when, counted from that moment."""
    count = len(crowd.members)
    started = time.monotonic()
    assert store.lose_all(way) == count
    for number, member in enumerate(crowd.members):
        if kind_of(number) == SPEAKS:
            member.send(b"x NOOP\r\n")
    refused = crowd.add(USERS[0])
    crowd.turn_until(lambda: refused.answer, "a refusal")
    crowd.all_ended(DRAIN_SECONDS + PATIENCE_SECONDS, still_there=1)
    assert refused.answer.startswith(b"in NO [UNAVAILABLE] ")
    refused.leave()

    times = {kind: [] for kind in KINDS}
    for number, member in enumerate(crowd.members[:count]):
        times[kind_of(number)].append(told(member, way) - started)
    for kind in COMMAND_OUTSTANDING, SPEAKS:
        assert max(times[kind]) < AT_ONCE_SECONDS, f"{kind}: told after {max(times[kind])} s"
    quiet = times[WITHOUT_COMMAND] + times[IN_IDLE]
    assert max(quiet) < DRAIN_SECONDS + SLACK_SECONDS
    third = DRAIN_SECONDS / 3
    shares = [sum(when < third for when in quiet), sum(third <= when < 2 * third for when in quiet),
              sum(2 * third <= when for when in quiet)]
    print(f"\n{way}: first after {min(quiet):.2f} s, last after {max(quiet):.2f} s, thirds {shares}")
    assert min(quiet) < third, "nobody is told at once"
    for share in shares:
        assert share > len(quiet) / 3 * FAIR_SHARE, shares


def nothing_is_left(proxy, baseline):
    def at_rest():
        found = proxy.metrics()
        gauges = [found["imapmux_" + name] for name in ("backends_open", "leases_waiting", "logins_in_flight")]
        return not any(gauges) and found["imapmux_sessions_opened_total"] == found["imapmux_sessions_closed_total"]
    servers.wait_for(at_rest, "all gauges to be zero and all sessions closed")
    servers.wait_for(lambda: proxy.descriptors() <= baseline, f"descriptors to fall to {baseline}")


def test_store_lost_under_many_sessions(start):
    """Again and again, each time in another way; what stays behind does not grow."""
    with CrowdStore() as store:
        proxy = start(shard("store", store.port, more=f"{TIMEOUTS} slow_start = 0s drain_time = {DRAIN_SECONDS}s"),
                      users=USERS, workers=2)
        count = size_of(proxy, "IMAPMUX_LETTING_GO", 1000, 400)
        first = Crowd(proxy.port["plain"])
        first.rush(USERS)
        first.answered(len(USERS))
        first.say_goodbye()
        nothing_is_left(proxy, proxy.descriptors())
        baseline, resident = proxy.descriptors(), []
        for way in WAYS:
            crowd = all_log_in(proxy, store, count)
            lose_and_check(proxy, store, crowd, way)
            nothing_is_left(proxy, baseline)
            resident.append(proxy.resident_bytes())
            store.listen()
        assert proxy.metrics()["imapmux_sessions_opened_total"] == len(USERS) + len(WAYS) * (count + 1)
        print(f"resident after each: {[size // 1024 for size in resident]} KiB")
        if not is_sanitized(proxy):
            assert resident[-1] - resident[0] < GROWTH_BYTES, resident
        store.check()


# The same, looked at closely: a drain_time so long that nobody is told by chance.

@pytest.fixture
def calm():
    with Store() as store:
        yield store


@pytest.fixture
def long_drain(start, calm):
    """Starts imapmux before a store that may be lost, and a calm one that is bob's, all on one worker."""
    def start_one(port):
        return start(shard("store", port, more=TIMEOUTS + "drain_time = 1h") + shard("calm", calm.port),
                     routes={"bob": "calm"}, workers=1)
    return start_one


def hear(wires):
    """Those of `wires` to which something has come."""
    return select.select([wire.socket for wire in wires], [], [], 0)[0]


def the_first_are_told(proxy, wires):
    """Takes the first few out of `wires`, once they have been told; the loop has gone on turning since."""
    servers.wait_for(lambda: len(hear(wires)) >= FIRST, "the first to be told")
    with proxy.logged_in("bob") as neighbour:
        for _ in range(50):
            neighbour.command(b"NOOP")
    sockets = hear(wires)
    first = [wire for wire in wires if wire.socket in sockets]
    assert len(first) == FIRST
    for wire in first:
        wires.remove(wire)
    return first


def lost_line(way):
    def check(received):
        if way.startswith("BYE"):
            assert received == GOING_DOWN
        else:
            assert received.startswith(b"* BYE [UNAVAILABLE] ") and received.count(b"\n") == 1, received
            assert received.endswith(b"\r\n")
    return check


def waits_for_its_end(way):
    """A store's script, and a function that ends all its connections together, in this way."""
    peers = []

    def script(peer):
        peer.log_in()
        peers.append(peer)
        while True:
            tag, name = peer.command().split()[:2]
            if name == b"IDLE":
                peer.send(b"+ idling\r\n")
            else:
                peer.send(tag + b" OK done\r\n")

    def end_all():
        for peer in peers:
            if way.startswith("BYE"):
                peer.send(GOING_DOWN)
            if way == "reset":
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):  # the proxy may have closed at once
                if way != "BYE without end":
                    peer.socket.shutdown(socket.SHUT_RD if way == "reset" else socket.SHUT_RDWR)
    return script, end_all


@pytest.mark.parametrize("way", WAYS + ["BYE without end"])
def test_who_speaks_is_told(start, long_drain, way):
    """Four at once, the others when they say something, whatever it is; or they leave without being told."""
    script, end_all = waits_for_its_end(way)
    is_lost_line = lost_line(way)
    with Store(script) as store:
        proxy = long_drain(store.port)
        wires = [proxy.logged_in() for _ in range(FIRST + 4)]
        for wire in wires[1::2]:
            wire.send(b"i IDLE\r\n")
            assert wire.read_line() == b"+ idling\r\n"
        in_idle = wires[1::2]
        end_all()
        for wire in the_first_are_told(proxy, wires):
            is_lost_line(wire.read_to_end())
            wire.close()
        for words, wire in zip([b"x NOOP\r\n", b"x", b"x LOGOUT\r\n"], wires):
            wire.send(b"DONE\r\n" if wire in in_idle else words)
            is_lost_line(wire.read_to_end())
            wire.close()
        wires[-1].close()
        servers.wait_for(lambda: len(proxy.events("session end")) == FIRST + 4 + 1, "the end of all sessions")
        store.check()


@pytest.mark.parametrize("way", WAYS)
def test_stop_while_letting_go(start, long_drain, way):
    """An orderly stop tells those that wait to be told: once, and what the store said if it said something."""
    script, end_all = waits_for_its_end(way)
    with Store(script) as store:
        proxy = long_drain(store.port)
        wires = [proxy.logged_in() for _ in range(FIRST + 3)]
        end_all()
        for wire in the_first_are_told(proxy, wires):
            wire.close()
        proxy.process.terminate()
        for wire in wires:
            received = wire.read_to_end()
            assert received.startswith(b"* BYE ") and received.count(b"\n") == 1, received
            wire.close()
        assert proxy.process.wait(PATIENCE_SECONDS) == 0
        assert proxy.stop() == 0
        store.check()


def test_nothing_is_held_where_drain_time_is_zero(start):
    script, end_all = waits_for_its_end("closed")
    with Store(script) as store:
        proxy = start(shard("store", store.port, more=TIMEOUTS + "drain_time = 0s"), workers=1)
        wires = [proxy.logged_in() for _ in range(FIRST * 3)]
        end_all()
        started = time.monotonic()
        for wire in wires:
            lost_line("closed")(wire.read_to_end())
            wire.close()
        assert time.monotonic() - started < AT_ONCE_SECONDS + SLACK_SECONDS
        store.check()


def test_what_comes_before_the_end_is_not_held(start, long_drain):
    """Only the BYE waits; the responses before it do not."""
    peers = []

    def script(peer):
        peer.log_in()
        peers.append(peer)
        peer.wait_for_end()
    with Store(script) as store:
        proxy = long_drain(store.port)
        wires = [proxy.logged_in() for _ in range(FIRST + 1)]
        servers.wait_for(lambda: len(peers) == len(wires), "all sessions at the store")
        for peer in peers:
            peer.send(b"* 5 EXISTS\r\n" + GOING_DOWN)
        for wire in wires:
            assert wire.read_line() == b"* 5 EXISTS\r\n"
        the_first_are_told(proxy, wires)
        held = wires[0]
        held.send(b"x NOOP\r\n")
        assert held.read_to_end() == GOING_DOWN
        store.check()


def test_who_has_spoken_with_its_login_is_told(start, long_drain):
    """What it waits for came together with its login, so nothing more of it need come."""
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L OK [CAPABILITY %s] Logged in\r\n" % CAPABILITIES + GOING_DOWN)
        peer.wait_for_end()
    with Store(script) as store:
        proxy = long_drain(store.port)
        for _ in range(FIRST + 2):
            with proxy.wire() as wire:
                wire.send(b"in LOGIN alice secret\r\nx NOOP\r\n")
                assert wire.read_tagged(b"in").startswith(b"in OK ")
                assert wire.read_to_end() == GOING_DOWN
        store.check()
