"""A client that has closed its half, or logged out, still gets all that it asked for, however long it takes."""
import socket
import threading

import pytest

from stage import Store, shard

PIECES, PACE_SECONDS, LINGER_MS = 8, 0.25, 600
BIG, STEP = 6 << 20, 256 << 10


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


def big_answer(peer):
    peer.log_in(b"IMAP4rev1 SASL-IR AUTH=PLAIN UNSELECT")
    tag = peer.line().split()[0]
    peer.send(b"* 1 FETCH (BODY[] {%d}\r\n" % BIG + b"x" * BIG + b")\r\n" + tag + b" OK done\r\n")
    peer.serve()


@pytest.mark.parametrize("pool", ["warm = 0 park_time = 0s", "warm = 0 park_time = 1m"], ids=["store", "proxy"])
def test_slow_reader_outlasts_the_linger_timeout(start, pool):
    """It has logged out in the same breath; all its bytes are still in the proxy and in the kernel when that is done."""
    pace = threading.Event()
    with Store(big_answer) as store:
        proxy = start(shard("store", store.port), more=f"session {{ linger_timeout = {LINGER_MS}ms }}\n", pool=pool)
        wire = proxy.logged_in(timeout=None)
        wire.send(b"a FETCH 1 BODY[]\r\nb LOGOUT\r\n")
        received = 0
        while received < BIG:
            pace.wait(0.1)
            received += len(wire.read_exactly(min(STEP, BIG - received)))
        rest = wire.read_to_end()
        assert b"x)\r\na OK done\r\n" in rest
        assert rest.endswith(b"\r\n") and b"\r\nb OK " in rest, rest[-100:]
        wire.close()
