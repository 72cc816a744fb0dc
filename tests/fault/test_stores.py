"""
Stores that fail, each in its own way, between the connection and the end of the login. The client gets the right
tagged answer in bounded time, the log says why in one line, and the client's connection goes on.
"""
import re
import socket
import ssl
import time

import pytest

import servers
from stage import CAPABILITIES, PASSWORD, Gone, Store, good, shard
from imapwire import quoted

HURRY = "connect_timeout = 1s login_timeout = 1s"
BOUND_SECONDS = 10
STRANGE = 'p"\\ä %'


@pytest.fixture(scope="module")
def store():
    with Store() as only:
        yield only


@pytest.fixture(scope="module")
def proxy(start, store):
    refusing = servers.free_port()
    shards = (shard("store", store.port, more=HURRY) + shard("secure", store.port, tls="starttls", more=HURRY) +
              shard("second", refusing, store.port, more=HURRY) + shard("nobody", refusing, more=HURRY))
    return start(shards, users=("alice", "secure", "second", "nobody"),
                 passwords={"strange": STRANGE, "quoted": 'a"b\\c'},
                 routes={"secure": "secure", "second": "second", "nobody": "nobody"})


@pytest.fixture(autouse=True)
def good_again(store):
    yield
    store.script = good
    store.check()


# Scripts

def close_at_once(peer):
    pass


def close_in_greeting(peer):
    peer.send(b"* OK [CAPA")


def close_in_greeting_literal(peer):
    peer.send(b"* OK hello\r\n")
    peer.line()
    peer.send(b"* LIST () \"/\" {1000}\r\nonly a part of it")


def close_at_login(peer):
    peer.greet()
    peer.until_login()


def close_in_login_answer(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"L OK [CAPABILITY IMAP")


def close_in_login_literal(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"* LIST () \"/\" {1000}\r\nonly a part of it")


def reset_at_login(peer):
    peer.greet()
    peer.until_login()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def hang_at_greeting(peer):
    peer.wait_for_end()


def hang_at_capability(peer):
    peer.send(b"* OK hello\r\n")
    peer.line()
    peer.wait_for_end()


def hang_at_login(peer):
    peer.greet()
    peer.until_login()
    peer.wait_for_end()


def long_line_at_login(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"* OK " + b"x" * 100_000 + b"\r\n")
    peer.wait_for_end()


def long_greeting(peer):
    peer.send(b"* OK " + b"x" * 100_000)
    peer.wait_for_end()


def garbage_greeting(peer):
    peer.send(bytes(range(256)) * 8 + b"\r\n")
    peer.wait_for_end()


def garbage_at_login(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"\x00\xff\x80\r\nHTTP/1.1 400 Bad Request\r\n\r\n")
    peer.wait_for_end()


def greet_preauth(peer):
    peer.send(b"* PREAUTH welcome, whoever you are\r\n")
    peer.wait_for_end()


def greet_bye(peer):
    peer.send(b"* BYE too busy\r\n")


def bye_at_login(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"* BYE disk on fire\r\n")


def no_way_to_log_in(peer):
    peer.greet(b"IMAP4rev1 LOGINDISABLED")
    peer.wait_for_end()


def unexpected_plus(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"+ \r\n")
    peer.wait_for_end()


def no_capabilities(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"L OK in\r\n")
    peer.line()
    peer.send(b"C NO not today\r\n")
    peer.wait_for_end()


def answer_login(text):
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L " + text + b"\r\n")
        peer.wait_for_end()
    script.__name__ = "answer " + text.decode()
    return script


def no_starttls(peer):
    peer.greet(b"IMAP4rev1 AUTH=PLAIN")
    peer.wait_for_end()


def refuse_starttls(peer):
    peer.greet(b"IMAP4rev1 STARTTLS AUTH=PLAIN")
    assert peer.line() == b"S STARTTLS\r\n"
    peer.send(b"S NO no key\r\n")
    peer.wait_for_end()


def bytes_behind_starttls(peer):
    peer.greet(b"IMAP4rev1 STARTTLS AUTH=PLAIN")
    assert peer.line() == b"S STARTTLS\r\n"
    peer.send(b"S OK go\r\n* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] injected\r\n")
    peer.wait_for_end()


def garbage_for_tls(peer):
    peer.greet(b"IMAP4rev1 STARTTLS AUTH=PLAIN")
    peer.line()
    peer.send(b"S OK go\r\n")
    peer.socket.recv(1)
    peer.send(b"this is no TLS at all\r\n")
    peer.wait_for_end()


def hang_in_tls(peer):
    peer.greet(b"IMAP4rev1 STARTTLS AUTH=PLAIN")
    peer.line()
    peer.send(b"S OK go\r\n")
    peer.wait_for_end()


