"""
Networks that lose, delay, double and reorder packets, or are cut in the middle. Client, store, directory and Redis each
live in a network of their own, with a line to the proxy's. What they say must come through exactly; a cut must be
noticed in the configured time and harm nobody else; and when it is healed all must be as before.
"""
import contextlib
import random
import re
import threading
import time

import pytest

import network
import servers
from crowd import wait_for_metrics
from imapwire import Sync, Wire
from stage import PASSWORD, Proxy, Store, directory_and_redis, good, shard

PEERS = ("client", "store", "directory", "redis")
LIMIT = "1500ms"
SIZE = 96 * 1024
MIDDLE_SIZE = 1024 * 1024
HEALED_SECONDS = 15
RETRANSMITTED = 3  # packets that met the cut: somebody has tried again
UNAVAILABLE = re.compile(rb"in NO \[UNAVAILABLE\] [^\r\n]*\r\n\Z")
KEEP_ALIVE = "tcp { keep_alive = 1s user_timeout = 2s }"
NOTICED_SECONDS = (1, 8)

BAD = {
    "loss": {"loss": 0.05, "delay": 0.005},
    "far": {"delay": 0.1, "jitter": 0.04},
    "disorder": {"doubled": 0.2, "jitter": 0.01},
}


@pytest.fixture(scope="module")
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def nets(stack):
    """The proxy's network, and `lines` by peer with the network at their far end."""
    network.needed()
    return Nets(stack)


class Nets:
    def __init__(self, stack):
        self.proxy = stack.enter_context(network.Namespace())
        self.peers = {name: stack.enter_context(network.Namespace()) for name in PEERS}
        self.lines = {name: stack.enter_context(network.Line(self.proxy, peer)) for name, peer in self.peers.items()}

    def start(self, name, server, *arguments, **options):
        """A server at the far end of its line."""
        with self.peers[name].inside():
            return server(*arguments, host=self.lines[name].far, **options)

    def wire(self, proxy, listener="tls", **options):
        """A client at the far end of its line."""
        with self.peers["client"].inside():
            tls = {"plain": None, "starttls": "starttls", "tls": "implicit"}[listener]
            return Wire(self.lines["client"].near, proxy.port[listener], tls=tls, **options)


@pytest.fixture(autouse=True)
def heal(nets):
    yield
    for line in nets.lines.values():
        line.good()


class Site:
    """
    Real servers far away. Bob is different: his store is near the proxy, and so is he.
    """

    def __init__(self, stack, nets, folder, certificate):
        self.nets = nets
        users = {"alice": PASSWORD, "bob": PASSWORD}
        enter = stack.enter_context
        slapd = enter(nets.start("directory", servers.Slapd, folder / "network-slapd", users=users))
        redis = enter(nets.start("redis", servers.Redis, folder / "network-redis"))
        dovecot = enter(nets.start("store", servers.Dovecot, folder / "network-dovecot", users=users))
        with nets.peers["redis"].inside():
            redis.route({"alice": "far", "bob": "near"})
        with nets.proxy.inside():
            near = enter(Store())
            shards = shard("far", dovecot.port, host=dovecot.host) + shard("near", near.port)
            sources = directory_and_redis(slapd.uri.removeprefix("ldap://"), redis.address, LIMIT)
            self.proxy = Proxy(folder / "network-proxy", host="0.0.0.0", shards=shards, certificate=certificate,
                               sources=sources)
        stack.callback(self.proxy.stop)

    def logged_in(self):
        wire = self.nets.wire(self.proxy)
        wire.login("alice", PASSWORD)
        return wire

    def bob(self):
        with self.nets.proxy.inside():
            return self.proxy.logged_in("bob")


@pytest.fixture(scope="module")
def site(stack, nets, folder, certificate):
    return Site(stack, nets, folder, certificate)


