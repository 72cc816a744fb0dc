"""
Who logs in, and whose mail it is then: by client certificate (EXTERNAL), and as another (master users), with real
Dovecot. Each mailbox has a folder that tells whose it is.
"""
import base64
import re
import ssl

import pytest

import servers
from authority import Authority
from conftest import PASSWORD
from imapwire import Closed, Wire, is_tagged, last_line_start, unverified_context
from mailboxes import mark, whose
from pooling import ProxyLog, StoreLog, log_out, password_lines

USERS = ("alice", "bob", "carol", "dave", "erin", "helpdesk", "second")
# How the store of each user lets users in who come without a password of their own.
ROUTES = {"alice": "authzid", "bob": "suffix", "carol": "bare", "dave": "mastered", "*": "authzid"}
SHARD = 'shard {name} {{ address = {{"127.0.0.1:{port}"}} tls = none {more} }}\n'
MASTER = 'master_user = "{user}" master_password_file = "{file}"'
SHARDS = {"authzid": "passwordless_login = master_authzid " + MASTER,
          "suffix": "passwordless_login = master_suffix " + MASTER,
          "bare": "", "mastered": "login = master_authzid " + MASTER}
CONF = """
process {{ workers = 2  stop_timeout = 10s }}
metrics {{ file = "metrics.prom" interval = 100ms }}
certificate main {{ chain = "{chain}" key = "{key}" }}
tls {{ {tls} }}
listener plain {{ address = {{"127.0.0.1:{plain}"}} tls = none plaintext_login = yes }}
listener starttls {{ address = {{"127.0.0.1:{starttls}"}} tls = starttls }}
listener imaps {{ address = {{"127.0.0.1:{imaps}"}} tls = implicit }}
auth {{ sources = {{passwd}} master_users = {{Helpdesk, second}} {auth} }}
username {{ domain_map = {{"example.org="}} }}
throttle {{ trusted = {{"127.0.0.0/8"}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{file}} file = "routes" }}
pool {{ warm = 0  park_time = 10m  park_per_user = 8 }}
{shards}
"""


class SaslProxy(servers.Imapmux):
    """imapmux that asks clients for certificates, if `tls` says so, before one Dovecot that has several names."""

    def prepare(self, store, certificate, tls="", auth=""):
        self.port = {name: servers.free_port() for name in ("plain", "starttls", "imaps")}
        (self.folder / "passwd").write_text(password_lines(USERS))
        (self.folder / "passwd").chmod(0o600)
        (self.folder / "master").write_text(servers.MASTER_PASSWORD)
        (self.folder / "routes").write_text("".join(f"{user} {shard}\n" for user, shard in ROUTES.items()))
        known = {"user": servers.MASTER_USER, "file": self.folder / "master"}
        shards = "".join(SHARD.format(name=name, port=store.port, more=more.format(**known))
                         for name, more in SHARDS.items())
        super().prepare(CONF.format(chain=certificate[0], key=certificate[1], tls=tls, auth=auth, shards=shards,
                                    **self.port), list(self.port.values()))

    def wire(self, own=None, listener="imaps", **options):
        """`own` is the client's certificate."""
        options.setdefault("context", context_of(own))
        return Wire(servers.HOST, self.port[listener], tls={"imaps": "implicit", "starttls": "starttls"}.get(listener),
                    **options)


def context_of(own, version=None):
    context = unverified_context()
    if own:
        context.load_cert_chain(own)
    if version:
        context.minimum_version = context.maximum_version = version
    return context


def in_base64(text):
    return base64.b64encode(text.encode()) or b"="


def external(wire, login_as=""):
    return wire.command(b"AUTHENTICATE EXTERNAL " + in_base64(login_as))


def plain(wire, user, login_as="", password=PASSWORD):
    return wire.command(b"AUTHENTICATE PLAIN " + in_base64(f"{login_as}\0{user}\0{password}"))


def assert_in(wire, answer, user):
    assert re.search(rb"^t\d+ OK ", last_line_start(answer)), answer
    assert whose(wire) == [user.encode()]


def assert_refused(answer, code):
    assert re.search(rb"^t\d+ NO \[%s\] " % code, last_line_start(answer)), answer