FAILURES = [
    (close_at_once, "closed by the store"),
    (close_in_greeting, "closed by the store"),
    (close_in_greeting_literal, "closed by the store"),
    (close_at_login, "closed by the store"),
    (close_in_login_answer, "closed by the store"),
    (close_in_login_literal, "closed by the store"),
    (reset_at_login, "reset"),
    (hang_at_greeting, "no answer in time"),
    (hang_at_capability, "in time|too long"),
    (hang_at_login, "login takes too long"),
    (long_line_at_login, "a response is too long"),
    (long_greeting, "a response is too long"),
    (garbage_greeting, "IMAP"),
    (garbage_at_login, "IMAP"),
    (greet_preauth, "PREAUTH"),
    (greet_bye, "BYE"),
    (bye_at_login, "BYE"),
    (no_way_to_log_in, "no way to log in"),
    (unexpected_plus, "unexpected"),
    (no_capabilities, "no capabilities"),
    (answer_login(b"NO [UNAVAILABLE] index is being rebuilt"), "index is being rebuilt"),
    (answer_login(b"NO without a code"), "without a code"),
    (answer_login(b"BAD no idea"), "no idea"),
]
TLS_FAILURES = [
    (no_starttls, "no STARTTLS"),
    (refuse_starttls, "refuses STARTTLS"),
    (bytes_behind_starttls, "bytes in clear behind STARTTLS"),
    (garbage_for_tls, ""),
    (hang_in_tls, "in time"),
]
CODES = [
    (b"NO [AUTHENTICATIONFAILED] no", b"AUTHENTICATIONFAILED", "credentials"),
    (b"NO [LIMIT] too many", b"LIMIT", "limit"),
    (b"NO [EXPIRED] old", b"EXPIRED", "expired"),
    (b"NO [AUTHORIZATIONFAILED] no", b"CONTACTADMIN", "admin"),
]


def name_of(value):
    return getattr(value, "__name__", None)


def refused_login(proxy, wire, user, code):
    """A login that must fail with this response code; returns the line of the log."""
    before = len(proxy.events("login refused"))
    started = time.monotonic()
    answer = wire.command(b"LOGIN " + quoted(user) + b" " + quoted(PASSWORD), tag=b"try")
    assert time.monotonic() - started < BOUND_SECONDS
    assert answer.startswith(b"try NO [%s] " % code) and answer.count(b"\n") == 1, answer
    assert PASSWORD.encode() not in answer
    assert wire.command(b"NOOP", tag=b"on") == b"on OK NOOP completed.\r\n"
    servers.wait_for(lambda: len(proxy.events("login refused")) > before, "a line in the log")
    found = proxy.events("login refused")[before:]
    assert len(found) == 1 and found[0]["user"] == user, found
    return found[0]


def goes_on(store, wire, user):
    """The same connection logs in when the store is well again."""
    store.script = good
    wire.login(user, PASSWORD)
    assert wire.command(b"NOOP", tag=b"last") == b"last OK NOOP done\r\n"


@pytest.mark.parametrize("script, why", FAILURES, ids=name_of)
def test_failing_store(store, proxy, script, why):
    store.script = script
    with proxy.wire() as wire:
        line = refused_login(proxy, wire, "alice", b"UNAVAILABLE")
        assert re.search(why, line["detail"]), line
        assert line["reason"] == "unavailable" and line["level"] == "warning" and line["shard"] == "store"
        assert f":{store.port}" in line["detail"]
        goes_on(store, wire, "alice")


@pytest.mark.parametrize("script, why", TLS_FAILURES, ids=name_of)
def test_store_without_proper_tls(store, proxy, certificate, script, why):
    store.script = script
    with proxy.wire() as wire:
        line = refused_login(proxy, wire, "secure", b"UNAVAILABLE")
        assert why in line["detail"] and line["shard"] == "secure", line
        heard = b"".join(store.peers[-1].heard)
        assert b"LOGIN" not in heard and b"AUTHENTICATE" not in heard
        store.script = with_tls(certificate)
        wire.login("secure", PASSWORD)


