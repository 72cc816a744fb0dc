"""
What imapmux says when a name, a password, a byte or a server is not as it should be: exact response codes, the
connection kept or closed as promised, and everything well again when the cause has gone.
"""
import base64
import contextlib
import pathlib
import re
import socket
import ssl
import threading
import types

import pytest
import servers
from conftest import PASSWORD, SHARD_PLAIN, write_proxy_conf
from imapwire import Sync, Wire, quoted, single_bytes

FAILED = rb"NO \[AUTHENTICATIONFAILED\] "
UNAVAILABLE = rb"NO \[UNAVAILABLE\] "
CONTACTADMIN = rb"NO \[CONTACTADMIN\] "
PRIVACY = rb"NO \[PRIVACYREQUIRED\] "
BAD = rb"BAD "
BYE_AFTER_BAD = re.compile(rb"\A\S+ BAD [^\r\n]*\r\n\* BYE [^\r\n]*\r\n\Z")
RECOVERY_SECONDS = 15


class FakeStore:
    """
    A store that misbehaves: `talk` gets each connection's socket in a thread of its own, which ends with the
    connection.
    """

    def __init__(self, talk):
        self.talk = talk
        self.listener = socket.create_server((servers.HOST, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            try:
                self.talk(connection)
            except OSError:
                pass

    def close(self):
        self.listener.close()


def drain(connection):
    while connection.recv(4096):
        pass


def says(*answers, then=drain):
    """A store's talk: the first answer at once, each further one after something was received; `then` what?"""
    def talk(connection):
        for number, answer in enumerate(answers):
            if number and not connection.recv(4096):
                return
            connection.sendall(answer)
        if then:
            then(connection)
    return talk


def endless(connection):
    connection.sendall(b"* OK ")
    while True:
        connection.sendall(b"x" * 4096)


# What stands behind a shard's name, and what its users hear.
GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] fake store\r\n"
MISBEHAVIOUR = {
    "hangs": says(),
    "closes": says(then=None),
    "closes-after-greeting": says(GREETING, then=None),
    "closes-in-login": says(GREETING, b"", then=None),
    "hangs-in-login": says(GREETING),
    "bye": says(b"* BYE too busy\r\n", then=None),
    "preauth": says(b"* PREAUTH [CAPABILITY IMAP4rev1] in already\r\n"),
    "no-imap": says(b"220 mail.example.org ESMTP\r\n"),
    "endless": endless,
    "binary": says(bytes(range(256)) * 40),
    "half-greeting": says(b"* OK almo"),
    "bye-in-login": says(GREETING, b"* BYE not now\r\n", then=None),
    "too-busy": says(GREETING, b"* ID NIL\r\n", *[b""] * 3),
}
PEOPLE = {name: PASSWORD for name in ("ann", "lost", "refused", "astray", "disabled", "moving", "wrongtype", "ghost")}
PEOPLE.update({name: PASSWORD for name in MISBEHAVIOUR})


def redis_routes(redis):
    redis.route({"ann": "blue", "refused": "refused", "astray": "no-such-shard", "disabled": "blue", "moving": "blue"})
    redis.route({name: name for name in MISBEHAVIOUR})
    redis.call("HSET", "imapmux:user:{disabled}", "state", "disabled")
    redis.call("HSET", "imapmux:user:{moving}", "state", "moving")
    redis.call("SET", "imapmux:user:{wrongtype}", "text")


@pytest.fixture(scope="module")
def site(folder, certificate, blue_for_failures):
    """A proxy of its own with short time limits, and servers that may be broken."""
    home = folder / "failures"
    stores = {name: FakeStore(talk) for name, talk in MISBEHAVIOUR.items()}
    limits = "connect_timeout = 700ms login_timeout = 1s }}\n"
    shard = SHARD_PLAIN.replace("}}\n", limits)
    shards = SHARD_PLAIN.format(name="blue", port=blue_for_failures.port)
    shards += shard.format(name="refused", port=servers.free_port())
    shards += "".join(shard.format(name=name, port=store.port) for name, store in stores.items())
    shards += "login { timeout = 2s }\n"
    with servers.Slapd(home / "slapd", users=PEOPLE) as slapd, servers.Redis(home / "redis") as redis:
        redis_routes(redis)
        text, ports = write_proxy_conf(*certificate, slapd.uri, redis.address, shards)
        proxy = servers.Imapmux(home / "imapmux", configuration=text, ports=list(ports.values()))
        yield types.SimpleNamespace(slapd=slapd, redis=redis, proxy=proxy, ports=ports)
        proxy.stop()
    for store in stores.values():
        store.close()


@pytest.fixture(scope="module")
def blue_for_failures(folder, certificate):
    with servers.Dovecot(folder / "failures-blue", users=PEOPLE, certificate=certificate) as server:
        yield server


@pytest.fixture
def wire(site):
    with Wire(servers.HOST, site.ports["plain"]) as connection:
        yield connection


def expect(answer, pattern, tag=b"x"):
    """The answer ends in one tagged line that begins with the pattern."""
    last = answer.rstrip(b"\r\n").rsplit(b"\r\n", 1)[-1]
    assert re.match(re.escape(tag) + b" (?:" + pattern + b")", last), answer
    assert answer.endswith(b"\r\n")


def login(wire, user, password=PASSWORD):
    return wire.command(b"LOGIN " + quoted(user) + b" " + quoted(password), tag=b"x")


def plain(user, password=PASSWORD, authorize=""):
    fields = [text if isinstance(text, bytes) else text.encode() for text in (authorize, user, password)]
    return base64.b64encode(b"\0".join(fields))


def authenticate(wire, response):
    return wire.command(b"AUTHENTICATE PLAIN " + response, tag=b"x")


def expect_alive(wire):
    assert b" OK" in wire.command(b"NOOP")


def expect_login_works(site):
    with Wire(servers.HOST, site.ports["plain"]) as wire:
        answer = login(wire, "ann")
        assert b"x OK " in answer, (answer, site.proxy.events("login refused")[-1:])


# Users and passwords

@pytest.mark.parametrize("user, password", [("ann", "wrong"), ("ann", ""), ("nobody", PASSWORD), ("nobody", ""),
                                            ("ann", PASSWORD + " "), ("ann", PASSWORD.upper()), ("", ""),
                                            ("", PASSWORD)])
def test_wrong_credentials(site, wire, user, password):
    expect(login(wire, user, password), FAILED)
    expect(authenticate(wire, plain(user, password)), FAILED)
    expect_alive(wire)
    expect(login(wire, "ann"), b"OK ")


def test_unknown_user_and_wrong_password_read_the_same(site, wire):
    assert login(wire, "nobody", "wrong") == login(wire, "ann", "wrong")


HOSTILE_NAMES = ["*", "a*", "ann)(uid=*", "ann)(|(uid=*)", "(ann", "ann\\", "\\61nn", "uid=ann,ou=people,dc=example,dc=org",
                 "ann,ou=people", "ann+cn=x", "{ann}", "ann}", "imapmux:user:{ann}", "ann shard blue", "ann*proxymaster",
                 "../ann", "ann/..", "ann%00", "%s%n", "x" * 300, "\"ann\"", "<ann>", ";", "#", " ann", "ann ", "ann\t"]


@pytest.mark.parametrize("user", HOSTILE_NAMES)
def test_hostile_names(site, wire, user):
    expect(login(wire, user), FAILED)
    expect(authenticate(wire, plain(user)), FAILED)
    expect_alive(wire)


@pytest.mark.parametrize("user", [b"ann\r\nx", b"ann\n", b"\rann", b"an\xffn", "änn".encode(), b"ann\x01"])
def test_hostile_bytes_in_names(site, wire, user):
    """Line ends by literal and by base64 are names nobody has; they reach neither directory nor log as line ends."""
    expect(wire.command(b"LOGIN ", Sync(user), b" ", Sync(PASSWORD.encode()), tag=b"x"), FAILED + b"|" + BAD)
    expect(authenticate(wire, plain(user)), FAILED)
    expect_alive(wire)
    assert not any(line.startswith("x") for line in site.proxy.lines)


@pytest.mark.parametrize("user", [b"ann\0", b"a\0nn", b"\0"])
def test_nul_in_names(site, wire, user):
    expect(wire.command(b"LOGIN ", Sync(user), b" ", Sync(PASSWORD.encode()), tag=b"x"), FAILED + b"|" + BAD)
    expect(authenticate(wire, plain(user)), FAILED + b"|" + BAD)
    expect_alive(wire)


def test_other_authorization_identity(site, wire):
    """Nobody becomes somebody else by asking for it."""
    expect(authenticate(wire, plain("ann", authorize="lost")), FAILED + b"|NO \\[AUTHORIZATIONFAILED\\] ")
    expect(authenticate(wire, plain("ann", authorize="ann")), b"OK ")


# Routes

@pytest.mark.parametrize("user, expected", [("lost", CONTACTADMIN), ("disabled", CONTACTADMIN), ("moving", UNAVAILABLE),
                                            ("wrongtype", UNAVAILABLE), ("astray", UNAVAILABLE)])
def test_routes_that_lead_nowhere(site, wire, user, expected):
    expect(login(wire, user), expected)
    expect_alive(wire)


# Stores

@pytest.mark.parametrize("user", ["refused", *MISBEHAVIOUR])
def test_stores_that_misbehave(site, wire, user):
    expect(login(wire, user), UNAVAILABLE)
    expect_alive(wire)
    expect(login(wire, "ann"), b"OK ")


def test_client_that_leaves_while_the_store_hangs(site):
    for user in ("hangs", "hangs-in-login", "ann"):
        for _ in range(5):
            with Wire(servers.HOST, site.ports["plain"]) as wire:
                wire.send(b"x LOGIN " + quoted(user) + b" " + quoted(PASSWORD) + b"\r\n")
    expect_login_works(site)


# Directory and Redis

def recovered(site):
    def works():
        with Wire(servers.HOST, site.ports["plain"]) as wire:
            return login(wire, "ann").startswith(b"x OK")
    servers.wait_for(works, "logins to work again", RECOVERY_SECONDS)


def test_directory_paused(site, wire):
    site.slapd.pause()
    try:
        expect(login(wire, "ann"), UNAVAILABLE)
        expect(login(wire, "ann", ""), FAILED)
        expect_alive(wire)
    finally:
        site.slapd.resume()
    recovered(site)


def test_directory_down(site, wire):
    site.slapd.stop()
    try:
        expect(login(wire, "ann"), UNAVAILABLE)
        expect(login(wire, "ann", "wrong"), UNAVAILABLE)
        expect_alive(wire)
    finally:
        site.slapd.start()
    recovered(site)


def test_directory_dies_while_nobody_needs_it(site):
    """Its connections end with it: none stays half open, with a worker that is woken by it without end."""
    with contextlib.ExitStack() as stack:  # many look-ups at once
        wires = [stack.enter_context(Wire(servers.HOST, site.ports["plain"])) for _ in range(40)]
        for wire in wires:
            wire.send(b"x LOGIN ann " + quoted(PASSWORD) + b"\r\n")
        for wire in wires:
            expect(wire.read_tagged(b"x"), b"OK ")
    site.slapd.process.kill()
    site.slapd.process.wait()
    try:
        servers.wait_for(lambda: not connections(site.proxy, site.slapd.port), "connections to a dead directory to end")
    finally:
        site.slapd.start()
    recovered(site)


def connections(process_of, port):
    """Connections of the server's process to this port, whatever their state."""
    folder = pathlib.Path(f"/proc/{process_of.process.pid}")
    lines = [line.split() for line in (folder / "net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{fields[9]}]" for fields in lines if int(fields[2].rpartition(":")[2], 16) == port}
    found = []
    for path in (folder / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            found += [path] if str(path.readlink()) in inodes else []
    return found


def test_redis_paused(site, wire):
    with Wire(servers.HOST, site.ports["plain"]) as before:
        expect(login(before, "ann"), b"OK ")
    site.redis.pause()
    try:
        expect(login(wire, "lost"), UNAVAILABLE)
        expect(login(wire, "ann", "wrong"), FAILED)
        expect_alive(wire)
        expect(login(wire, "ann"), b"OK ")
    finally:
        site.redis.resume()
    recovered(site)


def test_redis_down(site, wire):
    """Users whose route is known get in by it; nobody else does, not even those whom Redis would not know."""
    with Wire(servers.HOST, site.ports["plain"]) as before:
        expect(login(before, "ann"), b"OK ")
    site.redis.stop()
    try:
        expect(login(wire, "lost"), UNAVAILABLE)
        expect_alive(wire)
        expect(login(wire, "ann"), b"OK ")
    finally:
        site.redis.start()
        redis_routes(site.redis)
    recovered(site)


# TLS

@pytest.mark.parametrize("command", [b"LOGIN ann secret", b"AUTHENTICATE PLAIN AGFubgBzZWNyZXQ=",
                                     b"AUTHENTICATE PLAIN"])
def test_no_password_without_tls(site, command):
    with Wire(servers.HOST, site.ports["starttls"]) as wire:
        listed = wire.command(b"CAPABILITY")
        assert b"STARTTLS" in listed and b"LOGINDISABLED" in listed and b"AUTH=" not in listed
        expect(wire.command(command, tag=b"x"), PRIVACY)
        expect_alive(wire)


def test_login_after_starttls(site):
    with Wire(servers.HOST, site.ports["starttls"], tls="starttls") as wire:
        listed = wire.command(b"CAPABILITY")
        assert b"STARTTLS" not in listed and b"LOGINDISABLED" not in listed and b"AUTH=PLAIN" in listed
        expect(wire.command(b"STARTTLS", tag=b"x"), BAD)
        expect(login(wire, "ann"), b"OK ")


def test_starttls_where_there_is_none(site, wire):
    expect(wire.command(b"STARTTLS", tag=b"x"), BAD)
    expect_alive(wire)


@pytest.mark.parametrize("injected", [b"b NOOP\r\n", b"b LOGIN ann x\r\n" * 3, b"b LOGIN {3+}\r\nann", b"b"])
def test_clear_text_behind_starttls_is_discarded(site, injected):
    with Wire(servers.HOST, site.ports["starttls"]) as wire:
        wire.send(b"a STARTTLS\r\n" + injected)
        assert wire.read_response().startswith(b"a OK")
        assert wire.buffered == b""
        wire.start_tls()
        assert wire.command(b"NOOP", tag=b"c").startswith(b"c OK")
        expect(login(wire, "ann"), b"OK ")


def raw(site, listener):
    return socket.create_connection((servers.HOST, site.ports[listener]), timeout=10)


def received_to_end(connection):
    pieces = []
    try:
        while True:
            pieces.append(connection.recv(4096))
            if not pieces[-1]:
                break
    except ConnectionResetError:
        pass
    return b"".join(pieces)


@pytest.mark.parametrize("garbage", [b"a NOOP\r\n", b"a LOGIN ann x\r\nb NOOP\r\n", b"\x16\x03\x01\xff\xff" + b"g" * 500,
                                     b"\0" * 1000, b"\x80\x2e\x01\x00\x02" + b"\0" * 60, b"GET / HTTP/1.0\r\n\r\n"])
def test_no_tls_on_the_tls_port(site, garbage):
    """The connection ends, perhaps with a TLS alert; never with IMAP in clear."""
    with raw(site, "tls") as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        assert b"OK" not in received_to_end(connection)
    expect_login_works(site)


def test_client_that_leaves_in_the_handshake(site):
    hello = ssl.MemoryBIO()
    engine = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        engine.do_handshake()
    hello = hello.read()
    for length in (0, 1, 5, 6, 50, len(hello) - 1, len(hello)):
        with raw(site, "tls") as connection:
            connection.sendall(hello[:length])
    expect_login_works(site)


def test_silent_clients_are_let_go(site, wire):
    """login.timeout, in clear and in the middle of a handshake."""
    with raw(site, "tls") as connection:
        assert b"BYE" in wire.read_to_end()
        received_to_end(connection)
    expect_login_works(site)


# Bytes

@pytest.mark.parametrize("start", [b"", b"x LOGIN ", b"x LOGIN \"", b"x NOOP ", b"x AUTHENTICATE PLAIN\r\n",
                                   b"x AUTHENTICATE PLAIN "])
def test_endless_line(site, wire, start):
    length = 70000 if b"AUTH" in start else 9000
    wire.socket.sendall(start + b"A" * length)
    heard = wire.read_to_end().replace(b"+ \r\n", b"")
    assert BYE_AFTER_BAD.match(heard), heard
    expect_login_works(site)


@pytest.mark.parametrize("command", [
    b"LOGIN {4294967296}", b"LOGIN {9223372036854775807}", b"LOGIN ann {5000}", b"LOGIN {70000}"])
def test_literal_that_is_too_large(site, wire, command):
    """Refused before a byte of it: no `+`."""
    answer = wire.command(command, tag=b"x")
    assert answer.startswith(b"x BAD [LIMIT] "), answer
    expect_alive(wire)


@pytest.mark.parametrize("size", [b"18446744073709551616", b"9" * 30])
def test_literal_beyond_all_numbers(site, wire, size):
    wire.send(b"x LOGIN {" + size + b"}\r\n")
    heard = wire.read_to_end()
    assert BYE_AFTER_BAD.match(heard), heard
    expect_login_works(site)


@pytest.mark.parametrize("size", [b"4294967296", b"18446744073709551616"])
def test_non_synchronizing_literal_that_is_too_large(site, wire, size):
    wire.send(b"x LOGIN {" + size + b"+}\r\n")
    heard = wire.read_response()
    assert re.match(rb"(x|\*) (BAD|NO|BYE) ", heard), heard
    expect_login_works(site)


def test_non_synchronizing_literal_that_is_refused_is_eaten(site, wire):
    """The octets of a literal that is refused are not taken for commands."""
    octets = b"y NOOP\r\n" * 1000
    wire.send(b"x LOGIN ann {%d+}\r\n" % len(octets) + octets + b"\r\nz NOOP\r\n")
    heard = wire.read_until(lambda line: line.startswith((b"z ", b"* BYE")))
    assert b"y OK" not in heard and heard.startswith((b"x BAD", b"x NO")), heard


@pytest.mark.parametrize("command", [
    b"LOGIN", b"LOGIN ann", b"LOGIN ann x y", b"LOGIN \"ann", b"LOGIN \"ann\"x y", b"LOGIN  ann x", b"LOGIN ann (x)",
    b"LOGIN an\0n x", b"LOGIN \"an\0n\" x", b"LOGIN {3", b"LOGIN {} x", b"LOGIN {-1}", b"LOGIN {3}x", b"LOGIN ann \"\\x\"",
    b"AUTHENTICATE", b"AUTHENTICATE PLAIN !!!!", b"AUTHENTICATE PLAIN AGFu=", b"AUTHENTICATE PLAIN A", b"SELECT INBOX",
    b"NONSENSE", b"IDLE", b"\0", b"", b"COMPRESS DEFLATE", b"UNAUTHENTICATE", b"ID (\"odd\")", b"FETCH 1 BODY[]"])
def test_bad_syntax(site, wire, command):
    expect(wire.command(command, tag=b"x"), BAD)
    expect_alive(wire)


@pytest.mark.parametrize("line", [b"\r\n", b" NOOP\r\n", b"* NOOP\r\n", b"+ NOOP\r\n", b"x\r\n", b"(x) NOOP\r\n", b"\0\0\r\n",
                                  b"\xff\xfe NOOP\r\n", b"%x NOOP\r\n", b"\"x\" NOOP\r\n"])
def test_bad_tags(site, wire, line):
    wire.send(line)
    assert re.match(rb"(\*|x) BAD ", wire.read_response())
    expect_alive(wire)


def test_bare_line_feed(site, wire):
    """Taken for a line end or refused, but not joined with what follows."""
    wire.send(b"x NOOP\ny NOOP\r\n")
    heard = wire.read_until(lambda line: line.startswith((b"y ", b"* BAD", b"x BAD")))
    assert re.match(rb"\Ax OK [^\n]*\ny OK |\A(x|\*) BAD ", heard), heard
    expect_alive(wire)


@pytest.mark.parametrize("response", [b"*", b"!!!", b"AGFu=", b"A", b"====", b"AGFubg==AGFu", b"\0"])
def test_bad_sasl_responses(site, wire, response):
    wire.send(b"x AUTHENTICATE PLAIN\r\n")
    assert wire.read_response().startswith(b"+")
    wire.send(response + b"\r\n")
    expect(wire.read_response(), BAD)
    expect_alive(wire)


@pytest.mark.parametrize("octets", [b"", b"ann", b"\0ann", b"\0", b"\0\0", b"\0\0\0", b"\0ann\0" + b"x" * 5000,
                                    b"ann\0ann\0x\0y"])
def test_bad_plain_messages(site, wire, octets):
    expect(authenticate(wire, base64.b64encode(octets) or b"="), FAILED + b"|" + BAD)
    expect_alive(wire)


def test_unknown_mechanism(site, wire):
    expect(wire.command(b"AUTHENTICATE NONSENSE", tag=b"x"), b"NO |BAD ")
    expect_alive(wire)


def test_too_many_bad_commands(site, wire):
    wire.send(b"x NONSENSE\r\n" * 10)
    heard = wire.read_to_end()
    assert heard.count(b"x BAD ") == 10 and b"\r\n* BYE " in heard, heard
    expect_login_works(site)


def test_good_login_after_bad_bytes_one_by_one(site, wire):
    wire.cut = single_bytes
    for command in (b"LOGIN an\0n x", b"AUTHENTICATE PLAIN !!", b"NONSENSE"):
        expect(wire.command(command, tag=b"x"), BAD)
    expect(login(wire, "ann"), b"OK ")


def test_nothing_secret_is_logged(site):
    """The last test of this module: by now every password has been tried in every way."""
    said = site.proxy.output()
    assert PASSWORD not in said and PASSWORD.replace("\\", "\\\\").replace('"', '\\"') not in said
    for user in ("ann", "nobody", "lost"):
        assert plain(user).decode() not in said
