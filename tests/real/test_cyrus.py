"""
Cyrus beside Dovecot: an older store of another make behind the same imapmux. As in test_same_bytes.py one script is
played directly with a Cyrus and through imapmux with its twin. What Cyrus does in its own way at login is told in the
tests that need it.
"""
import base64
import os
import re
import types

import pytest
import servers
import test_same_bytes
from conftest import PASSWORD, SHARD_AUTHZID, SHARD_PLAIN, Pair, write_proxy_conf
from cyrus import Cyrus
from imapwire import NonSync, Sync, Wire, quoted, random_chunks, single_bytes
from test_same_bytes import DATE, SCRIPTS, SHORT_SCRIPTS, append, compare

SHARD_STARTTLS = """shard starttls {{
    address = {{"127.0.0.1:{port}"}}
    tls = starttls
    tls_ca_file = "{chain}"
    tls_name = "localhost"
}}
"""
# Where the proxy finds the same Cyrus: in clear, over TLS, and over TLS as a master user.
SHARDS = ["plain", "starttls", "authzid"]
UNAVAILABLE = rb"t1 NO \[UNAVAILABLE\] "
VOLATILE = [(re.compile(rb"MAILBOXID \([0-9a-z]{24}\)"), b"MAILBOXID (ID)"),
            (re.compile(rb"\b\d+\.\d{3} sec"), b"TIME sec")]


@pytest.fixture(scope="module")
def old(folder, certificate):
    with Cyrus(folder / "cyrus", users={}, certificate=certificate) as server:
        yield server


@pytest.fixture(scope="module")
def twin(folder, certificate):
    with Cyrus(folder / "cyrus-twin", users={}, certificate=certificate) as server:
        yield server


@pytest.fixture(scope="module")
def mixed(folder, certificate, slapd, redis, old, green):
    """imapmux before a Cyrus, by several ways, and a Dovecot; with IMAPMUX=none the Cyrus in its place."""
    if os.environ.get("IMAPMUX") == "none":
        yield types.SimpleNamespace(ports={"plain": old.port, "starttls": old.port, "tls": old.tls_port})
        return
    good, bad = folder / "cyrus-master.password", folder / "cyrus-wrong.password"
    good.write_text(servers.MASTER_PASSWORD)
    bad.write_text("not " + servers.MASTER_PASSWORD)
    for path in (good, bad):
        path.chmod(0o600)
    chain, key = certificate
    master = {"chain": chain, "master": servers.MASTER_USER, "port": old.port}
    shards = (SHARD_PLAIN.format(name="plain", port=old.port) +
              SHARD_STARTTLS.format(port=old.port, chain=chain) +
              SHARD_AUTHZID.format(name="authzid", master_file=good, **master) +
              SHARD_AUTHZID.format(name="wrongmaster", master_file=bad, **master) +
              SHARD_PLAIN.format(name="dovecot", port=green.port))
    text, ports = write_proxy_conf(chain, key, slapd.uri, redis.address, shards)
    with servers.Imapmux(folder / "imapmux-mixed", configuration=text, ports=list(ports.values())):
        yield types.SimpleNamespace(ports=ports)


@pytest.fixture
def pair(mixed, old, twin, redis, unused_users):
    """A user with an empty mailbox on both Cyruses, routed to shard `plain`; `direct` leads to the twin."""
    user = next(unused_users)
    for store in (old, twin):
        store.add_user(user, PASSWORD)
    pair = Pair(user, mixed, twin, lambda shard: redis.route({user: shard}))
    pair.route("plain")
    return pair


def comparable(received):
    for pattern, replacement in VOLATILE:
        received = pattern.sub(replacement, received)
    return received


def run(wire, steps):
    return [comparable(answer) for answer in test_same_bytes.run(wire, steps)]


def plain_response(user, password):
    return base64.b64encode(b"\0" + user.encode() + b"\0" + password.encode())


def capabilities(received):
    """The set of capabilities in a code or an untagged line."""
    return set(re.search(rb"CAPABILITY ([^]\r]*)", received).group(1).split())


