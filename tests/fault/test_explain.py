"""
What the commands route and explain tell of users: that it is true, for people and for programs, and that nothing is
changed by asking.
"""
import json
import signal
import subprocess

import pytest

import servers
from stage import FILES, PASSWORD, Store, shard
from test_admin import FAILED, connect, ctl, done

ADMIN = 'admin { socket = "admin.sock" }\n'
REAL = """
auth {{ sources = {{ldap}} timeout = 5s }}
auth_cache {{ ttl = {ttl} }}
ldap {{
    uri = {{"{directory.uri}"}}
    base = "ou=people,dc=example,dc=org"
    filter = "(|(uid=%{{user}})(cn=%{{user}}))"
    user_attribute = "uid"
    shard_attribute = "destinationIndicator"
    networks_attribute = "roomNumber"
    refuse_if = {{"employeeType=gone"}}
    timeout = 1s
    connect_timeout = 1s
}}
route {{ sources = {{redis, ldap}} timeout = 5s }}
redis {{ address = "{redis.address}" connect_timeout = 1s timeout = 1s retry_max = 200ms }}
limits {{ per_user = 2 {shared} }}
"""
NAMES = [f"user{number}" for number in range(8)]  # of both workers
ENTRIES = """
dn: uid=located,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: located
cn: the-other-name
sn: located
destinationIndicator: blue
roomNumber: 192.0.2.0/24
roomNumber: 2001:db8::/32
userPassword: secret

dn: uid=gone,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: gone
cn: gone
sn: gone
employeeType: gone
userPassword: secret
"""


@pytest.fixture(scope="module")
def stores():
    with Store() as store, Store() as blue:
        yield store, blue


@pytest.fixture(scope="module")
def shards(stores):
    return shard("store", stores[0].port) + shard("blue", stores[1].port, more="login = master_suffix "
                                                  'master_user = "boss" master_password = "secret"')


@pytest.fixture(scope="module")
def files(start, shards):
    """A proxy with a password file and a file of routes, whose throttle sees us."""
    return start(shards, workers=2, users=("alice", "bob", *NAMES), routes={"bob": "blue"}, more=ADMIN,
                 throttle="free_failures = 1 delay = 10ms max_user_delay = 40ms forget = 1h", sources=FILES)


@pytest.fixture(scope="module")
def redis(folder):
    with servers.Redis(folder / "explain-redis") as running:
        yield running


@pytest.fixture(scope="module")
def directory(folder):
    with servers.Slapd(folder / "explain-slapd", users={name: PASSWORD for name in NAMES}, entries=ENTRIES) as running:
        yield running


@pytest.fixture(scope="module")
def begin(start, shards, redis, directory):
    def begin_one(ttl="0s", shared="", **options):
        sources = REAL.format(redis=options.pop("redis", redis), directory=options.pop("directory", directory),
                              ttl=ttl, shared=shared)
        return start(shards, workers=2, users=(), more=ADMIN, sources=sources, **options)
    return begin_one


@pytest.fixture(scope="module")
def real(begin):
    """A proxy with a directory and Redis."""
    return begin()


def explain(proxy, user):
    return json.loads(done(proxy, "-j", "explain", user))


def route(proxy, user):
    return json.loads(done(proxy, "-j", "route", user))


def cli(redis, *words):
    return subprocess.run(["redis-cli", "-p", str(redis.port), *words], capture_output=True, check=True,
                          text=True, errors="backslashreplace").stdout


def content(redis):
    """All that is in Redis, but for what beats: the keys and their values."""
    keys = sorted(key for key in cli(redis, "KEYS", "*").split()
                  if not any(word in key for word in ("proxies", "node", "beats")))
    return {key: cli(redis, "DUMP", key) for key in keys}


def set_route(redis, user, **fields):
    redis.call("DEL", f"imapmux:user:{{{user}}}")
    if fields:
        redis.call("HSET", f"imapmux:user:{{{user}}}", *(str(word) for pair in fields.items() for word in pair))


# What is told

