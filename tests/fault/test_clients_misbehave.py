"""
Clients that vanish with a reset, in every phase and in random order. Afterwards the proxy serves as before, holds not
one descriptor more, and ends cleanly.
"""
import random
import socket
import ssl

import pytest

import servers
from imapwire import Wire, unverified_context
from stage import PASSWORD, PATIENCE_SECONDS, Store, reset, shard

RESETS = 200
AT_ONCE = 12
SEED = 20


def store_script(peer):
    """FETCH begins a literal that it never ends, APPEND asks for its literal, IDLE idles."""
    peer.log_in()
    while True:
        command = peer.line()
        tag, name = command.split()[:2]
        if name == b"FETCH":
            peer.send(b"* 1 FETCH (BODY[] {100000000}\r\n" + b"x" * 300_000)
            peer.wait_for_end()
        elif name == b"APPEND":
            peer.send(b"+ go\r\n")
            peer.wait_for_end()
        elif name == b"IDLE":
            peer.send(b"+ idling\r\n")
        else:
            peer.send(tag + b" OK done\r\n")


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = unverified_context().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


# Each brings a new connection to the phase it is named after, and returns the socket.

def raw(proxy, listener="plain"):
    return socket.create_connection((servers.HOST, proxy.port[listener]), timeout=PATIENCE_SECONDS)


def greeted(proxy, listener="plain"):
    return Wire(servers.HOST, proxy.port[listener], timeout=PATIENCE_SECONDS)


def before_greeting(proxy):
    return raw(proxy)


def before_tls(proxy):
    return raw(proxy, "tls")


def in_client_hello(proxy):
    connection = raw(proxy, "tls")
    connection.sendall(client_hello()[:100])
    return connection


def behind_client_hello(proxy):
    connection = raw(proxy, "tls")
    connection.sendall(client_hello())
    return connection


def in_handshake(proxy):
    connection = raw(proxy, "tls")
    connection.sendall(client_hello())
    connection.recv(1)
    return connection


def behind_starttls(proxy):
    wire = greeted(proxy, "starttls")
    wire.send(b"s STARTTLS\r\n")
    return wire.socket


def in_starttls_handshake(proxy):
    wire = greeted(proxy, "starttls")
    assert b"s OK" in wire.command(b"STARTTLS", tag=b"s")
    wire.send(client_hello()[:50])
    return wire.socket


def behind_greeting(proxy):
    return greeted(proxy).socket


def in_command(proxy):
    wire = greeted(proxy)
    wire.send(b"x NOO")
    return wire.socket


def in_login_literal(proxy):
    wire = greeted(proxy)
    wire.send(b"x LOGIN alice {6}\r\n")
    assert wire.read_line().startswith(b"+")
    wire.send(b"sec")
    return wire.socket


def in_sasl(proxy):
    wire = greeted(proxy)
    wire.send(b"x AUTHENTICATE PLAIN\r\n")
    assert wire.read_line().startswith(b"+")
    return wire.socket


def behind_login(proxy, user="alice"):
    wire = greeted(proxy)
    wire.send(f"x LOGIN {user} {PASSWORD}\r\n".encode())
    return wire.socket


def behind_login_of_other(proxy):
    return behind_login(proxy, "bob")


def behind_bad_login(proxy):
    wire = greeted(proxy)
    wire.send(b"x LOGIN alice wrong\r\n")
    return wire.socket


def behind_login_and_more(proxy):
    wire = greeted(proxy)
    wire.send(f"x LOGIN alice {PASSWORD}\r\ny FETCH 1 BODY[]\r\n".encode())
    return wire.socket


def behind_tls_login(proxy):
    wire = proxy.wire("tls")
    wire.send(f"x LOGIN bob {PASSWORD}\r\n".encode())
    return wire.socket


def in_relay(proxy):
    return proxy.logged_in().socket


def in_idle(proxy):
    wire = proxy.logged_in("bob", "tls")
    wire.send(b"i IDLE\r\n")
    assert wire.read_line() == b"+ idling\r\n"
    return wire.socket