@pytest.mark.parametrize("shard,name", [("plain", name) for name in SCRIPTS] +
                         [(shard, name) for shard in SHARDS[1:] for name in ("list", "store, copy, move", "unknown")])
def test_scripts(pair, shard, name):
    pair.route(shard)
    compare(SCRIPTS[name], run(pair.direct(), SCRIPTS[name]), run(pair.through(), SCRIPTS[name]))


@pytest.mark.parametrize("name,cut", [(name, random_chunks(5, 12)) for name in SHORT_SCRIPTS] +
                         [(name, single_bytes) for name in ("append", "names", "unknown")])
def test_scripts_cut(pair, name, cut):
    compare(SCRIPTS[name], run(pair.direct(), SCRIPTS[name]), run(pair.through("tls", cut=cut), SCRIPTS[name]))


@pytest.mark.parametrize("kind", [Sync, NonSync])
def test_large_message(pair, kind):
    """Up and down in full, and back in parts."""
    body = b"Subject: large\r\n\r\n" + b"%09d {10}\r\n" * 65536 % tuple(range(65536))
    steps = [(b"APPEND INBOX " + DATE + b" ", kind(body)), (b"SELECT INBOX",), (b"FETCH 1 BODY.PEEK[]",),
             (b"FETCH 1 BODY.PEEK[]<1000000.40000>",), (b"FETCH 1 (RFC822.SIZE BODY.PEEK[TEXT]<0.70000>)",)]
    direct, through = run(pair.direct(), steps), run(pair.through("starttls"), steps)
    assert body in direct[2]
    compare(steps, direct, through)


@pytest.mark.parametrize("shard", SHARDS)
def test_idle_hears_at_once(pair, shard):
    pair.route(shard)
    said_directly, direct_seconds = test_same_bytes.idle_transcript(pair.direct)
    said_through, through_seconds = test_same_bytes.idle_transcript(pair.through)
    assert comparable(said_through) == comparable(said_directly)
    assert through_seconds < direct_seconds + 1


def test_both_stores_at_once(mixed, pair, redis, unused_users):
    """Alice's mail is on Cyrus, Bob's on Dovecot; one listener, their commands in turn."""
    alice, bob = pair.user, next(unused_users)
    redis.route({bob: "dovecot"})
    with Wire(servers.HOST, mixed.ports["plain"]) as first, Wire(servers.HOST, mixed.ports["plain"]) as second:
        assert first.greeting == second.greeting
        sessions = [(first, alice, b"Cyrus IMAPD"), (second, bob, b"Dovecot")]
        for wire, user, store in sessions:
            assert (b"X-SIEVE-MAILBOX" in capabilities(wire.login(user, PASSWORD))) == (store == b"Cyrus IMAPD")
        for wire, user, _ in sessions:
            wire.command(*append(b"INBOX", b"Subject: of %s\r\n\r\n" % user.encode()))
            wire.command(b"SELECT INBOX")
        for wire, user, store in sessions:
            assert wire.command(b"ID NIL").startswith(b'* ID ("name" "%s"' % store)
            assert b"Subject: of %s\r\n" % user.encode() in wire.command(b"FETCH 1:* BODY.PEEK[HEADER]")
            assert wire.command(b"SEARCH ALL").startswith(b"* SEARCH 1\r\n")
            assert wire.command(b"UNSELECT", tag=b"u").startswith(b"u OK ")
            assert wire.command(b"LOGOUT", tag=b"bye").startswith(b"* BYE ")
            assert wire.read_to_end() == b""


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("login", ["quoted", "literals", "plain initial", "plain"])
def test_ways_to_log_in(mixed, pair, login, shard):
    pair.route(shard)
    user, response = pair.user.encode(), plain_response(pair.user, PASSWORD)
    with Wire(servers.HOST, mixed.ports["tls"], tls="implicit") as wire:
        if login == "plain":
            wire.send(b"t1 AUTHENTICATE PLAIN\r\n")
            assert wire.read_response().startswith(b"+")
            wire.send(response + b"\r\n")
            answer = wire.read_tagged(b"t1")
        else:
            answer = wire.command(*{"quoted": (b"LOGIN " + quoted(user) + b" " + quoted(PASSWORD),),
                                    "literals": (b"LOGIN ", Sync(user), b" ", NonSync(PASSWORD.encode())),
                                    "plain initial": (b"AUTHENTICATE PLAIN " + response,)}[login])
        assert b"t1 OK [CAPABILITY IMAP4rev1 " in answer
        assert b' INBOX\r\n' in wire.command(b'LIST "" *')