@pytest.fixture(scope="module")
def store(folder, certificate):
    with servers.Dovecot(folder / "sasl-store", users={user: PASSWORD for user in (*USERS, "stranger")}) as server:
        mark(server, USERS)
        yield server


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder / "authority", "Our authority")


@pytest.fixture(scope="module")
def own(authority):
    """Certificates by name: alice's tells her name in every way, but never the same one."""
    upn = "otherName:1.3.6.1.4.1.311.20.2.3;UTF8:dave@example.org"
    found = {"alice": authority.issue("alice", "/O=Example/CN=Alice/UID=bob",
                                      [f"subjectAltName=DNS:x.example.org,email:helpdesk@Example.org,{upn}"])}
    for user in ("bob", "carol", "erin", "helpdesk", "stranger", "second"):
        found[user] = authority.issue(user, f"/CN={user}")
    found["two names"] = authority.issue("two", "/CN=alice/CN=bob")
    found["no name"] = authority.issue("none", "/O=alice")
    found["spaces"] = authority.issue("spaces", "/CN=alice smith")
    return found


@pytest.fixture(scope="module")
def start(folder, store, certificate):
    """Starts proxies; each is stopped, in order, at the end of the module."""
    running = []

    def start_one(**options):
        running.append(SaslProxy(folder / f"sasl-{len(running)}", store=store, certificate=certificate, **options))
        return running[-1]
    yield start_one
    for proxy in running:
        proxy.stop()


@pytest.fixture(scope="module")
def proxy(start, authority):
    return start(tls=f'client_ca_file = "{authority.file}"')


# Certificates

@pytest.mark.parametrize("field,user", [("cn", "alice"), ("uid", "bob"), ("email", "helpdesk"), ("upn", "dave")])
def test_each_field(start, authority, own, field, user):
    proxy = start(tls=f'client_ca_file = "{authority.file}" client_user = {field}')
    for listener in ("imaps", "starttls"):
        with proxy.wire(own["alice"], listener) as wire:
            assert b"AUTH=EXTERNAL" in wire.command(b"CAPABILITY")
            assert_in(wire, external(wire), user)
    with proxy.wire(own["alice"]) as wire:  # without an initial response
        wire.send(b"e AUTHENTICATE EXTERNAL\r\n")
        assert wire.read_response() == b"+ \r\n"
        wire.send(b"\r\n")
        assert is_tagged(wire.read_response(), b"e OK")
        assert whose(wire) == [user.encode()]
    assert {(line["user"], line["method"]) for line in proxy.events("login ok")} == {(user, "EXTERNAL")}


@pytest.mark.parametrize("name", [None, "two names", "no name"])
@pytest.mark.parametrize("listener", ["imaps", "starttls"])
def test_without_a_name_it_is_not_offered(proxy, own, name, listener):
    with proxy.wire(name and own[name], listener) as wire:
        assert b"EXTERNAL" not in wire.command(b"CAPABILITY")
        assert_refused(external(wire), b"CANNOT")
        assert_refused(external(wire, "alice"), b"CANNOT")
        assert_in(wire, plain(wire, "alice"), "alice")


def test_a_password_is_still_good(proxy, own):
    """Who has a certificate may log in as somebody else all the same, with that one's password."""
    with proxy.wire(own["bob"]) as wire:
        assert b"AUTH=PLAIN" in wire.greeting and b"AUTH=EXTERNAL" in wire.greeting
        wire.login("alice", PASSWORD)
        assert whose(wire) == [b"alice"]


@pytest.mark.parametrize("name", ["stranger", "spaces"])
def test_nobody_we_know(proxy, own, name):
    with proxy.wire(own[name]) as wire:
        assert b"AUTH=EXTERNAL" in wire.greeting
        assert_refused(external(wire), b"AUTHENTICATIONFAILED")
        assert_refused(external(wire, "alice"), b"AUTHENTICATIONFAILED")


