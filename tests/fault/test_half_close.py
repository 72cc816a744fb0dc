"""A client that has closed its half still gets all that it asked for, however long the store takes to say it."""
import socket
import threading

from stage import Store, shard

PIECES, PACE_SECONDS, LINGER_MS = 8, 0.25, 600


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
