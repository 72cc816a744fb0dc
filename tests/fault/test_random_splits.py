"""
Both directions cut at random places and byte by byte, with content that invites mistakes; what arrives is compared
with the expected bytes exactly. A failing case is repeated by its seed.
"""
import re
import threading

import pytest

from imapwire import random_chunks, single_bytes, whole
from stage import PASSWORD, PATIENCE_SECONDS, Store, shard

SEEDS = 12
LOCKSTEP = "lockstep"  # stands for the fixture `lockstep`: each byte is read before the next one is sent
CUTS = [("whole", whole, whole), ("single", single_bytes, single_bytes), ("mixed", single_bytes, whole),
        ("lockstep", LOCKSTEP, LOCKSTEP)] + [
    (f"seed{seed}", random_chunks(seed, 3 + seed * 3), random_chunks(seed + 1000, 40 - seed * 3))
    for seed in range(SEEDS)]

in_all_cuts = pytest.mark.parametrize("cuts", [cut[1:] for cut in CUTS], ids=[cut[0] for cut in CUTS], indirect=True)

C, S = "client says", "store says"
NOTHING = b""
LIST = b"IMAP4rev1 STARTTLS AUTH=PLAIN SORT COMPRESS=DEFLATE SASL-IR IDLE UNAUTHENTICATE LOGINDISABLED LITERAL+"
SEEN = b"IMAP4rev1 SORT IDLE LITERAL+"
TRAP = (b"* CAPABILITY IMAP4rev1 STARTTLS\r\nx1 OK [CAPABILITY AUTH=PLAIN] done\r\n+ go\r\nx9 STARTTLS\r\n"
        b"{5}\r\n{3+}\r\n\"\\{7}\r\n* BYE\r\nDONE\r\n\0\xff\r\r\n\n")
L = b"%d" % len(TRAP)


def same(who, data):
    """Data that passes as it is."""
    return who, data, data, NOTHING


def refused(tag, command, why):
    """A command that the store never sees; the client is answered by the proxy."""
    return C, tag + b" " + command, NOTHING, tag + b" BAD " + why + b"\r\n"


