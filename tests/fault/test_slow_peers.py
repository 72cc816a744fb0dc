"""
Peers that read slowly: what the proxy holds for them stays bounded, a neighbour on the same worker does not notice,
and every byte arrives. Size by IMAPMUX_SLOW_MIB (256 in the nightly run).
"""
import hashlib
import os
import random
import select
import socket
import threading
import time

import pytest

from imapwire import Wire
from stage import PATIENCE_SECONDS, Store, shard
import servers

MIB = 1 << 20
SIZE = int(os.environ.get("IMAPMUX_SLOW_MIB", "128")) * MIB
GROWTH_BYTES = 4 * MIB
SMALL_BUFFER = 8 * 1024
STALLED_ROUNDS = 200
NEIGHBOUR_SECONDS = 5
FLOOD_BYTES = 64 * MIB
STALL_SECONDS = 1

BLOCK = random.Random(5).randbytes(MIB)


def blocks():
    """SIZE bytes, a MiB at a time, none like another."""
    for number in range(SIZE // MIB):
        yield b"%08d" % number + BLOCK[8:]


def digest_of_blocks():
    digest = hashlib.sha256()
    for block in blocks():
        digest.update(block)
    return digest.hexdigest()


class SlowWire(Wire):
    """A client whose kernel takes but little for it, so that what it does not read stays with the proxy."""

    def __init__(self, port):
        self.cut = lambda data: [data]
        self.buffered, self.tag_number = b"", 0
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect((servers.HOST, port))
        self.greeting = self.read_response()


class SlowStore:
    """Sends SIZE bytes for FETCH; for APPEND it reads nothing of the literal until `may_read` is set."""

    def __init__(self):
        self.sent = 0
        self.received = None
        self.may_read = threading.Event()

    def __call__(self, peer):
        peer.log_in()
        while True:
            command = peer.line()
            words = command.split()
            assert len(words) > 1, f"no command: {peer.heard[-3:]}, then {peer.buffered[:200]}"
            tag, name = words[:2]
            if name == b"FETCH":
                self._fetch(peer)
            elif name == b"APPEND":
                self._append(peer)
            peer.send(tag + b" OK " + name + b" done\r\n")

    def _fetch(self, peer):
        peer.send(b"* 1 FETCH (BODY[] {%d}\r\n" % SIZE)
        for block in blocks():
            peer.send(block)
            self.sent += len(block)
        peer.send(b")\r\n")

    def _append(self, peer):
        peer.send(b"+ go\r\n")
        assert self.may_read.wait(PATIENCE_SECONDS * 4)
        digest, left = hashlib.sha256(peer.buffered), SIZE - len(peer.buffered)
        peer.buffered = b""
        while left > 0:
            piece = peer.socket.recv(min(left, 65536))
            assert piece
            digest.update(piece)
            left -= len(piece)
        assert peer.line() == b"\r\n"
        self.received = digest.hexdigest()


class Neighbour:
    """A session on the same worker, that says NOOP between the steps of the test."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.wire = proxy.logged_in("bob")
        self.wire.command(b"NOOP")
        self.slowest_seconds = 0
        self.baseline = self.peak = proxy.resident_bytes()

    def step(self):
        started = time.monotonic()
        assert b" OK NOOP done\r\n" in self.wire.command(b"NOOP")
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
        self.peak = max(self.peak, self.proxy.resident_bytes())

    def check(self):
        growth = self.peak - self.baseline
        print(f"\ngrowth {growth // 1024} KiB, slowest NOOP {self.slowest_seconds * 1000:.1f} ms")
        assert self.slowest_seconds < NEIGHBOUR_SECONDS
        if not self.proxy.sanitized:
            assert growth < GROWTH_BYTES


@pytest.fixture
def script():
    return SlowStore()


@pytest.fixture
def proxy(start, script):
    with Store(script, receive_buffer=SMALL_BUFFER) as store:
        yield start(shard("store", store.port), workers=1)
        store.check()


def rounds_until_still(progress, neighbour):
    """NOOPs of the neighbour until `progress` has not changed for many of them: the back-pressure stands."""
    still, last = 0, None
    while still < STALLED_ROUNDS:
        neighbour.step()
        still, last = (still + 1, last) if progress() == last else (0, progress())


def test_client_that_reads_slowly(proxy, script):
    slow = SlowWire(proxy.port["plain"])
    slow.login("alice", "secret")
    neighbour = Neighbour(proxy)
    slow.send(b"f FETCH 1 BODY[]\r\n")
    rounds_until_still(lambda: script.sent, neighbour)
    assert script.sent < SIZE, "the store was never stopped"
    assert slow.read_line() == b"* 1 FETCH (BODY[] {%d}\r\n" % SIZE
    digest, left, steps = hashlib.sha256(), SIZE, 0
    while left > 0:
        piece = slow.read_exactly(min(left, 4096 if steps < 500 else 256 * 1024))
        digest.update(piece)
        left -= len(piece)
        steps += 1
        neighbour.step()
    assert slow.read_line() == b")\r\n"
    assert slow.read_line() == b"f OK FETCH done\r\n"
    assert digest.hexdigest() == digest_of_blocks()
    neighbour.check()


def test_store_that_reads_slowly(proxy, script):
    slow = proxy.logged_in("alice")
    neighbour = Neighbour(proxy)
    slow.send(b"a APPEND INBOX {%d}\r\n" % SIZE)
    assert slow.read_line() == b"+ go\r\n"
    slow.socket.setblocking(False)
    sent = 0
    for block in blocks():
        view = memoryview(block)
        while view:
            try:
                count = slow.socket.send(view)
            except BlockingIOError:
                if not script.may_read.is_set():
                    rounds_until_still(lambda: select.select([], [slow.socket], [], 0)[1], neighbour)
                    if select.select([], [slow.socket], [], 0)[1]:
                        continue
                    assert sent < SIZE, "the client was never stopped"
                    script.may_read.set()
                select.select([], [slow.socket], [], PATIENCE_SECONDS)
                continue
            view = view[count:]
            sent += count
        neighbour.step()
    slow.socket.settimeout(PATIENCE_SECONDS)
    assert script.may_read.is_set(), "the client was never stopped"
    slow.send(b"\r\n")
    assert slow.read_line() == b"a OK APPEND done\r\n"
    assert script.received == digest_of_blocks()
    neighbour.check()


def push_without_reading(wire, piece, proxy):
    """
    Sends `piece` again and again and reads nothing, until the proxy takes no more or closes; fails if it takes
    FLOOD_BYTES, or grows by more than GROWTH_BYTES.
    """
    base, sent, view = proxy.resident_bytes(), 0, b""
    wire.socket.setblocking(False)
    try:
        while sent < FLOOD_BYTES:
            try:
                view = view or memoryview(piece)
                count = wire.socket.send(view)
                sent, view = sent + count, view[count:]
            except BlockingIOError:
                if not select.select([], [wire.socket], [], STALL_SECONDS)[1]:
                    break
            if not proxy.sanitized:
                assert proxy.resident_bytes() - base < GROWTH_BYTES, f"after {sent} bytes"
    except ConnectionError:
        pass
    assert sent < FLOOD_BYTES, "the proxy takes without end from a client that reads nothing"


@pytest.mark.parametrize("command", [b"x STARTTLS\r\n", b"x NOOP\r\n", b"x LOGIN {3+}\r\nabc\r\n"])
def test_client_that_asks_and_never_reads(proxy, command):
    """The proxy's own answers are bounded like the store's."""
    slow = SlowWire(proxy.port["plain"])
    slow.login("alice", "secret")
    neighbour = Neighbour(proxy)
    push_without_reading(slow, command * 2000, proxy)
    neighbour.step()
    slow.close()


@pytest.mark.parametrize("command", [b"x CAPABILITY\r\n", b"x NOOP\r\n", b"x ID NIL\r\n"])
def test_client_that_never_reads_before_login(proxy, command):
    with SlowWire(proxy.port["plain"]) as slow:
        push_without_reading(slow, command * 2000, proxy)
        proxy.wait_for_event("session end")
        assert proxy.events("session end")[0]["why"] == "client does not read"
