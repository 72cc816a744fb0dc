"""
Stores that say what they must not, when they must not. The client gets an answer in any case, and soon; what passes to
it after the login is what the store said; and nobody else notices. How a run is repeated or made longer: hostile.py.
"""
import contextlib
import queue
import ssl
import threading
import time

import pytest

import hostile
import mutate
from host import KEEPS
from stage import CAPABILITIES, PASSWORD, PATIENCE_SECONDS, Gone, Store, good, reset, shard

SHARD = "connect_timeout = 1s login_timeout = 1s slow_start = 0s drain_time = 0s"
ANSWER_SECONDS = 6  # both time-outs, and what a busy machine may take
TRICKLE_SECONDS = 0.03
LOST = b"* BYE [UNAVAILABLE] The connection to the mail store was lost.\r\n"
HEAR, START_TLS = object(), object()  # steps between what is said: wait for a word, and for TLS

GREETING = b"* OK [CAPABILITY " + CAPABILITIES + b"] hi\r\n"
LOGGED_IN = b"* ID NIL\r\nI OK done\r\nL OK [CAPABILITY " + CAPABILITIES + b"] Logged in\r\n"
LISTED = b"* CAPABILITY " + CAPABILITIES + b"\r\nC OK done\r\n"
LOGINS = {
    "none": [[GREETING, HEAR, LOGGED_IN],
             [b"* OK hi\r\n", HEAR, LISTED, HEAR, LOGGED_IN],
             [b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n", HEAR, b"+ \r\n", HEAR, b"L OK in\r\n", HEAR, LISTED],
             [b"* OK [CAPABILITY IMAP4rev1] hi\r\n", HEAR, b"* OK [ALERT] full\r\nL OK [CAPABILITY IMAP4rev1] in\r\n"],
             [GREETING, HEAR, b"L NO [AUTHENTICATIONFAILED] no\r\n"]],
    "starttls": [[b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hi\r\n", HEAR, b"S OK go\r\n", START_TLS, HEAR,
                  LISTED, HEAR, LOGGED_IN],
                 [b"* OK hi\r\n", HEAR, b"* CAPABILITY STARTTLS\r\nC OK done\r\n", HEAR, b"S OK go\r\n", START_TLS,
                  HEAR, LISTED, HEAR, LOGGED_IN]],
    "implicit": [[START_TLS, GREETING, HEAR, LOGGED_IN]],
}
SPECIALS = [b"", b"* PREAUTH hi\r\n", b"* BYE no\r\n", b"+ go\r\n", b"S NO no\r\n", b"L NO [LIMIT] no\r\n",
            b"L BAD what\r\n", b"L NO " + b"x" * 70_000 + b"\r\n", b"x" * 70_000, b"* OK still here\r\n" * 20_000,
            b"\0" * 100 + b"\r\n",
            b"* CAPABILITY {3}\r\nabc\r\n", b"* CAPABILITY " + b"X-Y " * 10_000 + b"\r\n", b"\x16\x03\x01\x02\x00\x01",
            b"* OK [ALERT] " + b"x" * 5_000 + b"\r\n", b"* 1 FETCH (BODY[] {100000}\r\n" + b"x" * 100_002 + b"\r\n",
            b"* ID {99999999999999999999}\r\n", b"L OK [CAPABILITY " + b"X" * 20_000 + b"] in\r\n",
            b"L OK [CAPABILITY IMAP4rev1] " + b"x" * 60_000 + b"\r\n", b"* X {30}\r\n"]


class Actor:
    """The store of one user. It plays `part(peer)` for the next connection, and is a good one, in clear, for others."""

    def __init__(self, user, tls, certificate):
        self.user, self.tls = user, tls
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*certificate)
        self.part = None

    def __call__(self, peer):
        part, self.part = self.part, None
        with contextlib.suppress(OSError, ValueError):  # the proxy may well have gone
            (part or good)(peer)

    def play(self, peer, steps, source):
        """Says and waits; each time what is said comes in other pieces."""
        for step in steps:
            if step is START_TLS:
                peer.socket = self.context.wrap_socket(peer.socket, server_side=True)
            elif step is HEAR:
                if not peer.socket.recv(65536):
                    raise Gone
            else:
                trickles = len(step) < 40 and source.random() < 0.1
                for piece in mutate.cut(source, step):
                    peer.socket.sendall(piece)
                    if trickles:
                        time.sleep(TRICKLE_SECONDS)  # the pace is what is tested


