"""
A store for the tests of the pool: it keeps a record of what each connection was told and has answered, and fails where
it is told to.
"""
import collections
import contextlib
import socket
import ssl
import struct

import servers
from stage import CAPABILITIES

KEEPS = CAPABILITIES + b" UNSELECT"
RESETS = KEEPS + b" UNAUTHENTICATE"


class Host:
    """
    The script of a store that keeps a record. `answers` maps commands, with or without their tag ("P NOOP", "NOOP"),
    to what is answered instead of OK: bytes, or a function of the peer, whose connection ends after it; `at_login` maps
    peers to what is done with them instead of logging them in. While it `is_down`, connections end at once.
    """

    def __init__(self, capabilities=KEEPS, prologue=None):
        self.capabilities, self.prologue = capabilities, prologue
        self.answers, self.at_login, self.is_down = {}, {}, False
        self.greeted, self.logged_in = [], []  # peers, in order
        self.answered = collections.defaultdict(list)  # by peer: the commands whose answers have been sent

    def spares(self):
        """Connections that are greeted and wait for their first login."""
        return [peer for peer in self.greeted if peer not in self.logged_in and not has_ended(peer)]

    def __call__(self, peer):
        if self.is_down:
            return
        peer.socket.settimeout(None)  # a parked connection may well be silent for as long as the tests take
        if self.prologue:
            self.prologue(peer)
        peer.greet(self.capabilities)
        self.greeted.append(peer)
        while True:  # again after each UNAUTHENTICATE
            self._before_login(peer)
            if peer in self.at_login:
                self.at_login[peer](peer)
                return
            self.logged_in.append(peer)
            peer.send(b"L OK [CAPABILITY %s] Logged in\r\n" % self.capabilities)
            if not self._serve(peer):
                return

    def _before_login(self, peer):
        while True:
            command = peer.command()
            tag, name = command.split()[:2]
            if name in (b"LOGIN", b"AUTHENTICATE"):
                return
            untagged = b"* CAPABILITY " + self.capabilities if name == b"CAPABILITY" else b"* ID NIL"
            peer.send(untagged + b"\r\n" + tag + b" OK done\r\n")
            self.answered[peer].append(command)

    def _serve(self, peer):
        """Until the connection shall end (False), or the user is forgotten (True)."""
        while True:
            command = peer.command()
            tag, name = command.split()[:2]
            known = self.answers.get(tag + b" " + name, self.answers.get(name))
            if callable(known):
                known(peer)
                return False
            if name.upper() == b"IDLE":
                peer.send(b"+ idling\r\n")
                assert peer.line() == b"DONE\r\n"
            elif name.upper() == b"LOGOUT":
                peer.send(b"* BYE bye\r\n" + tag + b" OK bye\r\n")
                return False
            answer = tag + b" OK " + name.upper() + b" done\r\n" if known is None else known
            peer.send(answer)
            self.answered[peer].append(command)
            if name == b"UNAUTHENTICATE" and answer.startswith(b"P OK"):
                return True


def has_ended(peer):
    return peer.socket.fileno() == -1


def wait_for_end(peer):
    servers.wait_for(lambda: has_ended(peer), "the end of a connection to the store")


def heard(peer):
    return b"".join(peer.heard)


def end(peer):
    """The store ends a connection that its script reads from."""
    with contextlib.suppress(OSError):
        peer.socket.shutdown(socket.SHUT_RDWR)


def die(peer):
    pass  # the connection ends with the script


def hang(peer):
    peer.wait_for_end()


def say_bye(peer):
    peer.send(b"* BYE Autologout\r\n")


def close_with_reset(peer):
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class FirstSegment:
    """A host that keeps what comes in one piece behind its greeting, by peer, in `segments`."""

    def __init__(self, host):
        self.host, self.segments = host, {}

    def __call__(self, peer):
        greet = peer.greet

        def greet_and_receive(capabilities):
            greet(capabilities)
            self.segments[peer] = peer.buffered = peer.socket.recv(65536)
        peer.greet = greet_and_receive
        self.host(peer)


# What comes before the greeting

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def read_proxy_header(peer):
    """The header's addresses and TLVs; those within the TLV about TLS as well."""
    fixed = peer.socket.recv(16, socket.MSG_WAITALL)  # and not an octet of TLS behind it
    assert fixed[:12] == SIGNATURE and fixed[12] == 0x21 and fixed[13] == 0x11, fixed
    body = peer.socket.recv(struct.unpack("!H", fixed[14:])[0], socket.MSG_WAITALL)
    source, destination, *ports = struct.unpack("!4s4sHH", body[:12])
    peer.told = {"source": (socket.inet_ntoa(source), ports[0]),
                 "destination": (socket.inet_ntoa(destination), ports[1]), "tlvs": read_tlvs(body[12:])}


def read_tlvs(data):
    found = {}
    while data:
        kind, size = struct.unpack("!BH", data[:3])
        value, data = data[3:3 + size], data[3 + size:]
        assert len(value) == size and kind not in found
        found[kind] = value
    return found


def over_tls(certificate, kind, before=None):
    """Puts TLS around the peer, as a store does that speaks it from the start or after STARTTLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def prologue(peer):
        if before:
            before(peer)
        if kind == "starttls":
            peer.greet(b"IMAP4rev1 STARTTLS LOGINDISABLED")
            assert peer.line() == b"S STARTTLS\r\n"
            peer.send(b"S OK go\r\n")
        peer.socket = context.wrap_socket(peer.socket, server_side=True)
        if kind == "starttls":
            assert peer.line() == b"C CAPABILITY\r\n"
            peer.send(b"* CAPABILITY " + KEEPS + b"\r\nC OK done\r\n")
            peer.greet = lambda _: None  # it has greeted
    return prologue
