"""
Stores that refer a user to another one at login (RFC 2221): whether the session goes on there, and what it is told if
it must not.
"""
import json
import socket
import subprocess

import pytest

import servers
from imapwire import quoted
from stage import CAPABILITIES, PASSWORD, Store, good, shard

SHARDS = ("store", "blue", "green", "red")


def refer(to, code="NO", user="alice;AUTH=*"):
    """The script of a store that refers everybody to the store `to`, or to a host and port as they stand in a URL."""
    def script(peer):
        peer.greet()
        peer.until_login()
        where = f"{servers.HOST}:{to.port}" if isinstance(to, Store) else to
        peer.send(b"* CAPABILITY " + CAPABILITIES + b"\r\n")
        peer.send(f"L {code} [REFERRAL imap://{user}@{where}/] Try there\r\n".encode())
        peer.wait_for_end() if code != "OK" else peer.serve()
    return script


@pytest.fixture(scope="module")
def stores():
    opened = [Store() for _ in SHARDS]
    yield opened
    for store in opened:
        store.close()


@pytest.fixture(autouse=True)
def good_again(stores):
    for store in stores:
        store.script, store.peers = good, []
    yield
    for store in stores:
        store.check()


def shards_of(stores):
    return "".join(shard(name, store.port) for name, store in zip(SHARDS, stores)) + \
        shard("twin", 1, host="twins.example") + shard("twin2", 1, 2, host="twins.example")


@pytest.fixture(scope="module")
def proxies(start, stores):
    """By how many referrals they follow."""
    begun = {}

    def get(hops):
        if hops not in begun:
            sources = "auth { sources = {passwd} }\npasswd { file = \"passwd\" }\n" \
                f"route {{ sources = {{file}} file = \"routes\" follow_referrals = {hops} }}\n"
            begun[hops] = start(shards_of(stores), sources=sources)
        return begun[hops]
    return get


def refused(proxy, *reasons, user="alice"):
    """The client is told to come again, and may try at once; the log says why, in one line."""
    before = len(proxy.events("login refused"))
    with proxy.wire() as wire:
        answer = wire.command(b"LOGIN " + quoted(user) + b" " + quoted(PASSWORD))
        assert answer.startswith(b"t1 NO [UNAVAILABLE] "), answer
        assert wire.command(b"NOOP").startswith(b"t2 OK")
    servers.wait_for(lambda: len(proxy.events("login refused")) > before, "a line of the log")
    lines = proxy.events("login refused")[before:]
    assert len(lines) == 1 and lines[0]["level"] == "warning" and lines[0]["user"] == user, lines
    for reason in reasons:
        assert reason in lines[0]["detail"], lines
    return lines[0]


def heard(store):
    return b"".join(b"".join(peer.heard) for peer in store.peers)


def logins(store):
    return heard(store).count(b"L AUTHENTICATE")


# Followed

def test_the_session_goes_on_where_the_store_refers_to(proxies, stores):
    proxy, (store, blue, _, red) = proxies(3), stores
    store.script = refer(blue)
    with proxy.logged_in() as wire:
        assert wire.command(b"NOOP") == b"t1 OK NOOP done\r\n"
        assert (logins(store), logins(blue), logins(red)) == (1, 1, 0)
    line = proxy.wait_for_event("referral")
    assert "shard store refers to shard blue" in line["detail"] and "of alice" in line["detail"]
    servers.wait_for(lambda: [end["shard"] for end in proxy.events("session end") if "shard" in end][-1:] == ["blue"],
                     "the end at the other store")


def test_several_in_a_row(proxies, stores):
    store, blue, green, red = stores
    store.script, blue.script, green.script = refer(blue), refer(green), refer(red)
    with proxies(3).logged_in():
        assert [logins(each) for each in stores] == [1, 1, 1, 1]


def test_what_stands_in_the_pipeline_goes_along(proxies, stores):
    stores[0].script = refer(stores[1])
    with proxies(3).wire() as wire:
        wire.send(b"a LOGIN alice " + PASSWORD.encode() + b"\r\nb NOOP\r\n")
        assert wire.read_tagged(b"b").endswith(b"b OK NOOP done\r\n")


def test_each_login_counts_anew(proxies, stores):
    """A second try on the same connection has no hops behind it."""
    proxy, (store, blue, green, _) = proxies(1), stores
    store.script, blue.script = refer(blue), refer(green)
    with proxy.wire() as wire:
        assert b"NO [UNAVAILABLE]" in wire.command(b"LOGIN alice " + PASSWORD.encode())
        blue.script = good
        assert b"OK" in wire.command(b"LOGIN alice " + PASSWORD.encode())
    assert (logins(store), logins(blue), logins(green)) == (2, 2, 0)