def end(peer, source):
    """The connection's end: by the store, or, when it hangs, by the proxy."""
    how = source.choice(("close", "close", "reset", "hang" if source.random() < 0.2 else "close"))
    if how == "hang":
        peer.wait_for_end()
    if how == "reset":
        reset(peer.socket)


class Theatre:
    """A proxy before the stores of several users, of which each exchange takes one; "bob" has a calm one."""

    def __init__(self, start, stack, certificate, kinds, **options):
        actors = [Actor(f"user{number}", tls, certificate) for number, tls in enumerate(kinds)]
        stores = {actor: stack.enter_context(Store(actor)) for actor in actors}
        calm = stack.enter_context(Store(hostile.calm))
        shards = "".join(shard(actor.user, store.port, tls=actor.tls, more=SHARD) for actor, store in stores.items())
        self.proxy = start(shards + shard("store", calm.port), users=["bob"] + [actor.user for actor in actors],
                           routes={actor.user: actor.user for actor in actors}, workers=2,
                           more="session { linger_timeout = 2s }\n", **options)
        self.free = queue.SimpleQueue()
        for actor in actors:
            self.free.put(actor)

    @contextlib.contextmanager
    def actor(self, part):
        """One that nobody else has; it plays this part."""
        actor = self.free.get()
        actor.part = lambda peer: part(actor, peer)
        try:
            yield actor
        finally:
            self.free.put(actor)

    def log_in(self, actor):
        """A connection on which the login has been answered: with OK (True), or NO."""
        wire, begun = self.proxy.wire(), time.monotonic()
        wire.send(b"in LOGIN %s %s\r\n" % (actor.user.encode(), PASSWORD.encode()))
        *before, answer, _ = wire.read_tagged(b"in").split(b"\n")  # a bare CR ends no line
        assert time.monotonic() < begun + ANSWER_SECONDS
        assert answer.startswith((b"in OK [CAPABILITY ", b"in NO ["))
        assert all(line.upper().startswith(b"* OK [ALERT]") for line in before), before
        return wire, answer.startswith(b"in OK")


@pytest.fixture(scope="module")
def theatre(start, certificate):
    with contextlib.ExitStack() as stack:
        yield Theatre(start, stack, certificate, ("none", "none", "starttls", "implicit"))


def spoil(source, steps):
    """The steps with one thing that is said made worse; perhaps nothing is said after that."""
    steps = list(steps)
    at = source.choice([number for number, step in enumerate(steps) if isinstance(step, bytes)])
    how = source.random()
    if how < 0.5:
        steps[at] = mutate.mutated(source, steps[at])
    else:
        worse = source.choice(SPECIALS) if how < 0.8 else mutate.garbage(source)
        steps[at] = source.choice((worse, worse + steps[at], steps[at] + worse))
    return steps if source.random() < 0.7 else steps[:at + 1]


def test_every_login_is_answered(theatre):
    def exchange(source):
        def part(actor, peer):
            actor.play(peer, spoil(source, source.choice(LOGINS[actor.tls])), source)
            end(peer, source)

        with theatre.actor(part) as actor:
            wire, _ = theatre.log_in(actor)
            wire.close()
    hostile.run_batches(theatre.proxy, "bob", exchange)


# After the login

def filtered(words):
    """As caps_rewrite does it."""
    return [word for word in dict.fromkeys(words)
            if not word.startswith((b"STARTTLS", b"AUTH=", b"SASL-IR", b"COMPRESS="))]


def capability_lines(source):
    """A line with a list, and what the client gets of it."""
    words = source.choices([b"IMAP4rev1", b"IDLE", b"STARTTLS", b"AUTH=X", b"SASL-IR", b"COMPRESS=X", b"X-1", b"x-2"],
                           k=source.choice((1, 3, 10, 800)))
    before, behind = source.choice(((b"* CAPABILITY ", b""), (b"* OK [CAPABILITY ", b"] {3}"),
                                    (b"q7 OK [CAPABILITY ", b"]")))
    return (before + source.choice((b" ", b"  ")).join(words) + behind + b"\r\n",
            before + b" ".join(filtered(words)) + behind + b"\r\n")