def test_of_the_files(files):
    assert route(files, "BOB") == {"user": "bob", "shard": "blue", "state": "active", "source": "file", "epoch": 0,
                                   "backend_user": "bob", "age_ms": 0, "stale": False}
    told = explain(files, "BOB")
    assert told["worker"] in (0, 1)
    del told["worker"]
    assert told == {
        "name": "BOB", "normalised": "bob", "user": "bob", "authenticator": "passwd", "account": "known",
        "told_shard": None, "told_backend_user": None, "networks": [], "password_cached": "no",
        "cached_since_seconds": None, "throttle_failures": 0, "throttle_delay_ms": 0, "route_source": "file",
        "shard": "blue", "state": "active", "target": None, "epoch": 0, "route_age_seconds": 0, "stale": False,
        "backend_user": "bob", "route_error": None, "held": False, "shard_state": "up", "shard_health": "up",
        "served_by": "blue", "store_login": "master_suffix", "store_login_without_password": "master_suffix",
        "sessions": 0, "sessions_everywhere": None, "max_sessions": None, "parked_connections": 0,
        "last_sessions": [], "last_refusal": None, "verdict": "gets in at shard blue as bob"}
    assert explain(files, "alice")["store_login"] == "password"
    assert explain(files, "alice")["store_login_without_password"] == "none"


def test_for_people(files):
    assert done(files, "route", "bob") == ("user          bob\nshard         blue\nstate         active\n"
                                           "source        file\nepoch         0\nbackend user  bob\n"
                                           "age ms        0\nstale         no\n")
    lines = done(files, "explain", "bob").splitlines()
    assert lines[-1].split(maxsplit=1) == ["verdict", "gets in at shard blue as bob"]
    assert any(line.startswith("shard state ") and line.endswith(" up") for line in lines)


@pytest.mark.parametrize("name", ["", "a b", "x" * 300, "a\x07b", "*", "ann@"],
                         ids=["empty", "blank", "long", "control", "star", "half"])
def test_what_cannot_be_a_name(files, name):
    for command in "route", "explain":
        result = ctl(files, command, name)
        assert (result.returncode, result.stdout) == (FAILED, ""), result
        assert "this cannot be the name of a user" in result.stderr


def test_who_is_unknown(files, real):
    told = explain(files, "nobody")
    assert (told["account"], told["authenticator"], told["shard"]) == ("unknown", None, "store")
    assert told["verdict"] == "is refused as AUTHENTICATIONFAILED: no source knows the user"
    told = explain(real, "nobody")
    assert (told["account"], told["shard"], told["route_error"]) == ("unknown", None, "route: no source knows the user")
    result = ctl(real, "route", "nobody")
    assert (result.returncode, result.stdout) == (FAILED, "")
    assert result.stderr == "imapmuxctl: nobody: route: no source knows the user\n"