def mail(size, seed):
    """Lines of hexadecimal digits, so many octets in all, none like another."""
    digits = random.Random(seed).randbytes(size // 2).hex().encode()
    lines = b"".join(digits[at:at + 70] + b"\r\n" for at in range(0, len(digits), 70))
    return b"Subject: test\r\n\r\n" + lines[:size - 19] + b"\r\n"


def append(wire, content):
    answer = wire.command(b"APPEND INBOX ", Sync(content), tag=b"a")
    assert re.search(rb"^a OK ", answer, re.MULTILINE), answer


def fetch_last(wire):
    """What the newest mail is, by way of FETCH."""
    assert b"s OK" in wire.command(b"SELECT INBOX", tag=b"s")
    wire.send(b"f FETCH * BODY.PEEK[]\r\n")
    return taken_from(wire.read_until(lambda response: response.startswith(b"f ")))


def taken_from(response):
    header = re.match(rb"\* \d+ FETCH \([^{]*\{(\d+)\}\r\n", response)
    assert header and re.search(rb"^f OK [^\r\n]*\r\n\Z", response, re.MULTILINE), response[-300:]
    return response[header.end():header.end() + int(header.group(1))]


@pytest.mark.parametrize("how", BAD)
def test_bad_lines(site, nets, how):
    """All lines at once; TLS from the client, LDAP, Redis, the store: all comes through, to the octet."""
    for line in nets.lines.values():
        line.bad(**BAD[how])
    content = mail(SIZE, how)
    with site.logged_in() as wire:
        append(wire, content)
        assert fetch_last(wire) == content
        assert b"o OK" in wire.command(b"LOGOUT", tag=b"o")


# A cut in the middle

class Cut:
    """Cuts a line while bytes are under way: when half of them are through, until somebody has tried again."""

    def __init__(self, line, size, neighbour):
        self.line, self.size, self.neighbour = line, size, neighbour
        self.failure = None
        line.good()
        line.bad(delay=0.01)  # else all of it might be in the kernels' buffers at once
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            servers.wait_for(lambda: self.line.carried > self.size / 2, "half of it to be carried")
            self.line.bad(is_cut=True)
            servers.wait_for(lambda: self.line.dropped >= RETRANSMITTED, "packets to be lost")
            assert b"OK NOOP" in self.neighbour.command(b"NOOP")
            self.line.good()
        except Exception as failure:
            self.failure = failure
            self.line.good()

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.thread.join()
        if self.failure:
            raise self.failure


@pytest.mark.parametrize("name", ["client", "store"])
def test_cut_in_the_middle(site, nets, name):
    """Of an APPEND, then of a FETCH. TCP makes up for it, and the proxy adds and takes nothing."""
    content = mail(MIDDLE_SIZE, name)
    with site.bob() as neighbour, site.logged_in() as wire:
        with Cut(nets.lines[name], len(content), neighbour):
            append(wire, content)
        with Cut(nets.lines[name], len(content), neighbour):
            assert fetch_last(wire) == content


def login_answer(wire):
    return wire.command(b"LOGIN alice " + PASSWORD.encode(), tag=b"in")


@pytest.mark.parametrize("name", ["directory", "redis"])
def test_source_cut_off(site, nets, name):
    """Nobody is refused for good, and none whose route is known; who is logged in goes on; all is well soon after."""
    with site.bob() as neighbour, site.logged_in(), nets.wire(site.proxy) as wire:
        nets.lines[name].bad(is_cut=True)
        started = time.monotonic()
        answer = login_answer(wire)
        assert b"in OK" in answer if name == "redis" else UNAVAILABLE.search(answer)
        assert time.monotonic() - started < 8
        assert b"OK NOOP" in neighbour.command(b"NOOP")
        nets.lines[name].good()
    with nets.wire(site.proxy) as wire:
        servers.wait_for(lambda: b"in OK" in login_answer(wire), "logins to work", HEALED_SECONDS)


# A cut for good: tcp.keep_alive, tcp.user_timeout

class Silent:
    """A store that answers FETCH with the start of a literal, and goes on for as long as there is room."""

    def __call__(self, peer):
        peer.log_in()
        while True:
            tag, name = peer.command().split()[:2]
            if name == b"FETCH":
                peer.send(b"* 1 FETCH (BODY[] {100000000}\r\n")
                while True:
                    peer.send(b"x" * 65536)
            peer.send(tag + b" OK done\r\n")


@pytest.fixture(scope="module")
def watchful(stack, nets, folder, certificate):
    """A proxy with short time limits for TCP; alice's store is far away, bob's is near."""
    with nets.peers["store"].inside():
        far = stack.enter_context(Store(Silent(), host=nets.lines["store"].far))
    with nets.proxy.inside():
        near = stack.enter_context(Store(good))
        shards = shard("far", far.port, host=nets.lines["store"].far) + shard("store", near.port)
        proxy = Proxy(folder / "network-watchful", host="0.0.0.0", shards=shards, certificate=certificate,
                      routes={"alice": "far"}, more=KEEP_ALIVE)
    stack.callback(proxy.stop)
    return proxy


def check_time(started):
    least, most = NOTICED_SECONDS
    assert least < time.monotonic() - started < most


def test_clients_that_vanish(watchful, nets):
    """One rests, and one is sent more than it acknowledges; both are given up, and so are their stores' connections."""
    with nets.proxy.inside():
        near = watchful.logged_in("bob")
    wires = [nets.wire(watchful, "plain") for _ in range(2)]
    for wire in wires:
        wire.login("alice", PASSWORD)
    wires[1].send(b"f FETCH 1 BODY[]\r\n")
    wires[1].read_line()
    nets.lines["client"].wait_for_rest()
    nets.lines["client"].bad(is_cut=True)
    started, before = time.monotonic(), len(watchful.events("session end"))
    servers.wait_for(lambda: len(watchful.events("session end")) >= before + 2, "both to be given up")
    check_time(started)
    assert {line["why"] for line in watchful.events("session end")[before:]} == {"connection to client broke"}
    assert b"OK NOOP" in near.command(b"NOOP")
    near.close()
    wait_for_metrics(watchful, backends_open=0)


def test_stores_that_vanish(watchful, nets):
    """One session rests, one waits for an answer: both are told, in time; then the same client is served again."""
    with nets.proxy.inside():
        wires = [watchful.logged_in("alice") for _ in range(2)]
    nets.lines["store"].wait_for_rest()
    nets.lines["store"].bad(is_cut=True)
    started = time.monotonic()
    wires[1].send(b"n NOOP\r\n")
    for wire in wires:
        assert re.match(rb"\* BYE \[UNAVAILABLE\] [^\r\n]*\r\n\Z", wire.read_to_end())
    check_time(started)
    nets.lines["store"].good()
    with nets.proxy.inside(), watchful.logged_in("alice") as wire:
        assert b"OK done" in wire.command(b"NOOP")
