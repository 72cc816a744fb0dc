"""Cutovers over imapmuxctl: each step, what it prints, and why it is refused."""
import json
import re
import time

import pytest

import servers
from stage import Store, shard
from test_admin import FAILED, WRONG_USAGE, ctl, done

SOURCES = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{{sources}}} file = "routes" }}
redis {{ address = "{redis}" timeout = {timeout} retry_max = 200ms {more} }}
username {{ default_domain = "" }}
"""
ADMIN = 'admin { socket = "admin.sock" }\n'
USER, MOVE, OTHER = "alice", "0123456789abcdef", "fedcba9876543210"


@pytest.fixture(scope="module")
def redis(folder):
    with servers.Redis(folder / "redis-cutover") as server:
        yield server


@pytest.fixture(scope="module")
def begin(start, redis):
    """Starts a proxy with the shards blue and green, which nobody asks here."""
    with Store() as store:
        def begin_one(sources="redis, file", routes=(), more="", timeout="2s"):
            text = SOURCES.format(sources=sources, redis=redis.address, more=more, timeout=timeout)
            return start(shard("blue", store.port) + shard("green", store.port) + shard("store", store.port),
                         sources=text, more=ADMIN, routes=routes)
        yield begin_one


@pytest.fixture(scope="module")
def proxy(begin):
    return begin()


@pytest.fixture(autouse=True)
def forget(redis):
    redis.call("FLUSHALL")


@pytest.fixture
def route(redis):
    redis.call("HSET", f"imapmux:user:{{{USER}}}", "shard", "blue", "epoch", "4")


def answer(proxy, *words):
    return json.loads(done(proxy, "--json", *words))


def why_not(proxy, *words):
    result = ctl(proxy, *words)
    assert (result.returncode, result.stdout) == (FAILED, ""), result
    return result.stderr.removeprefix("imapmuxctl: ").rstrip("\n")


def record(redis, proxy_id, *acks_of, epoch=5):
    """Writes what a proxy says of itself, and of the users it has let go."""
    redis.call("HSET", "imapmux:proxies", proxy_id,
               json.dumps({"host": "mx1", "pid": 17, "seen_ms": int(time.time() * 1000), "fence_ms": 60000}))
    for user in acks_of:
        redis.call("HSET", f"imapmux:acks:{{{user}}}", proxy_id, str(epoch))


def wait_until_held(proxy, user=USER, move=MOVE, lacking=0):
    """Waits until the proxy itself, and who else there is, have let go."""
    def looked():
        found = answer(proxy, "cutover", "look", user, move)
        return found["lacking"] == lacking and found
    return servers.wait_for(looked, "the user to be held")


# Cutovers

def test_all_steps(proxy, redis, route):
    begun = answer(proxy, "cutover", "begin", USER.upper(), "green", "--move", MOVE)
    assert begun == {"user": USER, "from": "blue", "to": "green", "epoch": 5, "move": MOVE, "state": "moving"}
    looked = wait_until_held(proxy)
    assert looked.items() >= {"state": "moving", "epoch": 5, "shard": "blue", "target": "green"}.items()
    assert answer(proxy, "cutover", "begin", USER, "green", "--move", MOVE) == begun
    committed = answer(proxy, "cutover", "commit", USER, MOVE)
    assert committed.items() >= {"state": "active", "epoch": 6, "shard": "green", "from": "blue", "done": True}.items()
    assert answer(proxy, "cutover", "commit", USER, MOVE) == committed
    again = answer(proxy, "cutover", "begin", USER, "green", "--move", MOVE)
    assert again == {**begun, "epoch": 6, "state": "active"}


def test_what_nobody_looks_after_goes_forward_by_itself(begin, redis, route):
    """As a beat has it; whoever comes back with the move's id hears that it is done."""
    proxy = begin(more="node_expiry = 1s")
    redis.call("HSET", f"imapmux:user:{{{USER}}}", "state", "committed", "move", MOVE, "target", "green", "until", "1")
    redis.call("HSET", "imapmux:moving", USER, "4")
    servers.wait_for(lambda: redis.call("HEXISTS", "imapmux:moving", USER) == ":0", "the move to end")
    looked = answer(proxy, "cutover", "look", USER, MOVE)
    assert looked.items() >= {"state": "active", "shard": "green", "from": "blue", "done": True, "epoch": 5}.items()