def test_what_the_directory_tells(real):
    told = explain(real, "The-Other-Name")
    assert (told["normalised"], told["user"], told["authenticator"]) == ("the-other-name", "located", "ldap")
    assert (told["told_shard"], told["shard"], told["route_source"]) == ("blue", "blue", "ldap")
    assert told["networks"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert told["verdict"] == "gets in at shard blue as located, if the client is in one of the networks"
    told = explain(real, "gone")
    assert told["account"] == "ldap: the user's entry does not allow it" and told["authenticator"] == "ldap"
    assert told["verdict"] == "is refused as CONTACTADMIN: ldap: the user's entry does not allow it"


def test_of_every_worker(real, redis):
    for name in NAMES:
        set_route(redis, name, shard="store", backend_user=f"{name}-there", epoch=4)
    told = [explain(real, name) for name in NAMES]
    assert {each["worker"] for each in told} == {0, 1}
    for name, each in zip(NAMES, told):
        assert each["verdict"] == f"gets in at shard store as {name}-there"
        assert (each["route_source"], each["epoch"], each["route_age_seconds"]) == ("redis", 4, 0)


def test_states_of_a_route(real, redis):
    set_route(redis, "user1", state="disabled")
    assert explain(real, "user1")["verdict"] == "is refused as CONTACTADMIN: route: the user is disabled"
    assert route(real, "user1")["state"] == "disabled"
    set_route(redis, "user1", shard="nowhere")
    told = explain(real, "user1")
    assert told["route_error"] == "route: shard nowhere is not configured"
    assert told["verdict"] == "is refused as UNAVAILABLE: route: shard nowhere is not configured"
    set_route(redis, "user1", shard="store", state="moving", target="blue", epoch=7, move="0123456789abcdef")
    told = explain(real, "user1")
    assert (told["state"], told["target"], told["held"]) == ("moving", "blue", False)
    assert told["verdict"].startswith("waits until the mailbox is moved from store to blue, at most 30 s")
    assert route(real, "user1")["target"] == "blue"
    with real.wire() as wire:
        wire.send(b"a LOGIN user1 " + PASSWORD.encode() + b"\r\n")
        servers.wait_for(lambda: explain(real, "user1")["held"], "the login to wait")
    set_route(redis, "user1", shard="store")


# How she fares

def test_wrong_passwords(files):
    def try_in_vain(password):
        with files.wire() as wire:
            assert b"NO [AUTHENTICATIONFAILED]" in wire.command(b"LOGIN user2 " + password)
    for number in range(4):
        try_in_vain(b"guess%d" % number)
    told = explain(files, "user2")
    assert (told["throttle_failures"], told["throttle_delay_ms"]) == (4, 40)
    assert told["verdict"] == "gets in at shard store as user2, after a wait of 40 ms for wrong passwords"
    assert ": credentials (" in told["last_refusal"] and " 127.0.0.1:" in told["last_refusal"]
    assert explain(files, "user2") == told  # nobody has counted that
    files.logged_in("user2").close()
    assert explain(files, "user2")["throttle_failures"] == 0


def test_sessions_and_their_ends(real, redis):
    set_route(redis, "user3", shard="store")
    before = explain(real, "user3")
    with real.logged_in("user3") as wire, real.logged_in("user3"):
        told = explain(real, "user3")
        assert (told["sessions"], told["max_sessions"]) == (2, 2)
        assert told["verdict"] == "is refused as LIMIT: 2 sessions are open, limits.per_user is 2"
        with real.wire() as third:
            assert b"NO [LIMIT]" in third.command(b"LOGIN user3 " + PASSWORD.encode())
        assert ": user_limit (" in explain(real, "user3")["last_refusal"]
        wire.command(b"LOGOUT")
    servers.wait_for(lambda: len(explain(real, "user3")["last_sessions"]) == 2, "the ends of both")
    told = explain(real, "user3")
    assert told["sessions"] == 0 and told["verdict"] == before["verdict"]
    assert sorted(end.split("(")[1] for end in told["last_sessions"]) == ["closed by client)", "logout)"]
    for number in range(4):
        real.logged_in("user3").close()
        servers.wait_for(lambda: explain(real, "user3")["sessions"] == 0, "its end")
    assert len(explain(real, "user3")["last_sessions"]) == 3


def test_a_password_that_is_remembered(begin, directory, redis):
    """Then the directory is not asked, whatever it would say by now."""
    proxy = begin(ttl="1h")
    proxy.logged_in("located") if False else None
    set_route(redis, "user4", shard="store")
    proxy.logged_in("user4").close()
    told = explain(proxy, "user4")
    assert (told["password_cached"], told["account"]) == ("yes", "known")
    directory.process.send_signal(signal.SIGSTOP)
    try:
        told = explain(proxy, "user4")
        assert told["account"].startswith("ldap: ") and told["authenticator"] is None, told
        assert told["verdict"] == "with the password that is remembered: gets in at shard store as user4"
        told = explain(proxy, "user5")
        assert told["verdict"].startswith("is refused as UNAVAILABLE: "), told
        proxy.logged_in("user4").close()
    finally:
        directory.process.send_signal(signal.SIGCONT)


def test_without_redis(begin, folder):
    """Who has logged in before is remembered, others are not."""
    with servers.Redis(folder / "explain-redis-that-goes") as own:
        proxy = begin(redis=own)
        for name in "user4", "user5":
            set_route(own, name, shard="store", epoch=3)
            assert explain(proxy, name)["epoch"] == 3
        proxy.logged_in("user5").close()
        own.stop()
        servers.wait_for(lambda: explain(proxy, "user4")["route_error"], "Redis to be missed")
        told = explain(proxy, "user4")
        assert told["account"] == "known" and told["shard"] is None
        assert told["verdict"].startswith("is refused as UNAVAILABLE: redis"), told
        result = ctl(proxy, "route", "user4")
        assert result.returncode == FAILED and "redis" in result.stderr
        servers.wait_for(lambda: explain(proxy, "user5")["stale"], "the old route to be told")
        told = explain(proxy, "user5")
        assert (told["shard"], told["epoch"], told["route_source"]) == ("store", 3, "redis")
        assert told["verdict"].startswith("gets in at shard store as user5, where it was "), told
        assert told["verdict"].endswith(" s ago, for Redis does not answer")
        assert route(proxy, "user5")["stale"] is True
        proxy.logged_in("user5").close()


def test_without_the_directory(begin, folder, redis):
    """An account that cannot be asked for may have told a shard: the route is not known, either."""
    with servers.Slapd(folder / "explain-slapd-that-goes", users={"user5": PASSWORD}) as own:
        proxy = begin(directory=own)
        own.stop()
        servers.wait_for(lambda: explain(proxy, "user5")["account"] != "known", "the directory to be missed")
        told = explain(proxy, "user5")
        assert told["account"].startswith("ldap: ")
        assert told["verdict"].startswith("is refused as UNAVAILABLE: ldap: "), told
        result = ctl(proxy, "route", "user5")
        assert result.returncode == FAILED and result.stderr.startswith("imapmuxctl: user5: ldap: ")


# Over all proxies

def test_sessions_at_other_proxies(begin, redis):
    one, other = begin(shared="shared = yes"), begin(shared="shared = yes")
    set_route(redis, "user6", shard="store")
    with one.logged_in("user6"), other.logged_in("user6"):
        for proxy in one, other:
            servers.wait_for(lambda: explain(proxy, "user6")["sessions_everywhere"] == 2, "both to be counted")
            told = explain(proxy, "user6")
            assert told["sessions"] == 1
            assert told["verdict"] == "is refused as LIMIT: 2 sessions are open, limits.per_user is 2"
    servers.wait_for(lambda: explain(one, "user6")["sessions_everywhere"] == 0, "both to have ended")


# Nothing is changed

def test_asking_changes_nothing(begin, redis):
    proxy = begin(ttl="1h", shared="shared = yes", throttle="shared = yes")
    for name in NAMES:
        set_route(redis, name, shard="store", epoch=1)
    set_route(redis, "user7", state="disabled")
    set_route(redis, "user0")
    before = content(redis)
    metrics = [line for line in done(proxy, "metrics").splitlines() if "auth_cache" in line or "throttle" in line]
    for name in [*NAMES, "located", "gone", "nobody"]:
        explain(proxy, name)
        ctl(proxy, "route", name)
    assert content(redis) == before
    assert metrics == [line for line in done(proxy, "metrics").splitlines()
                       if "auth_cache" in line or "throttle" in line]
    assert explain(proxy, "user1")["password_cached"] == "no"


# Those who leave, and the end

def ask(peer, user, command="explain"):
    peer.sendall(json.dumps({"command": command, "arguments": {"user": user}}).encode() + b"\n")


def test_clients_that_leave(begin, directory):
    """While the directory hangs; what they have asked ends without them."""
    proxy = begin()
    assert {explain(proxy, name)["account"] for name in NAMES} == {"known"}
    before = proxy.descriptors()
    directory.process.send_signal(signal.SIGSTOP)
    try:
        for number in range(30):
            with connect(proxy) as peer:
                ask(peer, NAMES[number % len(NAMES)], ("explain", "route")[number % 2])
    finally:
        directory.process.send_signal(signal.SIGCONT)
    assert explain(proxy, "user1")["account"] == "known"
    servers.wait_for(lambda: proxy.descriptors() <= before, "all connections to end")


@pytest.mark.parametrize("hangs", [True, False])
def test_the_process_ends_meanwhile(begin, directory, hangs):
    proxy = begin()
    peers = [connect(proxy) for _ in range(8)]
    if hangs:
        directory.process.send_signal(signal.SIGSTOP)
    try:
        for name, peer in zip(NAMES, peers):
            for _ in range(1 if hangs else 20):
                ask(peer, name)
        if not hangs:
            assert peers[0].recv(1) == b"{"
        assert proxy.stop() == 0
    finally:
        directory.process.send_signal(signal.SIGCONT)
    for peer in peers:
        peer.close()
