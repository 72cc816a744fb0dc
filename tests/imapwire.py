"""
An IMAP client for tests that hides nothing: it sends exactly the bytes it is told to, cut as it is told to, and keeps
exactly the bytes it receives. It knows only where lines and literals end.
"""
import random
import re
import socket
import ssl

LITERAL = re.compile(rb"~?\{(\d+)\}\r\n\Z")
# Human text opens no literal, even if it ends in "{3}".
FREE_TEXT = re.compile(rb"\A(\+|(\*|[^ ]+) (OK|NO|BAD|BYE|PREAUTH)\b)", re.IGNORECASE)
TIMEOUT_SECONDS = 30


class Closed(Exception):
    """The server closed the connection; `received` holds what came before that."""

    def __init__(self, received):
        super().__init__(f"connection closed after {received[-300:]!r}")
        self.received = received


class Sync:
    """A synchronizing literal in a command: its octets go after the server's `+`."""

    header = b"{%d}\r\n"

    def __init__(self, octets):
        self.octets = octets


class NonSync(Sync):
    header = b"{%d+}\r\n"


class Sync8(Sync):
    header = b"~{%d}\r\n"


class NonSync8(NonSync):
    header = b"~{%d+}\r\n"


def whole(data):
    """Cutting: not at all."""
    yield data


def single_bytes(data):
    """Cutting: each byte alone."""
    for position in range(len(data)):
        yield data[position:position + 1]


def random_chunks(seed, largest=40):
    """Cutting: pieces of 1 to `largest` bytes, the same for the same seed."""
    source = random.Random(seed)

    def cut(data):
        position = 0
        while position < len(data):
            step = source.randint(1, largest)
            yield data[position:position + step]
            position += step
    return cut


class Wire:
    """
    One connection. `tls` is None, "implicit" or "starttls"; certificates are not verified unless a context is given.
    The greeting is read. Every method that reads returns the exact bytes.
    """

    tag_form = b"t%d"

    def __init__(self, host, port, tls=None, context=None, cut=whole, timeout=TIMEOUT_SECONDS, greeting=True,
                 receive_buffer=None, source=None):
        self.cut = cut
        self.buffered = b""
        self.tag_number = 0
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.context = context or unverified_context()
        if tls == "implicit":
            self.start_tls()
        self.greeting = self.read_response() if greeting else None
        if tls == "starttls":
            answer = self.command(b"STARTTLS", tag=b"tls")
            assert b" OK" in answer, answer
            self.start_tls()

    def start_tls(self, name="localhost"):
        self.socket = self.context.wrap_socket(self.socket, server_hostname=name)

    # Sending

    def send(self, data):
        for piece in self.cut(data):
            self.socket.sendall(piece)

    def next_tag(self):
        self.tag_number += 1
        return self.tag_form % self.tag_number

    def command(self, *parts, tag=None):
        """
        Sends a command, its parts bytes or literals, with a tag before and CRLF behind; returns what came until its
        tagged answer, continuations included.
        """
        tag = tag or self.next_tag()
        received, pending = b"", tag + b" "
        for part in parts:
            if not isinstance(part, Sync):
                pending += part
                continue
            pending += part.header % len(part.octets)
            if not isinstance(part, NonSync):
                self.send(pending)
                pending = b""
                answer = self.read_until(lambda response: response[:1] == b"+" or is_tagged(response, tag))
                received += answer
                if is_tagged(last_line_start(answer), tag):
                    return received
            pending += part.octets
        self.send(pending + b"\r\n")
        return received + self.read_tagged(tag)

    def login(self, user, password):
        """Logs in and returns the tagged answer with what came before it; fails if it is no OK."""
        answer = self.command(b"LOGIN " + quoted(user) + b" " + quoted(password), tag=b"in")
        if not is_tagged(last_line_start(answer), b"in OK"):
            raise AssertionError(f"login of {user} failed: {answer!r}")
        return answer

    # Receiving

    def _receive(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise Closed(self.buffered)
        self.buffered += piece

    def _take(self, count):
        taken, self.buffered = self.buffered[:count], self.buffered[count:]
        return taken

    def read_exactly(self, count):
        pieces, missing = [self._take(count)], count
        missing -= len(pieces[0])
        while missing > 0:
            piece = self.socket.recv(min(missing, 1 << 20))
            if not piece:
                raise Closed(b"".join(pieces))
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def read_line(self):
        searched = 0
        while True:
            end = self.buffered.find(b"\n", searched)
            if end >= 0:
                return self._take(end + 1)
            searched = len(self.buffered)
            self._receive()

    def read_response(self):
        """One response: a line, or lines with the literals between them."""
        response = self.read_line()
        if FREE_TEXT.match(response):
            return response
        literal = LITERAL.search(response[-32:])
        while literal:
            octets = self.read_exactly(int(literal.group(1)))
            line = self.read_line()
            response += octets + line
            literal = LITERAL.search(line[-32:])
        return response

    def read_until(self, wanted):
        """Responses up to and including the first for which wanted(response) is true."""
        received = []
        while True:
            try:
                received.append(self.read_response())
            except Closed as end:
                raise Closed(b"".join(received) + end.received) from None
            if wanted(received[-1]):
                self.last_response = received[-1]
                return b"".join(received)

    def read_tagged(self, tag):
        return self.read_until(lambda response: is_tagged(response, tag))

    def read_to_end(self):
        """All that comes until the server closes."""
        pieces = [self._take(len(self.buffered))]
        try:
            while True:
                piece = self.socket.recv(65536)
                if not piece:
                    break
                pieces.append(piece)
        except (ConnectionResetError, ssl.SSLError):
            pass
        return b"".join(pieces)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def unverified_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_tagged(response, tag):
    return response.startswith(tag + b" ")


def last_line_start(received):
    """The last line of what was received; for what ends in a tagged answer or a `+`."""
    return received[received.rfind(b"\n", 0, len(received) - 1) + 1:]


def quoted(text):
    data = text if isinstance(text, bytes) else text.encode()
    return b'"' + data.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