@pytest.mark.parametrize("user", ["alice", "ALICE;AUTH=PLAIN", "%61lic%65;AUTH=*"])
def test_the_same_user_in_other_spellings(proxies, stores, user):
    stores[0].script = refer(stores[1], user=user)
    with proxies(3).logged_in():
        assert logins(stores[1]) == 1


def test_a_name_that_needs_encoding(start, stores):
    proxy = start(shards_of(stores), users=("ann@example.org",),
                  sources='auth { sources = {passwd} }\npasswd { file = "passwd" }\n'
                          'route { sources = {file} file = "routes" follow_referrals = 1 }\n')
    for user in "ann%40example.org;AUTH=*", "ann@example.org;AUTH=PLAIN":
        stores[0].script = refer(stores[1], user=user)
        proxy.logged_in("ann@example.org").close()
    stores[0].script = refer(stores[1], user="ann%2540example.org")
    refused(proxy, "for another user", user="ann@example.org")


def test_an_ok_with_a_referral_is_an_ok(proxies, stores):
    """RFC 2221 4.2: the user may stay."""
    stores[0].script = refer(stores[1], code="OK")
    with proxies(3).logged_in() as wire:
        assert b"OK" in wire.command(b"NOOP")
    assert logins(stores[1]) == 0


# Not followed

def test_unless_it_is_configured_nothing_is_followed(proxies, stores):
    stores[0].script = refer(stores[1])
    line = refused(proxies(0), "shard store refers to 127.0.0.1, but route.follow_referrals is 0")
    assert line["reason"] == "referral" and line["shard"] == "store"
    assert logins(stores[1]) == 0


@pytest.mark.parametrize("to,reason", [
    ("elsewhere.example", "that is no shard"), ("127.0.0.1:1", "that is no shard"), ("127.0.0.1", "several shards"),
    ("twins.example:1", "several shards are there"), ("twins.example", "several shards are there"),
    ("[::1]:143", "that is no shard")])
def test_only_shards_that_are_configured(proxies, stores, to, reason):
    stores[0].script = refer(to)
    assert refused(proxies(3), reason)["reason"] == "referral"
    assert sum(logins(store) for store in stores) == 1


@pytest.mark.parametrize("user", ["bob;AUTH=*", ";AUTH=*", "", "alice%40x", "alice%20", "proxymaster"])
def test_another_user(proxies, stores, user):
    stores[0].script = refer(stores[1], user=user)
    refused(proxies(3), "for another user")
    assert logins(stores[1]) == 0


@pytest.mark.parametrize("url", [
    "", "http://127.0.0.1/", "imap://alice@", "imap://alice%0d%0aL%20OK@127.0.0.1/", "imap://alice@127.0.0.1:99999/",
    "x" * 8000, "imap://alice@" + "h" * 5000 + "/", "imap://" + "a" * 5000 + "@127.0.0.1/"])
def test_what_is_no_url(proxies, stores, url):
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L NO [REFERRAL " + url.encode() + b"] Try there\r\n")
        peer.wait_for_end()
    stores[0].script = script
    assert refused(proxies(3), "login refused: [REFERRAL")["reason"] == "unavailable"
    assert sum(logins(store) for store in stores) == 1


def test_circles(proxies, stores):
    store, blue, green, _ = stores
    store.script = refer(store)
    refused(proxies(3), "shard store refers back to shard store")
    store.script, blue.script, green.script = refer(blue), refer(green), refer(store)
    refused(proxies(3), "shard green refers back to shard store")
    assert (logins(blue), logins(green)) == (1, 1)


@pytest.mark.parametrize("hops", [1, 2])
def test_too_many(proxies, stores, hops):
    for here, there in zip(stores, stores[1:]):
        here.script = refer(there)
    refused(proxies(hops), f"refers to shard {SHARDS[hops + 1]}: more than route.follow_referrals in a row")
    assert [logins(store) for store in stores] == [1] * (hops + 1) + [0] * (3 - hops)