def test_for_people(proxy, redis, route):
    table = dict(re.split("  +", line, maxsplit=1)
                 for line in done(proxy, "cutover", "begin", USER, "green").splitlines())
    move = table.pop("move")
    assert re.fullmatch("[0-9a-f]{16}", move)
    assert table == {"user": USER, "from": "blue", "to": "green", "epoch": "5", "state": "moving"}
    assert re.search(r"^state +moving$", done(proxy, "cutover", "look", USER, move), re.MULTILINE)
    assert re.search(r"^shard +blue$", done(proxy, "cutover", "abort", USER, move), re.MULTILINE)


def test_who_is_missing(proxy, redis, route):
    answer(proxy, "cutover", "begin", USER, "green", "--move", MOVE)
    held = wait_until_held(proxy)
    record(redis, "p1")
    record(redis, "p2", USER)
    looked = answer(proxy, "cutover", "look", USER, MOVE)
    assert looked["lacking"] == held["lacking"] + 1
    assert looked["acked"] - held["acked"] in (1, 2)  # a beat may have told of the proxy itself since, which has let go
    missing = next(one for one in looked["missing"] if one["id"] == "p1")
    assert missing.items() >= {"host": "mx1", "pid": 17}.items()
    assert "let go of the user yet: p1; the user is at the old shard" in why_not(proxy, "cutover", "commit", USER, MOVE)
    redis.call("HDEL", "imapmux:proxies", "p1")
    assert answer(proxy, "cutover", "commit", USER, MOVE)["shard"] == "green"


def test_the_route_of_another_source(begin, redis):
    proxy = begin(routes={"bob": "blue robert"})
    assert answer(proxy, "cutover", "begin", "bob", "green")["from"] == "blue"
    assert "$6" == redis.call("HGET", "imapmux:user:{bob}", "backend_user")  # robert: how long it is


def test_refused(proxy, redis, route):
    for words, reason in [
            (["begin", USER, "red"], 'there is no shard "red"'),
            (["begin", "a b", "green"], "this cannot be the name of a user"),
            (["begin", USER, "green", "--move", "xyz"], "the id of a move has 16 digits of 0-9a-f"),
            (["begin", USER, "blue"], "alice: at shard blue already; the user is at the old shard"),
            (["look", USER, MOVE],
             "alice: no such move is under way: active at shard blue; the user is at the old shard")]:
        assert why_not(proxy, "cutover", *words) == reason
    assert ctl(proxy, "cutover", "commit", USER).returncode == WRONG_USAGE
    redis.call("HSET", f"imapmux:user:{{{USER}}}", "state", "committed", "move", MOVE, "target", "green", "until",
               "9999999999999")
    assert why_not(proxy, "cutover", "abort", USER, MOVE) == \
        "alice: committed already; the move is committed and only goes forward: commit again"


def test_nobody_knows_the_user(begin, redis):
    proxy = begin(sources="redis")
    assert why_not(proxy, "cutover", "begin", "carol", "green") == \
        "carol: no source of routes knows this user; the user is at the old shard"


def test_redis_must_be_asked_first(begin):
    proxy = begin(sources="file, redis")
    assert why_not(proxy, "cutover", "begin", USER, "green") == \
        "route.sources must ask redis first: a cutover writes there"


def test_without_redis(start):
    with Store() as store:
        proxy = start(shard("store", store.port), more=ADMIN)
        assert why_not(proxy, "cutover", "begin", USER, "store") == \
            "the configuration has no Redis, which cutovers need"


def test_without_replicas(begin, redis, route):
    proxy = begin(more="replicas = 1", timeout="1s")
    assert why_not(proxy, "cutover", "begin", USER, "green", "--move", MOVE) == \
        "alice: redis: 0 replicas have it, and 1 must; the user is at the old shard"
    wait_until_held(proxy)
    assert why_not(proxy, "cutover", "commit", USER, MOVE) == \
        "alice: redis: 0 replicas have it, and 1 must; the move is committed and only goes forward: commit again"


def test_redis_is_away(begin, redis, route):
    proxy = begin(timeout="500ms")
    redis.pause()
    try:
        assert why_not(proxy, "cutover", "look", USER, MOVE).endswith("; it may have been done or not: ask again")
        assert "redis" in why_not(proxy, "cutover", "begin", USER, "green")
    finally:
        redis.resume()