@pytest.mark.parametrize("shard", SHARDS)
def test_capabilities_after_login(mixed, pair, shard):
    """
    Cyrus names LOGINDISABLED to a user who is logged in, and COMPRESS=DEFLATE. Over TLS before login it already gives
    the list of later, mechanisms included. The client gets what is left of the list after login.
    """
    pair.route(shard)
    with pair.direct() as wire:
        of_store = capabilities(wire.command(b"CAPABILITY"))
    assert {b"LOGINDISABLED", b"COMPRESS=DEFLATE", b"IDLE", b"UNSELECT"} <= of_store
    with Wire(servers.HOST, mixed.ports["starttls"], tls="starttls") as wire:
        at_login = wire.login(pair.user, PASSWORD)
        assert at_login.startswith(b"in OK [CAPABILITY IMAP4rev1 ")
        assert capabilities(at_login) == of_store - {b"LOGINDISABLED", b"COMPRESS=DEFLATE"}
        assert capabilities(wire.command(b"CAPABILITY")) == capabilities(at_login)


@pytest.mark.parametrize("command", [b"STARTTLS", b"COMPRESS DEFLATE", b"UNAUTHENTICATE", b"LOGIN a b",
                                     b"AUTHENTICATE PLAIN"])
def test_refused_after_login(pair, command):
    """Cyrus would do COMPRESS; UNAUTHENTICATE it knows only from admins."""
    with pair.through() as wire:
        assert wire.command(command, tag=b"x").startswith(b"x BAD ")
        assert wire.command(b"NOOP", tag=b"y") == b"y OK Completed\r\n"


@pytest.mark.parametrize("shard", ["plain", "starttls"])
def test_other_password_at_the_store(mixed, old, pair, shard):
    """Cyrus says NO without a code. The proxy has verified the password, so this is not the user's fault."""
    pair.route(shard)
    old.add_user(pair.user, "another")
    with Wire(servers.HOST, mixed.ports["plain"]) as wire:
        refused = wire.command(b"LOGIN " + quoted(pair.user) + b" " + quoted(PASSWORD))
        assert re.match(UNAVAILABLE, refused), refused
        old.add_user(pair.user, PASSWORD)
        wire.login(pair.user, PASSWORD)


def test_wrong_master_password(mixed, pair):
    pair.route("wrongmaster")
    with Wire(servers.HOST, mixed.ports["plain"]) as wire:
        refused = wire.command(b"LOGIN " + quoted(pair.user) + b" " + quoted(PASSWORD))
        assert re.match(UNAVAILABLE, refused), refused
        pair.route("authzid")
        wire.login(pair.user, PASSWORD)


def test_password_that_only_the_store_takes(mixed, old, pair):
    old.add_user(pair.user, "another")
    with Wire(servers.HOST, mixed.ports["plain"]) as wire:
        refused = wire.command(b"LOGIN " + quoted(pair.user) + b" another")
        assert refused.startswith(b"t1 NO [AUTHENTICATIONFAILED] "), refused


def test_stops_without_a_word(old, pair):
    """Cyrus' processes end without BYE when they are told to stop; the proxy says it for them."""
    with pair.through() as wire:
        wire.command(b"SELECT INBOX")
        wire.send(b"i IDLE\r\n")
        assert wire.read_response().startswith(b"+")
        old.stop()
        assert wire.read_to_end().startswith(b"* BYE [UNAVAILABLE] ")
    old.start()
    with pair.through() as wire:
        assert b"t1 OK " in wire.command(b"SELECT INBOX")
