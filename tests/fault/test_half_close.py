"""A client that has closed its half still gets all that it asked for, however long the store takes to say it."""
import socket
import threading

import pytest

from stage import CAPABILITIES, PATIENCE_SECONDS, Store, shard

PIECES, PACE_SECONDS, LINGER_MS = 8, 0.25, 600
SMALLEST, LARGEST, STEP = 3 << 20, 5 << 20, 48 << 10


def dribble(peer):
    """Answers a FETCH octet by octet, in all for longer than linger_timeout; the pace is what is tested."""
    pace = threading.Event()
    peer.log_in()
    tag = peer.line().split()[0]
    peer.send(b"* 1 FETCH (BODY[] {%d}\r\n" % PIECES)
    for _ in range(PIECES):
        pace.wait(PACE_SECONDS)
        peer.send(b"x")
    peer.send(b")\r\n" + tag + b" OK done\r\n")


def test_slow_answer_outlasts_the_linger_timeout(start):
    assert PIECES * PACE_SECONDS * 1000 > 2 * LINGER_MS
    with Store(dribble) as store:
        proxy = start(shard("store", store.port), more=f"session {{ linger_timeout = {LINGER_MS}ms }}\n")
        wire = proxy.logged_in()
        wire.send(b"a FETCH 1 BODY[]\r\n")
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.read_to_end() == b"* 1 FETCH (BODY[] {8}\r\n" + b"x" * PIECES + b")\r\na OK done\r\n"
        wire.close()


def big_answers(peer):
    """The number in FETCH says how many octets."""
    peer.log_in(CAPABILITIES + b" UNSELECT")
    while True:
        tag, name, *rest = peer.command().split()
        if name == b"FETCH":
            size = int(rest[0])
            peer.send(b"* 1 FETCH (BODY[] {%d}\r\n" % size + b"x" * size + b")\r\n")
        peer.send(tag + b" OK done\r\n")


@pytest.mark.parametrize("end", [b"", b"b LOGOUT\r\n"], ids=["closes", "logs_out"])
def test_late_reader_gets_all(start, end):
    """
    Its connection to the store is kept; that must not be at the cost of what is still queued for it. Among the sizes
    is one that fills the kernel's buffers, and the proxy's queue in part.
    """
    pace = threading.Event()
    with Store(big_answers) as store:
        proxy = start(shard("store", store.port), pool="warm = 0")
        for size in range(SMALLEST, LARGEST, STEP):
            wire = proxy.logged_in(receive_buffer=8192)
            wire.send(b"a FETCH %d BODY[]\r\n" % size + end)
            wire.socket.shutdown(socket.SHUT_WR)
            pace.wait(0.05)  # the proxy is to be done with the store before anything is read
            received = wire.read_to_end()
            assert received.count(b"x") == size and b")\r\na OK done\r\n" in received[-100:], (size, received[-100:])
            assert (b"\r\nb OK " in received[-100:]) == bool(end)
            wire.close()


APPEND = b"a APPEND INBOX {3}\r\n"


def test_who_waits_for_a_store_that_is_mute_and_closes_is_noticed(start):
    """Nothing is read from a client whose literal the store has not confirmed; its end counts all the same."""
    ended = threading.Event()

    def never_confirms(peer):
        peer.log_in()
        assert peer.line() == APPEND
        peer.wait_for_end()
        ended.set()

    with Store(never_confirms) as store:
        proxy = start(shard("store", store.port), more=f"session {{ linger_timeout = {LINGER_MS}ms }}\n")
        wire = proxy.logged_in()
        wire.send(APPEND)
        wire.close()
        assert ended.wait(PATIENCE_SECONDS)
        store.check()


def test_who_waits_for_a_slow_store_and_closes_its_half_gets_its_answer(start):
    pace = threading.Event()

    def confirms_late(peer):
        peer.log_in()
        assert peer.line() == APPEND
        pace.wait(PACE_SECONDS)
        peer.send(b"+ go\r\n")
        assert peer.exactly(5) == b"abc\r\n"
        peer.send(b"a OK done\r\n")

    with Store(confirms_late) as store:
        proxy = start(shard("store", store.port), more=f"session {{ linger_timeout = {LINGER_MS}ms }}\n")
        with proxy.logged_in() as wire:
            wire.send(APPEND + b"abc\r\n")
            wire.socket.shutdown(socket.SHUT_WR)
            assert wire.read_to_end() == b"+ go\r\na OK done\r\n"
        store.check()