# Steps: who speaks, what, what arrives at the other end, what the proxy answers. The next step begins when all of it
# has arrived.
TRANSCRIPTS = {
    "server literals that look like IMAP": [
        same(C, b"x1 FETCH 1:3 (BODY[] BINARY[1])\r\n"),
        same(S, b"* 1 FETCH (BODY[] {" + L + b"}\r\n" + TRAP + b" BINARY[1] ~{" + L + b"}\r\n" + TRAP + b")\r\n"),
        same(S, b"* 2 FETCH (BODY[] {0}\r\n FLAGS ())\r\n* 3 FETCH (X \"{3}\" Y \"a\\\"{4}\")\r\n"),
        same(S, b"* 4 FETCH (BODY[] {" + L + b"}\r\n" + TRAP + b")\r\nx1 OK fetched {12}\r\n"),
        same(S, b"* OK text {3}\r\n* NO {1}\r\n"),
        same(C, b"x2 NOOP\r\n"),
        same(S, b"x2 OK done\r\n"),
    ],
    "client literals that look like IMAP": [
        same(C, b"y1 APPEND INBOX {" + L + b"+}\r\n" + TRAP + b" {" + L + b"+}\r\n" + TRAP + b"\r\n"),
        same(S, b"y1 OK [APPENDUID 1 2] done\r\n"),
        same(C, b"y2 APPEND INBOX {" + L + b"}\r\n"),
        same(S, b"+ go {4}\r\n"),
        same(C, TRAP + b" ~{" + L + b"+}\r\n" + TRAP + b"\r\ny3 SEARCH TEXT \"{5}\" NOT TEXT {0+}\r\n\r\n"),
        same(S, b"y2 OK done\r\n* SEARCH\r\ny3 OK done\r\n"),
        same(C, b"y4 APPEND no-such {10}\r\n"),
        same(S, b"y4 NO [TRYCREATE] no {10}\r\n"),
        same(C, b"y5 NOOP\r\n"),
        same(S, b"y5 OK done\r\n"),
    ],
    "capability lists": [
        same(C, b"c1 CAPABILITY\r\n"),
        (S, b"* CAPABILITY " + LIST + b"\r\nc1 OK done\r\n", b"* CAPABILITY " + SEEN + b"\r\nc1 OK done\r\n", NOTHING),
        (S, b"* OK [CAPABILITY " + LIST + b"] changed {3}\r\n", b"* OK [CAPABILITY " + SEEN + b"] changed {3}\r\n",
         NOTHING),
        same(C, b"c2 NOOP\r\n"),
        (S, b"* capability  " + LIST.lower() + b" \r\nc2 ok [capability " + LIST + b"] x] y\r\n",
         b"* capability " + SEEN.lower() + b"\r\nc2 ok [capability " + SEEN + b"] x] y\r\n", NOTHING),
        same(S, b"* OK CAPABILITY STARTTLS\r\n* OK [CAPABILITYX STARTTLS] x\r\n* CAPABILITYX STARTTLS\r\n"),
        same(S, b"* LIST () \"/\" \"CAPABILITY STARTTLS\"\r\n* CAP\r\n* C\r\n* OK [CAP] x\r\n"),
    ],
    "refused commands": [
        refused(b"r1", b"STARTTLS\r\n", b"STARTTLS is only possible before login"),
        refused(b"r2", b"LOGIN a b\r\n", b"Already logged in"),
        refused(b"r3", b"login {3+}\r\nabc {5+}\r\nr4 xx\r\n", b"Already logged in"),
        refused(b"r5", b"AUTHENTICATE PLAIN AAAA\r\n", b"Already logged in"),
        refused(b"r6", b"COMPRESS DEFLATE\r\n", b"COMPRESS is not supported"),
        refused(b"r7", b"UNAUTHENTICATE\r\n", b"UNAUTHENTICATE is not supported"),
        refused(b"r8", b"LOGIN {4}\r\n", b"Already logged in"),
        same(C, b"r9 LOGINX\r\nr10 START\r\nr11 NOOP STARTTLS\r\n"),
        same(S, b"r9 BAD what\r\nr10 BAD what\r\nr11 BAD what\r\n"),
        (C, b"a1 NOOP\r\nr12 STARTTLS\r\na2 NOOP\r\nr13 Compress Deflate\r\na3 NOOP\r\n",
         b"a1 NOOP\r\na2 NOOP\r\na3 NOOP\r\n", b"r12 BAD STARTTLS is only possible before login\r\n"
                                               b"r13 BAD COMPRESS is not supported\r\n"),
        same(S, b"a1 OK\r\na2 OK\r\na3 OK\r\n"),
    ],
    "IDLE": [
        same(C, b"i1 IDLE\r\n"),
        same(S, b"+ idling {3}\r\n* 4 EXISTS\r\n"),
        same(C, b"DONE\r\n"),
        same(S, b"i1 OK done\r\n"),
        (C, b"i2 IDLE\r\nDONE\r\ni3 NOOP\r\n", b"i2 IDLE\r\n", NOTHING),
        (S, b"* 5 EXISTS\r\n+ idling\r\n", b"* 5 EXISTS\r\n+ idling\r\n", NOTHING, b"DONE\r\ni3 NOOP\r\n"),
        same(S, b"* 6 EXISTS\r\ni2 OK\r\ni3 OK\r\n"),
        (C, b"i4 IDLE\r\ni5 NOOP\r\n", b"i4 IDLE\r\n", NOTHING),
        (S, b"i4 BAD no IDLE\r\n", b"i4 BAD no IDLE\r\n", NOTHING, b"i5 NOOP\r\n"),
        same(S, b"i5 OK\r\n"),
    ],
    "sync literal sent without waiting": [
        (C, b"s1 APPEND INBOX {" + L + b"}\r\n" + TRAP + b"\r\ns2 NOOP\r\n", b"s1 APPEND INBOX {" + L + b"}\r\n",
         NOTHING),
        (S, b"+ go\r\n", b"+ go\r\n", NOTHING, TRAP + b"\r\ns2 NOOP\r\n"),
        same(S, b"s1 OK\r\ns2 OK\r\n"),
        (C, b"s3 APPEND INBOX {3}\r\ns4 NOOP\r\n", b"s3 APPEND INBOX {3}\r\n", NOTHING),
        (S, b"s3 NO refused\r\n", b"s3 NO refused\r\n", NOTHING, b"s4 NOOP\r\n"),
        same(S, b"s4 OK\r\n"),
    ],
}


class Stage:
    """The two ends of a relayed session, held by the test: the script of the store only hands its peer over."""

    def __init__(self):
        self.relayed = threading.Event()
        self.over = threading.Event()
        self.store = Store(self._script)
        self.peer = None

    def _script(self, peer):
        peer.log_in()
        self.peer = peer
        self.relayed.set()
        self.over.wait(PATIENCE_SECONDS)

    def open(self, proxy, client_cut, store_cut, first=b""):
        self.relayed.clear()
        self.over.clear()
        wire = proxy.wire(cut=client_cut)
        wire.send(b"in LOGIN alice " + PASSWORD.encode() + b"\r\n" + first)
        assert wire.read_tagged(b"in").startswith(b"in OK ")
        assert self.relayed.wait(PATIENCE_SECONDS)
        self.peer.cut = store_cut
        return wire

    def close(self, wire):
        """Nothing but the end may come now, at both ends."""
        wire.send(b"last LOGOUT\r\n")
        assert self.peer.line() == b"last LOGOUT\r\n"
        self.peer.send(b"* BYE bye\r\nlast OK bye\r\n")
        assert wire.read_line() + wire.read_line() == b"* BYE bye\r\nlast OK bye\r\n"
        self.over.set()
        assert wire.read_to_end() == b""
        wire.close()