def in_append(proxy):
    wire = proxy.logged_in()
    wire.send(b"a APPEND INBOX {100000}\r\n")
    assert wire.read_line() == b"+ go\r\n"
    wire.send(b"y" * 5000)
    return wire.socket


def behind_sync_literal(proxy):
    wire = proxy.logged_in()
    wire.send(b"a APPEND INBOX {100000}\r\n" + b"y" * 5000)
    return wire.socket


def in_fetch(proxy):
    wire = proxy.logged_in("bob")
    wire.send(b"f FETCH 1 BODY[]\r\n")
    wire.read_line()
    return wire.socket


def in_tls_fetch(proxy):
    wire = proxy.logged_in("alice", "tls")
    wire.send(b"f FETCH 1 BODY[]\r\n")
    wire.read_line()
    return wire.socket


def behind_end_of_stream(proxy):
    """Half-closed first: the proxy is just passing that on."""
    wire = proxy.logged_in()
    wire.send(b"n NOOP\r\n")
    wire.socket.shutdown(socket.SHUT_WR)
    return wire.socket


PHASES = [before_greeting, before_tls, in_client_hello, behind_client_hello, in_handshake, behind_starttls,
          in_starttls_handshake, behind_greeting, in_command, in_login_literal, in_sasl, behind_login,
          behind_login_of_other, behind_bad_login, behind_login_and_more, behind_tls_login, in_relay, in_idle,
          in_append, behind_sync_literal, in_fetch, in_tls_fetch, behind_end_of_stream]


def serves(proxy):
    for user, listener in (("alice", "plain"), ("bob", "tls"), ("alice", "starttls")):
        wire = proxy.logged_in(user, listener)
        assert wire.command(b"NOOP", tag=b"n") == b"n OK done\r\n"
        wire.close()


def sessions_are_over(proxy, count):
    return len(proxy.events("session end")) >= count


@pytest.mark.parametrize("workers", [1, 2])
def test_resets(start, workers):
    order = random.Random(SEED + workers)
    phases = PHASES * (RESETS // len(PHASES)) + order.sample(PHASES, RESETS % len(PHASES))
    order.shuffle(phases)
    with Store(store_script) as store:
        proxy = start(shard("store", store.port), workers=workers)
        serves(proxy)
        servers.wait_for(lambda: sessions_are_over(proxy, 3), "the first sessions to end")
        baseline = servers.wait_for(proxy.descriptors, "the descriptors")
        open_now = []
        for phase in phases:
            open_now.append(phase(proxy))
            if len(open_now) >= AT_ONCE:
                reset(open_now.pop(order.randrange(len(open_now))))
        while open_now:
            reset(open_now.pop(order.randrange(len(open_now))))
        serves(proxy)
        servers.wait_for(lambda: proxy.descriptors() <= baseline,
                         f"descriptors to fall to {baseline}, now {proxy.descriptors()}")
        assert proxy.stop() == 0
        store.check()


def test_stop_with_clients_in_every_phase(start):
    """An orderly stop does not wait for clients that only hang around, and resets in the middle of it harm nothing."""
    with Store(store_script) as store:
        proxy = start(shard("store", store.port), workers=2, stop_timeout="2s")
        connections = [phase(proxy) for phase in PHASES]
        proxy.process.terminate()
        for connection in connections[::2]:
            reset(connection)
        assert proxy.process.wait(PATIENCE_SECONDS) == 0
        assert proxy.stop() == 0
        for connection in connections[1::2]:
            connection.close()


def test_too_many_sessions(start):
    """Beyond max_sessions clients are told so; when others leave there is room again."""
    with Store(store_script) as store:
        proxy = start(shard("store", store.port), max_sessions=3)
        wires = [proxy.logged_in() for _ in range(3)]
        with proxy.wire() as one_more:
            assert one_more.greeting.startswith(b"* BYE [UNAVAILABLE] ")
            assert one_more.read_to_end() == b""
        reset(wires.pop().socket)

        def room():
            with proxy.wire() as wire:
                return wire.greeting.startswith(b"* OK ")
        servers.wait_for(room, "room for another session")
        for wire in wires:
            wire.close()
