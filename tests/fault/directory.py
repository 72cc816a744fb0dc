"""A directory that says what a test wants: LDAP messages (RFC 4511) taken apart and made by hand."""
import contextlib
import socket
import threading

from stage import Gone, Store

BIND, SEARCH, EXTENDED, UNBIND, ABANDON = 0x60, 0x63, 0x77, 0x42, 0x50
SUCCESS, INVALID_CREDENTIALS, UNWILLING = 0, 49, 53
SERVICE, SERVICE_PASSWORD = b"cn=imapmux,dc=example", b"service-secret"


def encoded(tag, *parts):
    """BER with a definite length; the parts follow each other."""
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes(4, "big")
    return bytes([tag, 0x84]) + size + content


def text(value, tag=0x04):
    return encoded(tag, value)


def number(value, tag=0x02):
    return encoded(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def take(data):
    """The first element of BER: its tag, its content, and what follows."""
    tag, size, start = data[0], data[1], 2
    if size & 0x80:
        start += size & 0x7f
        size = int.from_bytes(data[2:start], "big")
    return tag, data[start:start + size], data[start + size:]


def message(message_id, operation, controls=()):
    rest = [encoded(0xa0, *controls)] if controls else []
    return encoded(0x30, number(message_id), operation, *rest)


def control(oid, value=None):
    return encoded(0x30, text(oid), *([] if value is None else [text(value)]))


def result(tag, code=SUCCESS, diagnostic=b""):
    return encoded(tag, number(code, 0x0a), text(b""), text(diagnostic))


def bound(message_id, code=SUCCESS, diagnostic=b"", controls=()):
    return message(message_id, result(0x61, code, diagnostic), controls)


def found(message_id, dn=b"uid=alice,dc=example", **attributes):
    listed = [encoded(0x30, text(name.encode()), encoded(0x31, *map(text, values)))
              for name, values in attributes.items()]
    return message(message_id, encoded(0x64, text(dn), encoded(0x30, *listed)))


def referred(message_id, *urls):
    return message(message_id, encoded(0x73, *map(text, urls)))


def done(message_id, code=SUCCESS):
    return message(message_id, result(0x65, code))


def read_message(peer):
    head = peer.exactly(2)
    size = head[1]
    if size & 0x80:
        more = peer.exactly(size & 0x7f)
        head, size = head + more, int.from_bytes(more, "big")
    return head + peer.exactly(size)


class Request:
    """One message of the proxy: `kind` is its tag, `name` the DN of a bind or the base of a search."""

    def __init__(self, data):
        _, content, _ = take(data)
        _, identity, rest = take(content)
        self.id = int.from_bytes(identity, "big")
        self.kind, self.content, self.controls = take(rest)
        self.name = b""
        if self.kind == BIND:
            _, self.name, rest = take(take(self.content)[2])
            self.password = take(rest)[1]
        elif self.kind == SEARCH:
            _, self.name, _ = take(self.content)

    @property
    def is_service(self):
        return self.kind == BIND and self.name == SERVICE


class Directory(Store):
    """
    Knows alice, or whatever `users` maps DNs to. `on_connect`, `on_service`, `on_search` and `on_bind` may be replaced:
    functions of the peer (and the request), which send what they like, or raise Gone. `requests` are all that came.
    """

    def __init__(self, users=None):
        self.users = {b"uid=alice,dc=example": b"secret"} if users is None else users
        self.requests = []
        self.changed = threading.Condition()
        self.behave()
        super().__init__(self._serve)

    def behave(self):
        self.on_connect = lambda peer: None
        self.on_service = lambda peer, request: peer.send(bound(request.id))
        self.on_search = lambda peer, request: peer.send(found(request.id) + done(request.id))
        self.on_bind = self._check

    def _check(self, peer, request):
        right = self.users.get(request.name) == request.password
        peer.send(bound(request.id, SUCCESS if right else INVALID_CREDENTIALS))

    def _serve(self, peer):
        peer.socket.settimeout(None)
        self.on_connect(peer)
        while True:
            request = Request(read_message(peer))
            with self.changed:
                self.requests.append(request)
                self.changed.notify_all()
            if request.kind == UNBIND:
                return
            if request.is_service:
                self.on_service(peer, request)
            elif request.kind == BIND:
                self.on_bind(peer, request)
            elif request.kind == SEARCH:
                self.on_search(peer, request)

    def cut_off(self):
        """All connections end."""
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)

    def count(self, kind):
        with self.changed:
            return sum(request.kind == kind and not request.is_service for request in self.requests)


def hang(peer, request=None):
    """Says nothing until the proxy has closed."""
    with contextlib.suppress(OSError):
        while peer.socket.recv(65536):
            pass
    raise Gone


def close(peer, request=None):
    raise Gone
