"""
Clients that send what looks like IMAP and is none, before and after the login. How a run is repeated or made longer:
hostile.py.
"""
import base64
import contextlib
import queue
import re
import socket
import ssl

import pytest

import hostile
import mutate
import servers
from imapwire import unverified_context
from stage import PASSWORD, PATIENCE_SECONDS, Store, reset, shard

PLAIN = base64.b64encode(b"\0alice\0" + PASSWORD.encode())
LOGIN = b"in LOGIN alice " + PASSWORD.encode() + b"\r\n"
RELAYED = (b"b1 SELECT INBOX\r\nb2 APPEND INBOX {4+}\r\nmail\r\nb3 IDLE\r\nDONE\r\nb4 FETCH 1 (BODY[])\r\n"
           b"b5 STARTTLS\r\nb6 SEARCH TEXT {3}\r\nabc\r\nb7 LOGOUT\r\n")
DIALOGUES = [
    b'a1 CAPABILITY\r\na2 ID ("name" "x" "x-proxy-ttl" "2")\r\na3 ID NIL\r\na4 NOOP\r\na5 LOGOUT\r\n',
    LOGIN + RELAYED,
    b"a1 LOGIN {5}\r\nalice {6}\r\nsecret\r\n" + RELAYED,
    b"a1 LOGIN {5+}\r\nalice \"secret\"\r\n" + RELAYED,
    b"a1 AUTHENTICATE PLAIN " + PLAIN + b"\r\n" + RELAYED,
    b"a1 AUTHENTICATE PLAIN\r\n" + PLAIN + b"\r\n" + RELAYED,
    b"a1 AUTHENTICATE LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\n" + RELAYED,
    b"a1 AUTHENTICATE PLAIN\r\n*\r\na2 AUTHENTICATE LOGIN\r\n*\r\na3 AUTHENTICATE X =\r\na4 LOGIN alice wrong\r\n",
    b"a1 STARTTLS\r\n" + LOGIN + RELAYED,
    b"a1 LOGIN {4000+}\r\n" + b"u" * 4000 + b" {4000+}\r\n" + b"p" * 4000 + b"\r\na2 LOGIN {5000}\r\n" + LOGIN,
    b"t" * 128 + b" LOGIN " + b"u" * 700 + b" x\r\na2 AUTHENTICATE LOGIN " + b"YW5u" * 5000 + b"\r\nYQ==\r\n" + LOGIN,
]
HEADERS = [b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 993\r\n", b"PROXY UNKNOWN\r\n",
           b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12), b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"]
LISTENER = ('listener told {{ address = {{"127.0.0.1:{}"}} tls = none plaintext_login = yes '
            'proxy_protocol = {{"127.0.0.1"}} }}\n')
LIMITS = "login { timeout = 2s }\nsession { linger_timeout = 2s }\n"


# Before the login

def answer_anything(peer):
    """Answers lines, whatever is in them; nobody has to wait for a "+"."""
    peer.log_in()
    while True:
        tag = (peer.line().split() + [b"*"])[0]
        peer.send(b"+ go\r\n" + tag + b" OK done\r\n")


def client_hello():
    tls = unverified_context().wrap_bio(incoming := ssl.MemoryBIO(), outgoing := ssl.MemoryBIO())
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    assert not incoming.pending
    return outgoing.read()


def opening(source, listener):
    """What comes before the dialogue in clear."""
    if listener == "told":
        header = source.choice(HEADERS)
        return header if source.random() < 0.6 else mutate.mutated(source, header)
    if listener == "tls" or source.random() < 0.2:
        hello = mutate.mutated(source, client_hello())
        return hello if listener == "tls" else b"s STARTTLS\r\n" + hello
    return b""


def speak(source, connection, data):
    """Sends, as far as anybody listens."""
    with contextlib.suppress(OSError):
        for piece in mutate.cut(source, data):
            connection.sendall(piece)