def bad_certificates(folder, authority):
    """By what the log says of them."""
    stranger = Authority(folder, "Our authority")  # by the same name
    revoked = authority.issue("revoked", "/CN=alice")
    authority.revoke(revoked)
    return {"unable to get local issuer|self.signed|signature": stranger.issue("alice", "/CN=alice"),
            "expired": authority.issue("expired", "/CN=alice", starts=-20, ends=-1),
            "not yet valid": authority.issue("early", "/CN=alice", starts=1),
            "purpose|unsuitable": authority.issue("server", "/CN=alice", ["extendedKeyUsage=serverAuth"]),
            "revoked": revoked}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bad_certificates_end_the_handshake(start, folder, authority, own, version):
    bad = bad_certificates(folder / version.name, authority)
    proxy = start(tls=f'client_ca_file = "{authority.file}" client_crl_file = "{authority.crl()}"')
    for number, (why, file) in enumerate(bad.items(), 1):
        with pytest.raises((ssl.SSLError, ConnectionError, Closed)):
            proxy.wire(file, context=context_of(file, version))
        servers.wait_for(lambda: len(proxy.events("session end")) == number, "the end of a session in the log")
        assert re.search(why, proxy.events("session end")[-1]["why"]), proxy.events("session end")[-1]
    assert proxy.metrics()["imapmux_tls_failed_total"] == len(bad)
    with proxy.wire(own["alice"], context=context_of(own["alice"], version)) as wire:
        assert_in(wire, external(wire), "alice")


class Resuming:
    """A TLS context for one connection, that resumes another one."""

    def __init__(self, context, session):
        self.context, self.session = context, session

    def wrap_socket(self, connection, server_hostname):
        return self.context.wrap_socket(connection, server_hostname=server_hostname, session=self.session)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_resumed_connections_keep_the_certificate(proxy, own, version):
    """Whichever of the workers has them."""
    context = context_of(own["alice"], version)
    with proxy.wire(context=context) as wire:
        assert_in(wire, external(wire), "alice")
        session = wire.socket.session
    for _ in range(8):
        with proxy.wire(context=Resuming(context, session)) as wire:
            assert wire.socket.session_reused and b"AUTH=EXTERNAL" in wire.greeting
            assert_in(wire, external(wire), "alice")
    nobody = context_of(None, version)
    with proxy.wire(context=nobody) as wire:
        session = wire.socket.session
    nobody.load_cert_chain(own["alice"])  # too late for this session
    with proxy.wire(context=Resuming(nobody, session)) as wire:
        assert wire.socket.session_reused and b"AUTH=EXTERNAL" not in wire.greeting
        assert_refused(external(wire), b"CANNOT")


def test_without_look_up(start, authority, own):
    """The certificate alone decides who there is."""
    proxy = start(tls=f'client_ca_file = "{authority.file}"', auth="look_up = no")
    with proxy.wire(own["stranger"]) as wire:
        answer = external(wire)
        assert re.search(rb"^t\d+ OK ", last_line_start(answer)), answer
        assert whose(wire) == []  # whom the store knows, and no source here
    with proxy.wire(own["alice"]) as wire:
        assert_refused(external(wire, "bob"), b"AUTHORIZATIONFAILED")
        assert_in(wire, external(wire), "alice")


# As another

@pytest.mark.parametrize("user,login_as,whom", [
    ("alice", "", "alice"), ("alice", "alice", "alice"), ("alice", "ALICE@Example.org", "alice"),
    ("helpdesk", "alice", "alice"), ("helpdesk", "Bob", "bob"), ("helpdesk", "dave@EXAMPLE.ORG", "dave"),
    ("helpdesk", "helpdesk", "helpdesk"), ("second", "helpdesk", "helpdesk")])
def test_log_in_as(proxy, own, user, login_as, whom):
    """By password and by certificate; the log says who it was."""
    for by, name in ((lambda wire: plain(wire, user, login_as), None), (lambda wire: external(wire, login_as), user)):
        oks, ends = len(proxy.events("login ok")), len(proxy.events("session end"))
        with proxy.wire(name and own[name]) as wire:
            assert_in(wire, by(wire), whom)
            log_out(wire)
        servers.wait_for(lambda: len(proxy.events("session end")) > ends, "the end in the log")
        for event, count in (("login ok", oks), ("session end", ends)):
            line, = proxy.events(event)[count:]
            assert (line["user"], line.get("master")) == (whom, user if user != whom else None), line


