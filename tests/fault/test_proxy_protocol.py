"""PROXY protocol headers, right and wrong, before clear text and before TLS."""
import socket
import struct

import pytest

import servers
from imapwire import Wire, random_chunks, single_bytes, whole
from stage import PASSWORD, PATIENCE_SECONDS, Store, shard

LISTENER = ('listener {name} {{ address = {{"127.0.0.1:{port}"}} tls = {tls} plaintext_login = yes '
            'proxy_protocol = {{{networks}}} }}\n')
LISTENERS = {"told": ("none", '"127.0.0.0/8"'), "told_tls": ("implicit", '"192.0.2.0/24", "127.0.0.1"'),
             "other": ("none", '"192.0.2.0/24"')}
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 4711, 993)
V6 = (socket.inet_pton(socket.AF_INET6, "2001:db8::7") + socket.inet_pton(socket.AF_INET6, "2001:db8::1") +
      struct.pack("!HH", 4711, 993))
TLV = b"\x02\x00\x0bexample.org" + b"\x04\x00\x00"


def v2(command, family, body):
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack("!H", len(body)) + body


GOOD = {
    "v1 TCP4": (b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 993\r\n", "203.0.113.7:4711"),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 993\r\n", "[2001:db8::7]:4711"),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", None),
    "v1 UNKNOWN with more": (b"PROXY UNKNOWN ffff:f:f:f:f:f:f:f ffff:f:f:f:f:f:f:f 65535 65535\r\n", None),
    "v2 TCP4": (v2(1, 0x11, V4), "203.0.113.7:4711"),
    "v2 TCP6": (v2(1, 0x21, V6), "[2001:db8::7]:4711"),
    "v2 TCP4 with TLVs": (v2(1, 0x11, V4 + TLV), "203.0.113.7:4711"),
    "v2 with 2 KiB of TLVs": (v2(1, 0x11, V4 + b"\x05" + struct.pack("!H", 2000) + bytes(2000)), "203.0.113.7:4711"),
    "v2 LOCAL": (v2(0, 0x00, b""), None),
    "v2 LOCAL with an address": (v2(0, 0x11, V4), None),
    "v2 UNSPEC": (v2(1, 0x00, b""), None),
}
BROKEN = {
    "no header": b"a CAPABILITY\r\nb NOOP\r\n",
    "TLS at once": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "v1 lower case": b"proxy TCP4 203.0.113.7 198.51.100.1 4711 993\r\n",
    "v1 bad address": b"PROXY TCP4 203.0.113.777 198.51.100.1 4711 993\r\n",
    "v1 wrong family": b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 993\r\n",
    "v1 port too large": b"PROXY TCP4 203.0.113.7 198.51.100.1 65536 993\r\n",
    "v1 port missing": b"PROXY TCP4 203.0.113.7 198.51.100.1 4711\r\n",
    "v1 bare LF": b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 993\n",
    "v1 NUL": b"PROXY TCP4 203.0.113.7\0 198.51.100.1 4711 993\r\n",
    "v1 too long": b"PROXY TCP4 " + b"1" * 200,
    "v1 other word": b"PROXY UNKNOWNX\r\n",
    "v1 line of spaces": b"PROXY  TCP4  203.0.113.7  198.51.100.1  4711  993\r\n",
    "v2 version 3": SIGNATURE + b"\x31\x11\x00\x0c" + V4,
    "v2 bad command": v2(2, 0x11, V4),
    "v2 too short": v2(1, 0x11, V4[:11]),
    "v2 TCP6 too short": v2(1, 0x21, V4),
    "v2 too long": v2(1, 0x11, V4 + bytes(60000)),
}


@pytest.fixture(scope="module")
def store():
    with Store() as only:
        yield only
        only.check()


@pytest.fixture(scope="module")
def proxy(start, store):
    ports = {name: servers.free_port() for name in LISTENERS}
    listeners = "".join(LISTENER.format(name=name, port=ports[name], tls=tls, networks=networks)
                        for name, (tls, networks) in LISTENERS.items())
    one = start(shard("store", store.port), more=listeners, workers=2)
    one.port.update(ports)
    return one