def all_that_comes(connection):
    """Until the proxy closes; None if that is a reset, which may have swallowed something."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except (ConnectionError, ssl.SSLError):
        return None
    return received


def leave(source, connection):
    """Ends the connection in one of several ways; returns what still came, if it came to an orderly end."""
    how = source.choice(("half", "half", "half", "close", "reset"))
    received = None
    if how == "half":
        with contextlib.suppress(OSError):  # it may have been reset
            connection.shutdown(socket.SHUT_WR)
        received = all_that_comes(connection)
    if how == "reset":
        reset(connection)
    connection.close()
    return received


@pytest.fixture(scope="module")
def calm_store():
    with Store(hostile.calm) as store:
        yield store
        store.check()


@pytest.fixture(scope="module")
def careless_store():
    with Store(answer_anything) as store:
        yield store
        store.check()


def test_before_login(start, careless_store, calm_store):
    told = servers.free_port()
    proxy = start(shard("store", careless_store.port) + shard("calm", calm_store.port), routes={"bob": "calm"},
                  more=LIMITS + LISTENER.format(told), workers=2)
    proxy.port["told"] = told
    context = unverified_context()

    def exchange(source):
        listener = source.choice(("plain", "plain", "starttls", "tls", "told"))
        dialogue = mutate.mutated(source, source.choice(DIALOGUES)) if source.random() < 0.8 else mutate.garbage(source)
        connection = socket.create_connection((servers.HOST, proxy.port[listener]), timeout=PATIENCE_SECONDS)
        in_tls = listener == "tls" and source.random() < 0.5
        if in_tls:
            connection = context.wrap_socket(connection, server_hostname="localhost", suppress_ragged_eofs=True)
        else:
            dialogue = opening(source, listener) + dialogue
        speak(source, connection, dialogue)
        received = leave(source, connection)
        if received and listener != "tls" and b"STARTTLS" not in dialogue.upper():
            assert received.endswith(b"\r\n"), received[-300:]
    hostile.run_batches(proxy, "bob", exchange)


# After the login

OF_THE_PROXY = b"P LOGOUT\r\n"  # when a session has ended that left nothing behind


class Recorder:
    """
    A store that keeps what it is told after the login, for each connection in turn. It says "+" to whatever comes, so
    that the proxy has nothing to hold back for long.
    """

    def __init__(self, user):
        self.user, self.heard = user, queue.SimpleQueue()

    def __call__(self, peer):
        peer.log_in()
        heard = peer.buffered
        with contextlib.suppress(OSError):
            while piece := peer.socket.recv(65536):
                heard += piece
                peer.send(b"+ go\r\n")
        self.heard.put(heard)


@pytest.fixture(scope="module")
def recorded(start, calm_store):
    """A proxy before the stores of several users, and those of them that are free."""
    recorders = [Recorder(f"user{number}") for number in range(hostile.AT_ONCE)]
    with contextlib.ExitStack() as stack:
        stores = {one.user: stack.enter_context(Store(one)) for one in recorders}
        free = queue.SimpleQueue()
        for one in recorders:
            free.put(one)
        shards = "".join(shard(user, store.port) for user, store in stores.items())
        proxy = start(shards + shard("store", calm_store.port), users=("bob", *stores),
                      routes={user: user for user in stores}, more=LIMITS, workers=2)
        yield proxy, free
        for store in stores.values():
            store.check()


def relayed(source, proxy, free, data):
    """
    Sends the data behind a login. Returns what the store has heard, what the client has, and whether the session came
    to an orderly end.
    """
    recorder = free.get()
    try:
        wire = proxy.wire()
        login = b"in LOGIN %s %s\r\n" % (recorder.user.encode(), PASSWORD.encode())
        if source.random() < 0.5:
            wire.send(login)
            login = b""
            assert wire.read_line().startswith(b"in OK ")
        speak(source, wire.socket, login + data)
        if login:
            assert wire.read_line().startswith(b"in OK ")
        received = leave(source, wire.socket)
        heard = recorder.heard.get(timeout=PATIENCE_SECONDS).removesuffix(OF_THE_PROXY)
        return heard, wire.buffered + (received or b""), received is not None
    finally:
        free.put(recorder)


NAMES = [b"NOOP", b"FETCH", b"APPEND", b"SELECT", b"SEARCH", b"LOGOUT", b"IDLED", b"STARTTLSX", b"X-NEW", b"uid"]
REFUSED = [b"STARTTLS", b"\tstarttls ", b"LOGIN a b", b"Login {3+}\r\nabc {2+}\r\nxx", b"LOGIN {4}",
           b"COMPRESS DEFLATE", b"AUTHENTICATE PLAIN {8+}\r\n\r\nx y\r\n ", b"UNAUTHENTICATE", b"compress\t{3"]


def text(source):
    """Anything that stands in a line, and opens no literal at its end."""
    longest = source.choice((0, 5, 30, 30, 200, 20_000))
    octets = bytes(octet for octet in source.randbytes(source.randint(0, longest)) if octet != 10)
    return octets + b" ."


def unit(source, number):
    """A command; and the tag of the BAD that it gets from the proxy, if it is not to pass."""
    tag = source.choice((b"t%d", b"t%d", b"a.b/c:%d", b"%d" + b"x" * 110)) % number
    kind = source.choice(("plain", "plain", "literals", "idle", "odd", "refused"))
    if kind == "refused":
        if source.random() < 0.1:
            return b"y" * 129 + b" NOOP\r\n", b"*"
        return tag + b" " + source.choice(REFUSED) + b"\r\n", tag
    if kind == "idle":
        return tag + b" IDLE\r\n" + source.choice((b"DONE", text(source), b"x {5}", b"q STARTTLS")) + b"\r\n", None
    if kind == "odd":
        return source.choice((b"\r\n", b"\n", b"(x\r\n", b"\0\r\n", b" \t\r\n", b"* BYE\r\n", b"DONE\r\n")), None
    command = tag + b" " + source.choice(NAMES)
    if kind == "plain":
        return command + b" " + text(source) + source.choice((b"\r\n", b"\n")), None
    for _ in range(source.randint(1, 3)):
        octets = mutate.garbage(source, source.choice((0, 3, 50, 5000)))
        command += b" " + source.choice((b"{%d}", b"{%d+}", b"~{%d}", b"~{%d+}")) % len(octets) + b"\r\n" + octets
    return command + b"\r\n", None


def test_what_passes_arrives_as_it_is(recorded):
    """The store hears all commands but those that are refused, not an octet more or less; the client hears of those."""
    proxy, free = recorded

    def exchange(source):
        units = [unit(source, number) for number in range(source.randint(1, 25))]
        passing = b"".join(octets for octets, refusal in units if refusal is None)
        heard, received, in_order = relayed(source, proxy, free, b"".join(octets for octets, _ in units))
        if not in_order:
            assert passing.startswith(heard), (passing, heard)
            return
        assert heard == passing, (passing, heard)
        answers = [line for line in received.splitlines(keepends=True) if line != b"+ go\r\n"]
        refusals = [refusal + b" BAD " for _, refusal in units if refusal is not None]
        assert len(answers) == len(refusals), (refusals, answers)
        assert all(answer.startswith(refusal) for answer, refusal in zip(answers, refusals)), (refusals, answers)
    hostile.run_batches(proxy, "bob", exchange)


# What the proxy may take out of a stream: commands of its own, and heads that are too long to be judged.
MAY_BE_TAKEN_OUT = re.compile(rb"STARTTLS|LOGIN|AUTHENTICATE|COMPRESS|[^ \t\r\n]{20}|[ \t\r]{20}|\{\d{18}",
                              re.IGNORECASE)


def is_subsequence(part, data):
    octets = iter(data)
    return all(octet in octets for octet in part)


def test_garbage_passes_or_is_taken_out(recorded):
    """Nothing is invented, doubled or put elsewhere; and nothing is left out that the proxy has no business with."""
    proxy, free = recorded

    def exchange(source):
        data = mutate.mutated(source, RELAYED) if source.random() < 0.5 else mutate.garbage(source, 4000)
        heard, _, in_order = relayed(source, proxy, free, data)
        assert is_subsequence(heard, data), (data, heard)
        if in_order and not MAY_BE_TAKEN_OUT.search(data):
            assert heard == data
    hostile.run_batches(proxy, "bob", exchange)