@pytest.mark.parametrize("user,login_as,code", [
    ("alice", "bob", b"AUTHORIZATIONFAILED"), ("alice", "nobody", b"AUTHORIZATIONFAILED"),
    ("alice", "helpdesk", b"AUTHORIZATIONFAILED"), ("helpdesk", "nobody", b"AUTHORIZATIONFAILED"),
    ("helpdesk", "no body", b"AUTHENTICATIONFAILED"), ("helpdesk", "a" * 600, b"AUTHENTICATIONFAILED"),
    ("helpdesk", "alice@other.org", b"AUTHORIZATIONFAILED"), ("helpdesk", "carol", b"CONTACTADMIN")])
def test_not_as(proxy, own, user, login_as, code):
    """And it leaves nothing behind: whoever logs in next on the same connection is itself."""
    with proxy.wire(own[user]) as wire:
        for _ in range(2):
            assert_refused(plain(wire, user, login_as), code)
            assert_refused(external(wire, login_as), code)
        assert_refused(plain(wire, user, login_as, password="wrong"), b"AUTHENTICATIONFAILED")
        if user == "alice":
            assert_in(wire, external(wire), "alice")
        else:
            wire.login("bob", PASSWORD)
            assert whose(wire) == [b"bob"]


def test_a_refusal_is_logged(proxy, own):
    before = len(proxy.events("login refused"))
    with proxy.wire(own["alice"]) as wire:
        external(wire, "bob")
    line, = proxy.events("login refused")[before:]
    assert (line["user"], line["login_as"], line["method"], line["reason"]) == \
        ("alice", "bob", "EXTERNAL", "authorization"), line


@pytest.mark.parametrize("name", ["carol", "helpdesk"])
def test_a_store_without_a_way(proxy, own, name):
    """carol by certificate, and helpdesk as her: her store knows no master user. With her password all is well."""
    before = len(proxy.events("login refused"))
    with proxy.wire(own[name]) as wire:
        assert_refused(external(wire, "" if name == "carol" else "carol"), b"CONTACTADMIN")
        assert_in(wire, plain(wire, "carol"), "carol")
    line, = proxy.events("login refused")[before:]
    assert line["user"] == "carol" and line["reason"] == "config" and "passwordless_login" in line["detail"], line


# Parked connections

class Visits:
    """Logs erin in, and sees how: by a new connection to the store, or by one that was parked."""

    def __init__(self, proxy):
        self.proxy, self.log, self.count = proxy, ProxyLog(proxy), 0

    def __call__(self, log_in, own):
        with self.proxy.wire(own) as wire:
            assert_in(wire, log_in(wire), "erin")
            log_out(wire)
        self.count += 1
        lease = self.log.wait_for_leases("erin", self.count)[-1]
        servers.wait_for(lambda: self.proxy.metrics()["imapmux_backends_parked"] == 1, "the connection to be parked")
        return lease


def test_parked_connections_are_for_the_same_proof(start, authority, own, store):
    """One after the other, in each order; it is the store's log that counts."""
    visit, log = Visits(start(tls=f'client_ca_file = "{authority.file}"')), StoreLog(store)
    ways = {"password": (lambda wire: plain(wire, "erin"), None),
            "certificate": (external, own["erin"]),
            "helpdesk": (lambda wire: plain(wire, "helpdesk", "erin"), None),
            "helpdesk by certificate": (lambda wire: external(wire, "erin"), own["helpdesk"]),
            "second": (lambda wire: plain(wire, "second", "erin"), None)}
    who = {name: "helpdesk" if name.startswith("helpdesk") else name for name in ways}  # however a master is proven
    logins, last = 1, None  # one has made the folder
    for name in [name for first in ways for then in ways for name in (first, then)]:
        same = last is not None and who[name] == who[last]
        assert visit(*ways[name]) == ("parked" if same else "new"), (last, name)
        logins, last = logins + (not same), name
    servers.wait_for(lambda: log.logins("erin") >= logins, "all logins in Dovecot's log")
    assert log.logins("erin") == logins
    log.close()
