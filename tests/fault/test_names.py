"""
A store known by name, whose resolver fails in every way: logins are refused in time with UNAVAILABLE, nobody else
notices, and all is well with the first good answer. The proxy has a network of its own, with a resolver of ours on
port 53, and its own view of /etc/resolv.conf.
"""
import contextlib
import re
import socket
import struct
import threading
import time

import pytest

import network
import servers
from stage import PASSWORD, PATIENCE_SECONDS, Proxy, Store, shard

NAME = "store.test"
RESOLV_CONF = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
TYPE_A = 1
SERVFAIL, NXDOMAIN = 2, 3
UNAVAILABLE = re.compile(rb"in NO \[UNAVAILABLE\] [^\r\n]*\r\n\Z")
REFUSED_SECONDS = 6
CROWD = 48  # more than there are threads to look up names


class Resolver(threading.Thread):
    """
    Answers each question as `behave(question)` says: with bytes, or not at all. `asked` counts the questions. To be
    made in the network where it shall answer.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.behave, self.asked = well, 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        self.start()

    def run(self):
        while True:
            question, sender = self.socket.recvfrom(4096)
            if not question:  # closed
                return
            self.asked += 1
            answer = self.behave(question)
            if answer:
                self.socket.sendto(answer, sender)

    def close(self):
        with contextlib.suppress(OSError):  # it is not connected, but wakes up
            self.socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self.socket.close()


def reply(question, code=0, records=(), flags=0x8180):
    """RFC 1035: the header with our flags and counts, the question as it was, the records."""
    end = question.index(b"\0", 12) + 5
    header = question[:2] + struct.pack("!5H", flags | code, 1, len(records), 0, 0)
    return header + question[12:end] + b"".join(records)


def well(question):
    """127.0.0.1, and no IPv6; other names are not known. Nothing is to be kept."""
    end = question.index(b"\0", 12) + 1
    if question[12:end] != b"\x05store\x04test\0":
        return reply(question, NXDOMAIN)
    kind = struct.unpack("!H", question[end:end + 2])[0]
    address = b"\xc0\x0c" + struct.pack("!HHIH", TYPE_A, 1, 0, 4) + socket.inet_aton("127.0.0.1")
    return reply(question, records=[address] if kind == TYPE_A else [])


def servfail(question):
    return reply(question, SERVFAIL)


def nxdomain(question):
    return reply(question, NXDOMAIN)


def nothing_there(question):
    return reply(question)


def silent(_):
    return None


def garbage(question):
    return question[:2] + b"\xff" * 40


def truncated(question):
    """To be asked again over TCP, where nobody listens."""
    return reply(question, flags=0x8380)


FAILURES = [servfail, nxdomain, nothing_there, silent, garbage, truncated]


class Renamed(Proxy):
    """imapmux with its own /etc/resolv.conf."""

    def command(self):
        own = self.folder / "resolv.conf"
        own.write_text(RESOLV_CONF)
        return ["unshare", "--mount", "sh", "-c", f"mount --bind {own} /etc/resolv.conf && exec " +
                " ".join(super().command())]


class Linked(Proxy):
    """The release build, whose /etc/resolv.conf is a link to a folder that nothing else leads to."""

    def prepare(self, elsewhere, **options):
        self.elsewhere = elsewhere
        super().prepare(binary=servers.REPOSITORY / "build/imapmux", **options)

    def command(self):
        own, etc = self.elsewhere / "resolv.conf", self.folder / "etc"
        own.write_text(RESOLV_CONF + "search test\n")
        return ["unshare", "--mount", "sh", "-c", f"cp -a /etc {etc} && ln -sf {own} {etc}/resolv.conf && "
                f"mount --bind {etc} /etc && exec " + " ".join(super().command())]


@pytest.fixture(scope="module")
def home():
    network.needed()
    with network.Namespace() as namespace:
        yield namespace


@pytest.fixture(scope="module")
def resolver(home):
    with home.inside():
        resolver = Resolver()
    yield resolver
    resolver.close()


@pytest.fixture(scope="module")
def proxy(home, resolver, folder, certificate):
    limits = "connect_timeout = 2s login_timeout = 2s"
    with home.inside(), Store() as store:
        shards = (shard("store", store.port, host=NAME, more=limits) + shard("numeric", store.port, more=limits) +
                  shard("second", store.port, host='lost.test:143", "127.0.0.1', more=limits))
        proxy = Renamed(folder / "names", shards=shards, certificate=certificate, users=("alice", "bob", "carol"),
                        routes={"bob": "numeric", "carol": "second"})
        yield proxy
        proxy.stop()


@pytest.fixture(autouse=True)
def well_again(resolver):
    yield
    resolver.behave = well


def login(wire, user="alice"):
    return wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")


@pytest.mark.parametrize("how", FAILURES, ids=lambda how: how.__name__)
def test_resolver_fails(home, proxy, resolver, how):
    with home.inside(), proxy.logged_in("bob") as neighbour, proxy.wire() as wire:
        resolver.behave = how
        asked, told, started = resolver.asked, len(proxy.events("login refused")), time.monotonic()
        assert UNAVAILABLE.search(login(wire))
        assert time.monotonic() - started < REFUSED_SECONDS and resolver.asked > asked
        servers.wait_for(lambda: len(proxy.events("login refused")) > told, "the log to say so")
        assert "resolve" in proxy.events("login refused")[-1]["detail"]
        assert b"OK NOOP" in neighbour.command(b"NOOP")
        resolver.behave = well
        assert b"in OK" in login(wire)


def test_a_resolv_conf_that_is_kept_elsewhere(home, resolver, folder, certificate, tmp_path):
    """As some of those who manage the net keep it: the sandbox lets it be read."""
    with home.inside(), Store() as store:
        named = shard("store", store.port, host=NAME.removesuffix(".test"))
        with Linked(folder / "linked", shards=named, certificate=certificate, elsewhere=tmp_path) as proxy, \
                proxy.wire() as wire:
            assert proxy.events("sandbox")[0]["detail"] == "system calls and files are limited"
            assert b"in OK" in login(wire)


def test_next_address_when_a_name_is_unknown(home, proxy):
    with home.inside(), proxy.wire() as wire:
        assert b"in OK" in login(wire, "carol")


def test_many_wait_for_a_silent_resolver(home, proxy, resolver):
    """They take all threads that may look up names; passwords are still checked, and bob gets in meanwhile."""
    resolver.behave = silent
    with home.inside(), contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(proxy.wire(timeout=PATIENCE_SECONDS)) for _ in range(CROWD)]
        asked = resolver.asked
        for wire in waiting:
            wire.send(f"in LOGIN alice {PASSWORD}\r\n".encode())
        servers.wait_for(lambda: resolver.asked > asked, "the resolver to be asked")
        started = time.monotonic()
        proxy.logged_in("bob").close()
        assert time.monotonic() - started < 1
        for wire in waiting:
            assert UNAVAILABLE.search(wire.read_tagged(b"in"))
        resolver.behave = well
        assert b"in OK" in login(waiting[0])
