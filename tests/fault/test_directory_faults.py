"""
A directory that hangs, lies or breaks off, at each step of a login. Nobody is let in by mistake, nobody is told "wrong
password" who was not heard, all of it ends in time, and when the directory is well again so are logins.
"""
import contextlib
import re
import time

import pytest

import servers
from crowd import wait_for_metrics
from directory import (BIND, INVALID_CREDENTIALS, SEARCH, SERVICE, SERVICE_PASSWORD, SUCCESS, UNWILLING, Directory,
                       Request, bound, close, control, done, encoded, found, hang, message, number, read_message,
                       referred, result, text)
from stage import PASSWORD, Gone, Proxy, Store, directory_settings, good, shard

LIMIT = "400ms"
SLOW_SECONDS = 10  # whatever the machine is busy with; a hang would last as long as the client's patience
UNAVAILABLE, REFUSED, EXPIRED = rb"in NO \[UNAVAILABLE\] ", rb"in NO \[AUTHENTICATIONFAILED\] ", rb"in NO \[EXPIRED\] "
ADMIN, INTERNAL, OK = rb"in NO \[CONTACTADMIN\] Your account", rb"in NO \[SERVERBUG\] ", rb"in OK "
CONFIG = rb"in NO \[CONTACTADMIN\] The server is misconfigured"


class Lenient(Proxy):
    """libldap 2.5 leaks a little of each message that is broken off, and of each notice of disconnection."""

    def environment(self):
        return {**super().environment(), "ASAN_OPTIONS": "detect_leaks=0"}


class Site:
    def __init__(self, stack, folder, certificate, name, kind=Proxy, **settings):
        self.directory = stack.enter_context(Directory())
        self.store = stack.enter_context(Store(good))
        (folder / "service.password").write_bytes(SERVICE_PASSWORD)
        settings = {"uri": f"ldap://{servers.HOST}:{self.directory.port}", "bind_dn": SERVICE.decode(),
                    "bind_password_file": folder / "service.password", "base": "dc=example", "timeout": LIMIT,
                    "connect_timeout": LIMIT, **settings}
        settings = {name: value for name, value in settings.items() if value != ""}
        self.proxy = kind(folder / name, shards=shard("store", self.store.port), certificate=certificate,
                          sources=directory_settings(**settings))
        stack.callback(self.proxy.stop)

    def login(self, user="alice", password=PASSWORD):
        with self.proxy.wire() as wire:
            started = time.monotonic()
            answer = wire.command(f"LOGIN {user} {password}".encode(), tag=b"in")
            assert time.monotonic() - started < SLOW_SECONDS
            return answer

    def timeouts(self):
        return self.proxy.metrics()["imapmux_ldap_timeouts_total"]

    def recovers(self):
        self.directory.behave()
        servers.wait_for(lambda: re.match(OK, self.login()), "a login to work again")


@pytest.fixture(scope="module")
def lenient_site(folder, certificate):
    with contextlib.ExitStack() as stack:
        site = Site(stack, folder, certificate, "lenient", Lenient)
        yield site
        site.directory.check()


@pytest.fixture(scope="module")
def strict_site(folder, certificate):
    with contextlib.ExitStack() as stack:
        site = Site(stack, folder, certificate, "strict")
        yield site
        site.directory.check()


def well_again(site):
    site.recovers()
    yield site
    site.recovers()


@pytest.fixture
def site(strict_site):
    yield from well_again(strict_site)


@pytest.fixture
def broken_site(lenient_site):
    yield from well_again(lenient_site)


def half_and_close(peer, request):
    peer.send(bound(request.id)[:9])
    raise Gone


def half_and_hang(peer, request):
    peer.send(done(request.id)[:9])
    hang(peer)


def garbage(peer, request):
    peer.send(b"\xff\x00* OK IMAP4rev1\r\n" * 100)


def other_ids(peer, request):
    peer.send(bound(request.id + 7) + bound(0x7fffffff) + done(request.id + 9) + found(request.id + 7))


def other_kind(peer, request):
    """The right id, and success; but the result of another operation."""
    peer.send(done(request.id) if request.kind == BIND else bound(request.id))