def response(source):
    """What a store says, and what the client gets of it."""
    if source.random() < 0.2:
        return capability_lines(source)
    octets = mutate.garbage(source, source.choice((0, 5, 100, 20_000)))
    line = octets.replace(b"\n", b"")
    same = source.choice((b"* 1 FETCH (BODY[] {%d}\r\n%s X ~{0}\r\n)\r\n" % (len(octets), octets),
                          b"* OK x%s {3}\r\n" % line, b"x1 NO x%s\n" % line, b"+ %s\r\n" % line, b"7 \0%s .\r\n" % line,
                          b"* LIST () \"{3}\"\r\n", b"\r\n", b"* 3 EXISTS\r\n"))
    return same, same


def test_responses_arrive_as_they_are(theatre):
    """All that the store says, but for capability lists; then, if it closes, that it is lost."""
    def exchange(source):
        responses = [response(source) for _ in range(source.randint(1, 30))]

        def part(actor, peer):
            actor.play(peer, LOGINS[actor.tls][0], source)
            actor.play(peer, [HEAR, b"".join(said for said, _ in responses)], source)

        with theatre.actor(part) as actor:
            wire, is_in = theatre.log_in(actor)
            assert is_in
            wire.send(b"open FETCH 1 BODY[]\r\n")
            received, expected = wire.read_to_end(), b"".join(arrives for _, arrives in responses)
            wire.close()
        assert received == expected + LOST, (received, expected)
    hostile.run_batches(theatre.proxy, "bob", exchange)


def test_garbage_arrives_as_it_is(theatre):
    """Whatever it is, unless the proxy ends the session or is told BYE; of capability lists nothing is sure."""
    def exchange(source):
        said = mutate.garbage(source, 3000) if source.random() < 0.5 else mutate.mutated(
            source, b"* 1 FETCH (BODY[] {4}\r\nmail)\r\n* OK [X {3}] \"\r\n+ go\r\nopen OK done\r\n* 2 EXISTS\r\n")

        def part(actor, peer):
            actor.play(peer, LOGINS[actor.tls][0], source)
            actor.play(peer, [HEAR, said], source)
            end(peer, source)

        with theatre.actor(part) as actor:
            wire, is_in = theatre.log_in(actor)
            assert is_in
            wire.send(b"open FETCH 1 BODY[]\r\n")
            wire.socket.settimeout(1)  # it may hang
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := wire.socket.recv(65536):
                    received += piece
            wire.close()
        if b"CAPABILITY" not in said.upper():
            assert (said + LOST).startswith(received) or said.startswith(received.removesuffix(LOST)), (said, received)
    hostile.run_batches(theatre.proxy, "bob", exchange)


# Parked

KEPT = [b"* OK [CAPABILITY " + KEEPS + b"] hi\r\n", HEAR, b"I OK done\r\nL OK [CAPABILITY " + KEEPS + b"] in\r\n"]


def answer_all(peer):
    """OK to whatever comes."""
    while True:
        tag, name = (peer.line().split() + [b"*", b"X"])[:2]
        peer.send(tag + b" OK " + name + b" done\r\n")


def test_parked_connections_that_talk(start, certificate):
    """The next session of the user notices nothing, but for alerts."""
    with contextlib.ExitStack() as stack:
        theatre = Theatre(start, stack, certificate, ("none",) * 4, pool="warm = 0 park_time = 1s")

        def exchange(source):
            said = source.choice((mutate.mutated(source, b"* OK still here\r\n"), mutate.garbage(source),
                                  mutate.mutated(source, b"* OK [ALERT] full\r\n"), source.choice(SPECIALS)))
            has_spoken = threading.Event()

            def part(actor, peer):
                try:
                    actor.play(peer, KEPT, source)
                    assert peer.line() == b"P NOOP\r\n"
                    actor.play(peer, [b"P OK done\r\n", said], source)
                finally:
                    has_spoken.set()
                answer_all(peer)

            with theatre.actor(part) as actor:
                first, _ = theatre.log_in(actor)
                assert first.command(b"LOGOUT", tag=b"out").endswith(b"out OK Logout completed.\r\n")
                first.close()
                assert has_spoken.wait(PATIENCE_SECONDS)
                second, is_in = theatre.log_in(actor)
                assert is_in
                # And it is not parked again: the user's next connection is a new one.
                assert second.command(b"ENABLE X", tag=b"e") == b"e OK ENABLE done\r\n"
                second.close()
        hostile.run_batches(theatre.proxy, "bob", exchange)