def test_the_other_store_may_refuse(proxies, stores):
    def refuse(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L NO [LIMIT] Too many\r\n")
        peer.wait_for_end()
    stores[0].script, stores[1].script = refer(stores[1]), refuse
    with proxies(3).wire() as wire:
        assert b"NO [LIMIT] " in wire.command(b"LOGIN alice " + PASSWORD.encode())
        assert b"OK" in wire.command(b"NOOP")


# A real one

def test_dovecot_refers(start, folder):
    users = {"alice": PASSWORD, "bob": PASSWORD}
    with servers.Dovecot(folder / "old", users=users) as old, servers.Dovecot(folder / "new", users=users) as new:
        with (old.folder / "users").open("w") as file:
            file.write(f"alice:{{PLAIN}}{PASSWORD}::::::nologin host={new.host} port={new.port}\n"
                       f"bob:{{PLAIN}}{PASSWORD}::::::\n")
        proxy = start(shard("store", old.port) + shard("new", new.port),
                      sources='auth { sources = {passwd} }\npasswd { file = "passwd" }\n'
                              'route { sources = {file} file = "routes" follow_referrals = 1 }\n')
        with proxy.logged_in("alice") as alice, proxy.logged_in("bob") as bob:
            assert b"OK" in alice.command(b"CREATE there") and b"OK" in bob.command(b"CREATE here")
        assert (new.mail / "alice").exists() and not (old.mail / "alice").exists()
        assert (old.mail / "bob").exists() and not (new.mail / "bob").exists()
        assert "shard store refers to shard new" in proxy.wait_for_event("referral")["detail"]


# Kept

KEPT = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{redis, file}} file = "routes" follow_referrals = 3 keep_referrals = yes cache_ttl = 0s }}
redis {{ address = "{redis.address}" connect_timeout = 1s timeout = 1s retry_max = 200ms }}
"""


FRESH = [f"fresh{number}" for number in range(10)]  # an epoch that was heard of never comes down again


@pytest.fixture(scope="module")
def names():
    return iter(FRESH)


@pytest.fixture
def user(names):
    return next(names)


@pytest.fixture(scope="module")
def redis(folder):
    with servers.Redis(folder / "redis") as running:
        yield running


@pytest.fixture(scope="module")
def keeping(start, stores, redis):
    return start(shards_of(stores), users=FRESH, sources=KEPT.format(redis=redis))


@pytest.fixture
def events(redis):
    """What is published, as it comes."""
    host, port = redis.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as subscriber:
        told = subscriber.makefile("rb")
        subscriber.sendall(b"SUBSCRIBE imapmux:events\r\n")
        for _ in range(6):  # an array of three
            told.readline()

        def one():
            while True:
                line = told.readline()
                if b'"route"' in line:
                    return json.loads(line)
        yield one


def route(redis, user):
    told = subprocess.run(["redis-cli", "-p", str(redis.port), "HGETALL", f"imapmux:user:{{{user}}}"],
                          capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(told[::2], told[1::2]))


def test_the_route_is_corrected(keeping, stores, redis, events, user):
    store, blue, green, _ = stores
    redis.call("HSET", f"imapmux:user:{{{user}}}", "shard", "store", "epoch", "41")
    store.script, blue.script = refer(blue, user=user), refer(green, user=user)
    keeping.logged_in(user).close()
    assert events() == {"event": "route", "user": user, "epoch": 42, "state": "active"}
    assert route(redis, user) == {"shard": "green", "epoch": "42"}
    line = keeping.wait_for_event("route corrected")
    assert (line["user"], line["shard"]) == (user, "green")
    keeping.logged_in(user).close()
    assert [logins(each) for each in stores] == [1, 1, 2, 0]


def test_a_route_without_an_epoch(keeping, stores, redis, events, user):
    redis.call("HSET", f"imapmux:user:{{{user}}}", "shard", "store", "state", "active")
    stores[0].script = refer(stores[1], user=user)
    keeping.logged_in(user).close()
    assert events()["epoch"] == 1
    assert route(redis, user) == {"shard": "blue", "epoch": "1", "state": "active"}


@pytest.mark.parametrize("change", [("shard", "red"), ("state", "moving"), ("state", "disabled"), ("epoch", "8")])
def test_a_route_that_was_changed_meanwhile_stays(keeping, stores, redis, change, user):
    """While the second store logs her in."""
    redis.call("HSET", f"imapmux:user:{{{user}}}", "shard", "store", "epoch", "7")
    stores[0].script = refer(stores[1], user=user)

    def script(peer):
        peer.greet()
        peer.until_login()
        redis.call("HSET", f"imapmux:user:{{{user}}}", *change)
        peer.send(b"L OK [CAPABILITY " + CAPABILITIES + b"] Logged in\r\n")
        peer.serve()
    stores[1].script = script
    before = len(keeping.events("route not corrected"))
    keeping.logged_in(user).close()
    servers.wait_for(lambda: len(keeping.events("route not corrected")) > before, "the line of the log")
    assert keeping.events("route not corrected")[-1]["why"] == "it was changed meanwhile"
    assert route(redis, user) == {"shard": "store", "epoch": "7", **dict([change])}


def test_other_routes_stay(keeping, stores, redis, user):
    """What the file says is not written into Redis, nor what leads to a store that refuses."""
    stores[0].script = refer(stores[1], user=user)
    keeping.logged_in(user).close()
    assert route(redis, user) == {}
    redis.call("HSET", f"imapmux:user:{{{user}}}", "shard", "store")
    stores[1].script = refer("nowhere.example", user=user)
    refused(keeping, "shard blue refers to nowhere.example", user=user)
    assert route(redis, user) == {"shard": "store"}