def connect(proxy, listener, header, cut=whole):
    """A connection that begins with `header`; the greeting is read, behind TLS where the listener wants that."""
    wire = Wire(servers.HOST, proxy.port[listener], cut=cut, greeting=False)
    wire.send(header)
    if listener == "told_tls":
        wire.start_tls()
    wire.greeting = wire.read_response()
    return wire


def event_of(proxy, name, peer, before=0):
    """The one event that tells of this peer, after the first `before` of that name."""
    def found():
        return [event for event in proxy.events(name)[before:] if event["peer"] == peer]
    servers.wait_for(found, f"event={name} of {peer}")
    assert len(found()) == 1, found()
    return found()[0]


def address_of(wire):
    return "%s:%d" % wire.socket.getsockname()


@pytest.mark.parametrize("listener", ["told", "told_tls"])
@pytest.mark.parametrize("cut", [whole, single_bytes, random_chunks(1, 9)], ids=["whole", "single", "random"])
@pytest.mark.parametrize("name", GOOD)
def test_told_address(store, proxy, listener, cut, name):
    header, address = GOOD[name]
    logins, ends = len(proxy.events("login ok")), len(proxy.events("session end"))
    with connect(proxy, listener, header, cut) as wire:
        assert wire.greeting.startswith(b"* OK [CAPABILITY IMAP4rev1 ")
        address = address or address_of(wire)
        wire.login("alice", PASSWORD)
        event_of(proxy, "login ok", address, logins)
        wire.command(b"LOGOUT", tag=b"out")
        assert wire.read_to_end() == b""
    assert event_of(proxy, "session end", address, ends)["why"] == "logout"
    told = next(line for line in store.peers[-1].heard if b" ID (" in line)
    host, port = address.rsplit(":", 1)
    assert b'"x-originating-ip" "%s"' % host.strip("[]").encode() in told
    assert b'"x-originating-port" "%s"' % port.encode() in told


def test_header_and_commands_in_one_piece(proxy):
    before = len(proxy.events("session end"))
    with Wire(servers.HOST, proxy.port["told"], greeting=False) as wire:
        wire.send(GOOD["v2 TCP4 with TLVs"][0] + f"in LOGIN alice {PASSWORD}\r\nn NOOP\r\n".encode())
        assert wire.read_line().startswith(b"* OK ")
        assert wire.read_line().startswith(b"in OK ")
        assert wire.read_line() == b"n OK NOOP done\r\n"
    event_of(proxy, "session end", "203.0.113.7:4711", before)


@pytest.mark.parametrize("listener", ["told", "told_tls"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_header(proxy, listener, name):
    """Not a byte of an answer, and the log says why."""
    before = len(proxy.events("session end"))  # a connection to the other listener may have had the same port
    with Wire(servers.HOST, proxy.port[listener], greeting=False, timeout=3) as wire:
        own = address_of(wire)
        try:
            wire.send(BROKEN[name])
        except ConnectionError:
            pass
        assert wire.read_to_end() == b""
        assert event_of(proxy, "session end", own, before)["why"] == "no valid PROXY protocol header"


def test_closed_within_header(proxy):
    before = len(proxy.events("session end"))
    with Wire(servers.HOST, proxy.port["told"], greeting=False) as wire:
        own = address_of(wire)
        wire.send(b"PROXY TCP4 203.")
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.read_to_end() == b""
    assert event_of(proxy, "session end", own, before)["why"] == "closed before the PROXY protocol header"


@pytest.mark.parametrize("header", ["v1 TCP4", "v2 TCP4"])
def test_network_that_is_not_configured(proxy, header):
    """A header from elsewhere is no header: its address is not believed, and IMAP is spoken at once."""
    with proxy.wire() as direct, Wire(servers.HOST, proxy.port["other"], timeout=PATIENCE_SECONDS) as wire:
        assert wire.greeting == direct.greeting
        if header == "v1 TCP4":
            assert wire.command(b"TCP4 203.0.113.7 198.51.100.1 4711 993", tag=b"PROXY").startswith(b"PROXY BAD ")
        else:
            wire.send(GOOD[header][0] + b"\r\n")
        wire.send(b"n NOOP\r\n")
        assert wire.read_tagged(b"n").endswith(b"n OK NOOP completed.\r\n")
        wire.login("alice", PASSWORD)
        event_of(proxy, "login ok", address_of(wire))