@pytest.fixture(scope="module")
def stage():
    one = Stage()
    with one.store:
        yield one


@pytest.fixture(scope="module")
def calm_store():
    with Store() as store:
        yield store


@pytest.fixture(scope="module")
def proxy(start, stage, calm_store):
    return start(shard("store", stage.store.port) + shard("calm", calm_store.port), routes={"bob": "calm"}, workers=1)


@pytest.fixture(scope="module")
def lockstep(proxy):
    """
    Cutting: each byte alone, and a neighbour on the same worker has its NOOP answered in between: the worker's loop
    has turned, so it has read the byte.
    """
    turn = threading.Lock()
    with proxy.logged_in("bob") as neighbour:
        def cut(data):
            for piece in single_bytes(data):
                yield piece
                with turn:
                    neighbour.command(b"NOOP")
        yield cut


@pytest.fixture
def cuts(request, lockstep):
    """How the client and the store send."""
    return [lockstep if cut == LOCKSTEP else cut for cut in request.param]


@pytest.mark.parametrize("name", TRANSCRIPTS)
@in_all_cuts
def test_transcript(stage, proxy, name, cuts):
    wire = stage.open(proxy, *cuts)
    for who, data, arrives, answer, *released in TRANSCRIPTS[name]:
        if who == C:
            wire.send(data)
            assert stage.peer.exactly(len(arrives)) == arrives
            assert wire.read_exactly(len(answer)) == answer
        else:
            stage.peer.send(data)
            assert wire.read_exactly(len(arrives)) == arrives
            held = b"".join(released)
            assert stage.peer.exactly(len(held)) == held
    stage.close(wire)


@in_all_cuts
def test_commands_behind_the_login(stage, proxy, cuts):
    """Pipelined behind the login: relayed in order, the refused ones answered."""
    behind = (b"p1 APPEND INBOX {" + L + b"+}\r\n" + TRAP + b"\r\np2 STARTTLS\r\np3 SELECT {5+}\r\nINBOX\r\n"
              b"p4 IDLE\r\nDONE\r\n")
    wire = stage.open(proxy, *cuts, first=behind)
    expected = behind.replace(b"\r\np2 STARTTLS\r\np3", b"\r\np3")[:-len(b"DONE\r\n")]
    assert stage.peer.exactly(len(expected)) == expected
    answer = b"p2 BAD STARTTLS is only possible before login\r\n"
    assert wire.read_exactly(len(answer)) == answer
    stage.peer.send(b"p1 OK\r\np3 OK\r\n+ idling\r\n")
    assert stage.peer.exactly(6) == b"DONE\r\n"
    stage.peer.send(b"p4 OK\r\n")
    rest = b"p1 OK\r\np3 OK\r\n+ idling\r\np4 OK\r\n"
    assert wire.read_exactly(len(rest)) == rest
    stage.close(wire)


REFUSAL = re.compile(rb"q\d+ BAD COMPRESS is not supported\r\n")


@in_all_cuts
def test_both_ways_at_once(stage, proxy, cuts):
    """Neither side waits for the other. The proxy's refusals stand between responses, never within one."""
    rounds = 30
    response = b"* 1 FETCH (BODY[] {" + L + b"}\r\n" + TRAP + b" FLAGS (\\Seen))\r\n"
    listed, seen = b"* CAPABILITY " + LIST + b"\r\n", b"* CAPABILITY " + SEEN + b"\r\n"
    boundaries, at = {0}, 0
    for _ in range(rounds):
        for part in (response, seen):
            at += len(part)
            boundaries.add(at)
    passed = b"w APPEND INBOX {" + L + b"+}\r\n" + TRAP + b"\r\n"
    wire = stage.open(proxy, *cuts)
    arrived = []
    threads = [threading.Thread(target=wire.send, args=(b"".join(passed + b"q%d COMPRESS DEFLATE\r\n" % number
                                                                 for number in range(rounds)),)),
               threading.Thread(target=stage.peer.send, args=((response + listed) * rounds,)),
               threading.Thread(target=lambda: arrived.append(stage.peer.exactly(len(passed) * rounds)))]
    for thread in threads:
        thread.start()
    refusals = b"".join(b"q%d BAD COMPRESS is not supported\r\n" % number for number in range(rounds))
    received = wire.read_exactly(at + len(refusals))
    for thread in threads:
        thread.join()
    assert arrived == [passed * rounds]
    found = list(REFUSAL.finditer(received))
    assert b"".join(match.group() for match in found) == refusals
    assert REFUSAL.sub(b"", received) == (response + seen) * rounds
    inserted = 0
    for match in found:
        assert match.start() - inserted in boundaries
        inserted += len(match.group())
    stage.close(wire)
