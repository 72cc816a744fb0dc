"""
Who logs in with a token (OAUTHBEARER, XOAUTH2), and how the store hears of it: by the token, which Dovecot verifies
itself, or by its master user. Each mailbox has a folder that tells whose it is.
"""
import base64
import json
import re

import pytest

import servers
from conftest import PASSWORD
from imapwire import Wire, last_line_start
from issuer import Issuer
from mailboxes import mark, whose
from pooling import password_lines

USERS = ("alice", "bob", "helpdesk")
DISCOVERY = "https://issuer.example.org/.well-known/openid-configuration"
MASTER = f'master_user = "{servers.MASTER_USER}" master_password_file = "master" passwordless_login = master_authzid'
CONF = """
log {{ level = debug }}
process {{ workers = 2 }}
listener plain {{ address = {{"127.0.0.1:{port}"}} tls = none plaintext_login = yes {listener} }}
auth {{ {auth} master_users = {{helpdesk}} }}
oauth {{
    keys = "{issuer.file}"
    issuer = "{issuer.name}"
    audience = {{ "imap" }}
    scope = {{ "mail" }}
    discovery_url = "{discovery}"
}}
username {{ domain_map = {{"example.org="}} }}
throttle {{ trusted = {{"127.0.0.0/8"}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{file}} file = "routes" }}
pool {{ warm = 0 park_time = 0s }}
shard store {{ address = {{"{store.host}:{store.port}"}} tls = none {shard} }}
"""
STORE = """
auth_mechanisms = plain login oauthbearer xoauth2
passdb {{
  driver = oauth2
  mechanisms = oauthbearer xoauth2
  args = {conf}
}}
"""
STORE_TOKENS = """
introspection_mode = local
local_validation_key_dict = fs:posix:prefix={keys}/
username_attribute = sub
"""


class TokenProxy(servers.Imapmux):
    """imapmux that takes tokens of `issuer`, before one Dovecot."""

    def prepare(self, store, issuer, shard="", listener="", auth="sources = {passwd}"):
        self.port = servers.free_port()
        (self.folder / "passwd").write_text(password_lines(USERS))
        (self.folder / "passwd").chmod(0o600)
        (self.folder / "master").write_text(servers.MASTER_PASSWORD)
        (self.folder / "routes").write_text("* store\n")
        super().prepare(CONF.format(port=self.port, issuer=issuer, store=store, shard=shard, listener=listener, auth=auth,
                                    discovery=DISCOVERY), [self.port])

    def wire(self):
        return Wire(servers.HOST, self.port)


@pytest.fixture(scope="module")
def issuer(folder):
    return Issuer(folder / "issuer")


@pytest.fixture(scope="module")
def store(folder, issuer):
    keys = folder / "store-keys/default/RS256"
    keys.mkdir(parents=True)
    (keys / "first").write_bytes(issuer.public("first").read_bytes())
    conf = folder / "oauth2.conf"
    conf.write_text(STORE_TOKENS.format(keys=folder / "store-keys"))
    with servers.Dovecot(folder / "token-store", users={user: PASSWORD for user in USERS},
                         more=STORE.format(conf=conf)) as server:
        mark(server, USERS)
        yield server


@pytest.fixture(scope="module")
def proxy(folder, store, issuer):
    with TokenProxy(folder / "tokens", store=store, issuer=issuer) as one:
        yield one


@pytest.fixture(scope="module")
def mastered(folder, store, issuer):
    with TokenProxy(folder / "mastered", store=store, issuer=issuer, shard=f"forward_token = no {MASTER}") as one:
        yield one


def message_of(mechanism, token, user=None):
    """The initial response."""
    if mechanism == "OAUTHBEARER":
        text = f"n,{'a=' + user if user else ''},\1host=imap.example.org\1port=993\1auth=Bearer {token}\1\1"
    else:
        text = f"user={user or ''}\1auth=Bearer {token}\1\1"
    return base64.b64encode(text.encode())


def log_in(wire, mechanism, token, user=None):
    return wire.command(b"AUTHENTICATE " + mechanism.encode() + b" " + message_of(mechanism, token, user))


def assert_in(wire, answer, user):
    assert re.search(rb"^t\d+ OK ", last_line_start(answer)), answer
    assert whose(wire) == [user.encode()]


def hear_reason(wire, mechanism, token, user=None):
    """What is told of a refused token in a challenge, and the tagged answer after that."""
    wire.send(b"a AUTHENTICATE " + mechanism.encode() + b" " + message_of(mechanism, token, user) + b"\r\n")
    challenge = wire.read_line()
    assert challenge.startswith(b"+ "), challenge
    wire.send(b"AQ==\r\n" if mechanism == "OAUTHBEARER" else b"\r\n")
    return json.loads(base64.b64decode(challenge[2:])), wire.read_tagged(b"a")