def notice(peer, request):
    oid = text(b"1.3.6.1.4.1.1466.20036", 0x8a)
    peer.send(message(0, encoded(0x78, number(52, 0x0a), text(b""), text(b"going down"), oid)))


def huge(peer, request):
    """An entry of 512 MiB is announced, and begun."""
    with contextlib.suppress(OSError):
        peer.send(b"\x30\x84\x20\x00\x00\x00" + b"a" * 8 * 1024 * 1024)
    hang(peer)


def flood(peer, request):
    """More entries than were asked for, and no end."""
    with contextlib.suppress(OSError):
        while True:
            peer.send(found(request.id) * 100)
    raise Gone


FAULTS = (hang, close, half_and_close, half_and_hang, garbage, other_ids, other_kind, notice, huge, flood)


LATE = (hang, half_and_hang, other_ids)  # only time tells; all else is noticed at once


@pytest.mark.parametrize("step", ["service", "search", "bind"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda function: function.__name__)
def test_fault_at_step(broken_site, step, fault):
    site = broken_site
    if step == "service":
        site.directory.cut_off()
        wait_for_metrics(site.proxy, **{'ldap_connections{kind="search"}': 0})
    timeouts, lines = site.timeouts(), len(site.proxy.lines)
    setattr(site.directory, f"on_{step}", fault)
    answer = site.login()
    assert re.match(UNAVAILABLE, answer), answer
    timed_out = site.timeouts() > timeouts or any("Timed out" in line for line in site.proxy.lines[lines:])
    assert timed_out == (fault in LATE)


def handshake(peer):
    """Says yes to StartTLS, and nothing after it."""
    Request(read_message(peer))
    peer.send(message(1, result(0x78)))
    hang(peer)


@pytest.mark.parametrize("scheme,script,step", [("ldap", hang, "start TLS"), ("ldap", handshake, "start TLS"),
                                                ("ldaps", hang, "connect")])
def test_silence_before_the_account(folder, certificate, scheme, script, step):
    """Nobody answers the request for TLS, or the handshake; the thread that waits is free again in time."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(Directory())
        silent.on_connect = script
        site = Site(stack, folder, certificate, f"silent-{scheme}-{script.__name__}",
                    uri=f"{scheme}://{servers.HOST}:{silent.port}", start_tls="yes" if scheme == "ldap" else "no")
        assert re.match(UNAVAILABLE, site.login())
        detail = site.proxy.wait_for_event("ldap connect failed")["detail"]
        assert f"cannot {step}: Timed out" in detail


def test_silence_keeps_one_thread_waiting(folder, certificate):
    """However many want to log in, before anything was heard there is one attempt: others need the threads, too."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(Directory())
        silent.on_connect = hang
        site = Site(stack, folder, certificate, "threads", uri=f"ldaps://{servers.HOST}:{silent.port}", base="",
                    bind_dn="", bind_password_file="", dn_template="uid=%{user}", connect_timeout="2s")
        wires = [stack.enter_context(site.proxy.wire()) for _ in range(10)]
        for wire in wires:
            wire.send(b"in LOGIN alice secret\r\n")
        for wire in wires:
            assert re.match(UNAVAILABLE, wire.read_tagged(b"in"))
        assert len(silent.peers) <= 2  # and a probe, perhaps


# What a bind's answer says beside yes and no

POLICY, NETSCAPE = b"1.3.6.1.4.1.42.2.27.8.5.1", b"2.16.840.1.113730.3.4.4"
WINDOWS = b"80090308: LdapErr: DSID-0C0903A9, comment: AcceptSecurityContext error, data %s, v1db1\0"


def policy(*, error=None, grace=None, expires=None):
    parts = []
    if grace is not None or expires is not None:
        parts.append(encoded(0xa0, number(grace, 0x81) if grace is not None else number(expires, 0x80)))
    if error is not None:
        parts.append(number(error, 0x81))
    return control(POLICY, encoded(0x30, *parts))


ANSWERS = [
    ("policy, empty", SUCCESS, b"", [policy()], OK),
    ("policy, grace", SUCCESS, b"", [policy(grace=2)], OK),
    ("policy, warning", SUCCESS, b"", [policy(expires=3600)], OK),
    ("policy, reset", SUCCESS, b"", [policy(error=2)], EXPIRED),
    ("policy, expired", INVALID_CREDENTIALS, b"", [policy(error=0)], EXPIRED),
    ("policy, locked", INVALID_CREDENTIALS, b"", [policy(error=1)], ADMIN),
    ("policy, locked, as 389 DS says it", 19, b"Exceed password retry limit.", [policy(error=1)], ADMIN),
    ("policy, malformed", SUCCESS, b"", [control(POLICY, b"\x02\x01\x00")], INTERNAL),
    ("policy, without a value", SUCCESS, b"", [control(POLICY)], INTERNAL),
    ("Netscape, must change", SUCCESS, b"", [control(NETSCAPE, b"0")], EXPIRED),
    ("Netscape, expired", INVALID_CREDENTIALS, b"password expired!", [control(NETSCAPE, b"0")], EXPIRED),
    ("Netscape, grace", SUCCESS, b"", [policy(grace=1), control(NETSCAPE, b"0")], OK),
    ("389 DS, inactivated", UNWILLING, b"Account inactivated. Contact system administrator.", [], ADMIN),
    ("other refusals", UNWILLING, b"unauthenticated bind (DN with no password) disallowed", [], UNAVAILABLE),
    ("Windows, wrong password", INVALID_CREDENTIALS, WINDOWS % b"52e", [], REFUSED),
    ("Windows, unknown user", INVALID_CREDENTIALS, WINDOWS % b"525", [], REFUSED),
    ("Windows, expired", INVALID_CREDENTIALS, WINDOWS % b"532", [], EXPIRED),
    ("Windows, must change", INVALID_CREDENTIALS, WINDOWS % b"773", [], EXPIRED),
    ("Windows, not at this time", INVALID_CREDENTIALS, WINDOWS % b"530", [], ADMIN),
    ("Windows, not from here", INVALID_CREDENTIALS, WINDOWS % b"531", [], ADMIN),
    ("Windows, disabled", INVALID_CREDENTIALS, WINDOWS % b"533", [], ADMIN),
    ("Windows, account expired", INVALID_CREDENTIALS, WINDOWS % b"701", [], ADMIN),
    ("Windows, locked", INVALID_CREDENTIALS, WINDOWS % b"775", [], ADMIN),
    ("Windows, cut", INVALID_CREDENTIALS, (WINDOWS % b"53")[:-9], [], REFUSED),
    ("such a text behind success", SUCCESS, WINDOWS % b"532", [], OK),
]


@pytest.mark.parametrize("code,diagnostic,controls,expected", [row[1:] for row in ANSWERS],
                         ids=[row[0] for row in ANSWERS])
def test_answer_to_bind(site, code, diagnostic, controls, expected):
    site.directory.on_bind = lambda peer, request: peer.send(bound(request.id, code, diagnostic, controls))
    answer = site.login()
    assert re.match(expected, answer), answer


def test_policy_is_asked_for(site):
    site.login()
    asked = [request.controls for request in site.directory.requests if request.kind == BIND and not request.is_service]
    assert POLICY in asked[-1] and b"\x01\x01" not in asked[-1]  # not critical


# Searches

def test_references_beside_nothing_are_no_user(site):
    """As Active Directory answers each search below its root."""
    url = b"ldap://ForestDnsZones.example/DC=ForestDnsZones,DC=example"
    site.directory.on_search = lambda peer, request: peer.send(referred(request.id, url) * 3 + done(request.id))
    assert re.match(REFUSED, site.login())
    site.directory.on_search = lambda peer, request: peer.send(
        referred(request.id, url) + found(request.id) + referred(request.id, url) + done(request.id))
    assert re.match(OK, site.login())


def refer(url):
    """A search is answered with a referral (RFC 4511 4.1.10)."""
    operation = encoded(0x65, number(10, 0x0a), text(b""), text(b""), encoded(0xa3, text(url)))
    return lambda peer, request: peer.send(message(request.id, operation))


def test_base_that_is_elsewhere(site):
    site.directory.on_search = refer(b"ldap://elsewhere/dc=example")
    assert re.match(CONFIG, site.login())


def test_referrals_end(folder, certificate):
    """A directory that leads to itself, and one that leads to what is no directory."""
    with contextlib.ExitStack() as stack:
        site = Site(stack, folder, certificate, "referrals", referrals="yes")
        site.directory.on_search = refer(f"ldap://{servers.HOST}:{site.directory.port}/dc=example".encode())
        assert re.match(CONFIG, site.login())
        assert site.directory.count(SEARCH) == 2
        for url in (b"http://localhost/", b"ldap:///dc=example", b"ldapi://%2Ftmp/dc=example", b"",
                    b"ldap://h" + b"o" * 400):
            site.directory.on_search = refer(url)
            assert re.match(UNAVAILABLE, site.login()), url
        here = f"ldap://{servers.HOST}:{site.directory.port}/dc=%s".encode()
        for count, expected in (8, REFUSED), (9, UNAVAILABLE):  # nobody anywhere; and perhaps somewhere
            site.directory.on_search = lambda peer, request: peer.send(
                b"".join(referred(request.id, here % str(number).encode()) for number in range(count)
                         if request.name == b"dc=example") + done(request.id))
            searches = site.directory.count(SEARCH)
            assert re.match(expected, site.login())
            assert site.directory.count(SEARCH) == searches + 1 + 8


def test_entry_without_name(site):
    site.directory.on_search = lambda peer, request: peer.send(found(request.id, dn=b"") + done(request.id))
    assert re.match(INTERNAL, site.login())


def test_unknown_users_are_not_told_apart(site):
    """As many searches and binds as for a wrong password, and the same answer; the decoy is nobody's account."""
    def counted(user, password):
        before = [site.directory.count(kind) for kind in (SEARCH, BIND)]
        answer = site.login(user, password)
        return answer, [site.directory.count(kind) - count for kind, count in zip((SEARCH, BIND), before)]
    wrong = counted("alice", "wrong")
    site.directory.on_search = lambda peer, request: peer.send(done(request.id))
    site.directory.on_bind = lambda peer, request: peer.send(bound(request.id))
    unknown = counted("nobody", "secret")
    assert wrong == unknown and wrong[1] == [1, 1]
    assert re.match(REFUSED, wrong[0])


# How long the directory's silence is heard

def test_silence_is_heard_once(site):
    """The first login waits for it. When a probe has had no answer either, further ones do not."""
    site.directory.on_search = site.directory.on_service = hang
    searches, unavailable = site.directory.count(SEARCH), site.proxy.metrics()["imapmux_logins_unavailable_total"]
    assert re.match(UNAVAILABLE, site.login())
    servers.wait_for(lambda: site.proxy.metrics()["imapmux_ldap_down"] == 1, "the directory to count as down")
    asked = site.directory.count(SEARCH)
    assert asked == searches + 1
    for _ in range(20):
        assert re.match(UNAVAILABLE, site.login())
    assert site.directory.count(SEARCH) == asked
    assert site.proxy.metrics()["imapmux_logins_unavailable_total"] == unavailable + 21
    site.recovers()
    metrics = site.proxy.metrics()
    assert metrics["imapmux_ldap_down"] == 0
    assert re.match(REFUSED, site.login(password="wrong"))
    assert site.proxy.metrics()["imapmux_logins_unavailable_total"] == metrics["imapmux_logins_unavailable_total"]


def test_slow_operation_is_no_outage(site):
    """One search is late, the probe after it is answered: others hardly notice."""
    late = []

    def slow_once(peer, request):
        if not late and request.name == b"dc=example":
            late.append(request)
        else:
            peer.send(found(request.id) + done(request.id))
    site.directory.on_search = slow_once
    downs = len(site.proxy.events("ldap server is down"))
    assert re.match(UNAVAILABLE, site.login())
    servers.wait_for(lambda: re.match(OK, site.login()), "the next login")
    assert len(site.proxy.events("ldap server is down")) == downs