def with_tls(certificate, after=good):
    """Offers STARTTLS; its list in clear lies, and must not count."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def script(peer):
        peer.greet(b"IMAP4rev1 STARTTLS LOGINDISABLED")
        assert peer.line() == b"S STARTTLS\r\n"
        peer.send(b"S OK go\r\n")
        peer.socket = context.wrap_socket(peer.socket, server_side=True)
        assert peer.line() == b"C CAPABILITY\r\n"
        peer.send(b"* CAPABILITY " + CAPABILITIES + b"\r\nC OK done\r\n")
        peer.until_login()
        peer.send(b"L OK [CAPABILITY IMAP4rev1 SORT] in\r\n")
        peer.serve()
    return script


@pytest.mark.parametrize("answer, code, reason", CODES)
def test_store_refuses_login_with_code(store, proxy, answer, code, reason):
    store.script = answer_login(answer)
    with proxy.wire() as wire:
        assert refused_login(proxy, wire, "alice", code)["reason"] == reason
        goes_on(store, wire, "alice")


def test_close_in_literal_of_relay(store, proxy):
    """What came of the literal is delivered, then the end; no BYE is put into its middle."""
    def script(peer):
        peer.log_in()
        peer.command()
        peer.send(b"* 1 FETCH (BODY[] {1000}\r\n* OK not a line")
    store.script = script
    with proxy.logged_in() as wire:
        wire.send(b"f FETCH 1 BODY[]\r\n")
        assert wire.read_to_end() == b"* 1 FETCH (BODY[] {1000}\r\n* OK not a line"


def test_close_in_relay_between_responses(store, proxy):
    def script(peer):
        peer.log_in()
        peer.send(b"* 5 EXISTS\r\n")
    store.script = script
    with proxy.logged_in() as wire:
        received = wire.read_to_end()
        assert received.startswith(b"* 5 EXISTS\r\n* BYE [UNAVAILABLE] ") and received.count(b"\n") == 2, received


# Stores that are only old or odd

def test_plus_without_space_and_no_sasl_ir(store, proxy):
    def script(peer):
        peer.greet(b"IMAP4rev1 AUTH=PLAIN")
        assert peer.line() == b"L AUTHENTICATE PLAIN\r\n"
        peer.send(b"+\r\n")
        assert peer.line() == b"AGFsaWNlAHNlY3JldA==\r\n"
        peer.send(b"L OK [CAPABILITY IMAP4rev1] in\r\n")
        peer.serve()
    store.script = script
    with proxy.logged_in() as wire:
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


def test_untagged_capability_before_tagged_ok(store, proxy):
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR SORT\r\nL OK in you are\r\n")
        peer.serve()
    store.script = script
    with proxy.wire() as wire:
        assert wire.login("alice", PASSWORD) == b"in OK [CAPABILITY IMAP4rev1 SORT] in you are\r\n"
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


def test_capability_must_be_asked_after_login(store, proxy):
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L OK in\r\n")
        assert peer.line() == b"C CAPABILITY\r\n"
        peer.send(b"* CAPABILITY IMAP4rev1 THREAD=REFS\r\nC OK done\r\n")
        peer.serve()
    store.script = script
    with proxy.wire() as wire:
        assert wire.login("alice", PASSWORD) == b"in OK [CAPABILITY IMAP4rev1 THREAD=REFS] in\r\n"


def test_alert_at_login_reaches_the_user(store, proxy):
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"* OK [ALERT] Your mailbox moves on Sunday\r\nL OK [CAPABILITY IMAP4rev1] in\r\n")
        peer.serve()
    store.script = script
    with proxy.wire() as wire:
        assert wire.login("alice", PASSWORD) == (b"* OK [ALERT] Your mailbox moves on Sunday\r\n"
                                                 b"in OK [CAPABILITY IMAP4rev1] in\r\n")


@pytest.mark.parametrize("user, password, sent", [
    ("alice", PASSWORD, [b'L LOGIN "alice" "secret"\r\n']),
    ("quoted", 'a"b\\c', [b'L LOGIN "quoted" "a\\"b\\\\c"\r\n']),
    ("strange", STRANGE, [b"L LOGIN {7}\r\n", b"strange {%d}\r\n" % len(STRANGE.encode()), STRANGE.encode() + b"\r\n"]),
])
def test_login_command_only(store, proxy, user, password, sent):
    def script(peer):
        peer.greet(b"IMAP4rev1")
        for number, line in enumerate(sent):
            if number > 0:
                peer.send(b"+\r\n")
            assert peer.line() == line
        peer.send(b"L OK [CAPABILITY IMAP4rev1] in\r\n")
        peer.serve()
    store.script = script
    with proxy.wire() as wire:
        octets = password.encode()
        answer = wire.command(b"LOGIN %s {%d+}\r\n%s" % (user.encode(), len(octets), octets), tag=b"in")
        assert answer == b"in OK [CAPABILITY IMAP4rev1] in\r\n"


def test_login_literal_refused(store, proxy):
    """The tagged answer comes where a "+" was expected: nothing secret goes out."""
    def script(peer):
        peer.greet(b"IMAP4rev1")
        assert peer.line() == b"L LOGIN {7}\r\n"
        peer.send(b"L NO [LIMIT] no literals here\r\n")
        try:
            peer.line()
        except Gone:
            return
        raise AssertionError(peer.heard)
    store.script = script
    with proxy.wire() as wire:
        octets = STRANGE.encode()
        answer = wire.command(b"LOGIN strange {%d+}\r\n%s" % (len(octets), octets), tag=b"in")
        assert answer.startswith(b"in NO [LIMIT] ")


def test_second_address_works(store, proxy):
    with proxy.wire() as wire:
        wire.login("second", PASSWORD)
        assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


def test_no_address_works(store, proxy):
    with proxy.wire() as wire:
        line = refused_login(proxy, wire, "nobody", b"UNAVAILABLE")
        assert "refused" in line["detail"], line


def test_second_address_after_bad_greeting(start, folder):
    """The first address is up, but only says BYE."""
    with Store(greet_bye) as first, Store() as second:
        proxy = start(shard("store", first.port, second.port))
        with proxy.logged_in() as wire:
            assert wire.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
        assert len(first.peers) == 1 and len(second.peers) == 1