@pytest.mark.parametrize("way", ["forwarded", "by master"])
@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_login(request, proxy, mastered, store, issuer, mechanism, way):
    through = {"forwarded": proxy, "by master": mastered}[way]
    for user in (None, "alice", "Alice@example.org"):
        with through.wire() as wire:
            assert b" SASL-IR " in wire.greeting and b" AUTH=OAUTHBEARER AUTH=XOAUTH2]" in wire.greeting
            assert_in(wire, log_in(wire, mechanism, issuer.token("alice"), user), "alice")
    logins = re.findall(r"Login: user=<alice>, method=(\w+)", store.output())
    assert logins[-3:] == [{"forwarded": "OAUTHBEARER", "by master": "PLAIN"}[way]] * 3


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_without_an_initial_response(proxy, issuer, mechanism):
    with proxy.wire() as wire:
        wire.send(b"t1 AUTHENTICATE " + mechanism.encode() + b"\r\n")
        assert wire.read_line() == b"+ \r\n"
        wire.send(message_of(mechanism, issuer.token("bob")) + b"\r\n")
        assert_in(wire, wire.read_tagged(b"t1"), "bob")


def test_why_a_token_is_refused(proxy, issuer):
    bad = {"expired": issuer.token("alice", exp=1), "for others": issuer.token("alice", aud="web"),
           "of another": issuer.token("alice", iss="https://other.example.org/"),
           "without the scope": issuer.token("alice", scope="openid"), "unknown": issuer.token("nobody"),
           "cut": issuer.token("alice")[:-4], "none": "x"}
    for mechanism in ("OAUTHBEARER", "XOAUTH2"):
        with proxy.wire() as wire:
            for token in bad.values():
                reason, answer = hear_reason(wire, mechanism, token)
                assert reason == {"status": "invalid_token", "scope": "mail", "openid-configuration": DISCOVERY}
                assert answer.startswith(b"a NO [AUTHENTICATIONFAILED] "), answer
            assert_in(wire, log_in(wire, mechanism, issuer.token("alice")), "alice")
    refusals = [event.get("detail", "") for event in proxy.events("login refused")]
    for word in ("exp", "aud", "iss", "scope"):
        assert any(word in detail for detail in refusals), refusals


def test_for_another(mastered, issuer):
    with mastered.wire() as wire:
        answer = log_in(wire, "OAUTHBEARER", issuer.token("alice"), "bob")
        assert b" NO [AUTHORIZATIONFAILED] " in answer, answer
        assert_in(wire, log_in(wire, "OAUTHBEARER", issuer.token("helpdesk"), "bob"), "bob")
    event = mastered.events("login ok")[-1]
    assert (event["user"], event["master"], event["method"]) == ("bob", "helpdesk", "OAUTHBEARER")


def test_a_new_key(mastered, issuer):
    """A store of its own need not know it: the master user logs in."""
    issuer.add_key("second")
    with mastered.wire() as wire:
        assert_in(wire, log_in(wire, "XOAUTH2", issuer.token("alice")), "alice")


def test_a_token_that_the_store_refuses(proxy, issuer):
    """It knows only the first key."""
    assert issuer.kid == "second"
    with proxy.wire() as wire:
        reason, answer = hear_reason(wire, "OAUTHBEARER", issuer.token("alice"))
        assert reason["status"] == "invalid_token" and answer.startswith(b"a NO "), answer


def test_only_tokens(folder, store, issuer):
    with TokenProxy(folder / "only-tokens", store=store, issuer=issuer,
                    listener='mechanisms = {"OAUTHBEARER"}') as proxy:
        with proxy.wire() as wire:
            assert b" LOGINDISABLED AUTH=OAUTHBEARER]" in wire.greeting
            assert b" NO [CANNOT] " in wire.command(b"LOGIN alice x")
            assert b" NO [CANNOT] " in wire.command(b"AUTHENTICATE XOAUTH2")


def test_nobody_but_the_issuer_knows_users(folder, store, issuer):
    with TokenProxy(folder / "no-source", store=store, issuer=issuer, shard=f"forward_token = no {MASTER}",
                    auth="sources = {} look_up = no") as proxy:
        with proxy.wire() as wire:
            assert b" LOGINDISABLED AUTH=OAUTHBEARER AUTH=XOAUTH2]" in wire.greeting
            assert_in(wire, log_in(wire, "XOAUTH2", issuer.token("alice"), "alice@example.org"), "alice")


def test_no_token_is_logged(proxy, mastered, issuer):
    token = issuer.token("alice")
    with mastered.wire() as wire:
        assert_in(wire, log_in(wire, "OAUTHBEARER", token), "alice")
    for one in (proxy, mastered):
        assert token[:20] not in one.output() and token[-20:] not in one.output()
        assert issuer.token("bob", exp=1).split(".")[1][:20] not in one.output()
