"""
What operators want of the shards: up, drain, down and weight, for all proxies that share a Redis, or for one without;
and the replica that stands in.
"""
import json
import re

import pytest

import servers
from crowd import wait_for_metrics
from stage import FILES, PASSWORD, PATIENCE_SECONDS, Store, good, shard
from test_admin import FAILED, ctl, done
from test_health import QUICK, Moods, get_in, hang, is_refused_at_once, login, wait_for_events

SHARED = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{redis, file}} file = "routes" }}
redis {{ address = "{redis}" connect_timeout = 1s timeout = 1s retry_max = 200ms }}
"""
ADMIN = 'admin { socket = "admin.sock" }\n'
OPERATOR = "an operator"


@pytest.fixture(scope="module")
def stores():
    with Store() as first, Store() as second:
        yield first, second


@pytest.fixture(scope="module")
def redis(folder):
    with servers.Redis(folder / "shards-redis") as only:
        yield only


@pytest.fixture
def begin(start, stores, redis):
    """Starts a proxy before two stores, whose shards are `store` and `second`."""
    running = []

    def begin_one(first_more="", shared=True, replica=False, ports=None, redis_address=redis.address, **options):
        first, second = ports or [store.port for store in stores]
        more = f"drain_time = 200ms {first_more} {'replica = second' if replica else ''}"
        proxy = start(shard("store", first, more=more) + shard("second", second), workers=2, more=ADMIN,
                      sources=SHARED.format(redis=redis_address) if shared else FILES,
                      routes={"bob": "second"}, **options)
        running.append(proxy)
        return proxy

    yield begin_one
    for proxy in running:
        proxy.stop()
    redis.call("FLUSHALL")


def rows(proxy):
    return {row["shard"]: row for row in json.loads(done(proxy, "shard", "list", "--json"))}


def wait_for_row(proxy, name="store", **wanted):
    def reached():
        row = rows(proxy)[name]
        return row if wanted.items() <= row.items() else None
    return servers.wait_for(reached, f"shard {name}: {wanted}")


def served_by(proxy, user="alice"):
    """The shard that a login of now gets."""
    before = len(proxy.events("login ok"))
    answer, _ = login(proxy, user)
    assert answer.startswith(b"in OK "), answer
    servers.wait_for(lambda: len(proxy.events("login ok")) > before, "the log")
    return proxy.events("login ok")[-1]["shard"]


# The commands

@pytest.mark.parametrize("shared", [True, False], ids=["redis", "alone"])
def test_what_is_listed(begin, stores, shared):
    proxy = begin(shared=shared, replica=True, health=QUICK)
    servers.wait_for(lambda: all(row["addresses"] for row in rows(proxy).values()), "addresses")
    with proxy.logged_in():
        wait_for_row(proxy, connections=1)
        found = rows(proxy)
        table = [re.split("  +", line.strip()) for line in done(proxy, "shard", "list").splitlines()]
    assert list(found) == ["store", "second"]
    assert 0 <= found["store"].pop("since_seconds") < 600
    assert found["store"] == {"shard": "store", "state": "up", "health": "up", "weight": 100, "connections": 1,
                              "waiting": 0, "addresses": [f"127.0.0.1:{stores[0].port} up"], "replica": "second",
                              "error": ""}
    assert table[0][:6] == ["shard", "state", "health", "since", "weight", "connections"]
    assert [row[:3] for row in table[1:]] == [["store", "up", "up"], ["second", "up", "up"]]


@pytest.mark.parametrize("shared", [True, False], ids=["redis", "alone"])
def test_each_command(begin, shared):
    proxy = begin(shared=shared)
    where = "all proxies" if shared else "this process until it ends"
    for state in ["drain", "down", "up"]:
        answer = json.loads(done(proxy, "shard", state, "store", "--json"))
        assert answer == {"shard": "store", "state": state, "weight": 100, "applies_to": where}
        assert rows(proxy)["store"]["state"] == state
        assert rows(proxy)["second"]["state"] == "up"
        withdrawn = 0 if state == "up" else 1
        assert wait_for_metrics(proxy, stores_withdrawn=withdrawn)
    answer = dict(re.split("  +", line) for line in done(proxy, "shard", "weight", "store", "7").splitlines())
    assert answer == {"shard": "store", "state": "up", "weight": "7", "applies to": where}
    assert rows(proxy)["store"]["weight"] == 7
    done(proxy, "shard", "drain", "store")
    assert rows(proxy)["store"]["weight"] == 7
    assert [event["detail"] for event in proxy.events("store is set")] == [
        f"shard store: {text}, by an operator"
        for text in ("drain, weight 100", "down, weight 100", "up, weight 100", "up, weight 7", "drain, weight 7")]


@pytest.mark.parametrize("words, reason", [
    (["down", "third"], 'there is no shard "third"'), (["weight", "third", "1"], 'there is no shard "third"'),
    (["weight", "store", "0"], "expected a number from 1 to 1000"), (["weight", "store", "1001"], "from 1 to 1000"),
    (["weight", "store", "-1"], "from 1 to 1000"), (["weight", "store", "many"], "from 1 to 1000"),
    (["drain", "store", "--let-go", "soon"], "expected a duration"),
    (["down", "store", "--let-go", "2d"], "expected a duration up to 1d")])
def test_what_is_refused(begin, words, reason):
    proxy = begin(shared=False)
    if words[-1] == "-1":
        words.insert(1, "--")
    result = ctl(proxy, "shard", *words)
    assert (result.returncode, result.stdout) == (FAILED, "") and reason in result.stderr, result
    assert rows(proxy)["store"]["state"] == "up" and rows(proxy)["store"]["weight"] == 100


# What the states do

def test_down(begin):
    """Logins are refused at once, sessions are let go within drain_time; up again, all is as before."""
    proxy = begin()
    with proxy.logged_in() as session, proxy.logged_in("bob") as other:
        done(proxy, "shard", "down", "store")
        is_refused_at_once(proxy, why=OPERATOR)
        assert session.read_to_end().startswith(b"* BYE [UNAVAILABLE] ")
        assert served_by(proxy, "bob") == "second"
        assert other.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
    done(proxy, "shard", "up", "store")
    get_in(proxy)


def test_down_answers_those_who_are_on_their_way(begin, stores):
    stores[0].script = hang
    try:
        proxy = begin("connect_timeout = 60s")
        with proxy.wire() as wire:
            wire.send(f"in LOGIN alice {PASSWORD}\r\n".encode())
            wait_for_metrics(proxy, logins_in_flight=1)
            done(proxy, "shard", "down", "store")
            assert wire.read_tagged(b"in").startswith(b"in NO [UNAVAILABLE] ")
    finally:
        stores[0].script = good


def test_down_lets_go_of_what_is_idle(begin):
    proxy = begin(pool="warm = 2 park_time = 10m")
    with proxy.logged_in():
        wait_for_metrics(proxy, backends_warm=2)
    done(proxy, "shard", "down", "store")
    wait_for_metrics(proxy, PATIENCE_SECONDS / 3, backends_open=0)  # before the stores lose patience


def test_drain(begin):
    """Without a replica the users of the store are served as ever."""
    proxy = begin()
    with proxy.logged_in() as session:
        done(proxy, "shard", "drain", "store")
        assert served_by(proxy) == "store"
        assert session.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


def test_drain_lets_go(begin):
    proxy = begin(replica=True)
    with proxy.logged_in() as one, proxy.logged_in() as another, proxy.logged_in("bob") as other:
        done(proxy, "shard", "drain", "store", "--let-go", "300ms")
        for session in one, another:
            assert session.read_to_end().startswith(b"* BYE [UNAVAILABLE] ")
        assert served_by(proxy) == "second"
        assert other.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"


def test_let_go_once(begin):
    """A word of an operator is acted upon once, whatever is said later about the weight."""
    proxy = begin()
    done(proxy, "shard", "drain", "store", "--let-go", "0")
    with proxy.logged_in() as session:
        done(proxy, "shard", "weight", "store", "5")
        assert session.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"
        done(proxy, "shard", "drain", "store", "--let-go", "0")
        assert session.read_to_end().startswith(b"* BYE ")


# The replica

@pytest.mark.parametrize("state", ["drain", "down"])
def test_the_replica_of_a_shard_that_is_withdrawn(begin, state):
    proxy = begin(replica=True)
    assert served_by(proxy) == "store"
    done(proxy, "shard", state, "store")
    assert served_by(proxy) == "second"
    with proxy.logged_in() as session:
        done(proxy, "shard", "up", "store")
        assert served_by(proxy) == "store"
        assert session.command(b"NOOP", tag=b"n") == b"n OK NOOP done\r\n"  # it stays where it is
    servers.wait_for(lambda: [event["shard"] for event in proxy.events("session end")].count("second") == 2,
                     "the ends of both sessions")
    assert proxy.metrics()["imapmux_replica_logins_total"] == 2


def test_the_replica_of_a_store_that_does_not_answer(begin):
    moods = Moods()
    with Store(moods) as first, Store() as second:
        proxy = begin(replica=True, health=QUICK, ports=(first.port, second.port))
        assert served_by(proxy) == "store"
        moods.mood = hang
        wait_for_events(proxy, "store is down")
        assert served_by(proxy) == "second"
        assert rows(proxy)["store"]["error"].endswith("no answer in time")
        moods.mood = good
        wait_for_events(proxy, "store is back")
        assert served_by(proxy) == "store"


@pytest.mark.parametrize("state", ["drain", "down"])
def test_a_replica_that_is_not_up_serves_nobody_else(begin, state):
    proxy = begin(replica=True)
    done(proxy, "shard", state, "second")
    done(proxy, "shard", "down", "store")
    is_refused_at_once(proxy, why=OPERATOR)
    assert proxy.events("login refused")[-1]["shard"] == "store"


def test_a_replica_that_does_not_answer_serves_nobody_else(begin):
    moods = Moods(hang)
    with Store() as first, Store(moods) as second:
        proxy = begin(replica=True, health=QUICK, ports=(first.port, second.port))
        wait_for_events(proxy, "store is down")
        assert served_by(proxy) == "store"
        done(proxy, "shard", "drain", "store")
        assert served_by(proxy) == "store"
        done(proxy, "shard", "down", "store")
        is_refused_at_once(proxy, why=OPERATOR)


def test_a_shard_that_answers_is_served_by_itself(begin):
    proxy = begin(replica=True, health=QUICK)
    assert [served_by(proxy) for _ in range(3)] == ["store"] * 3
    assert proxy.metrics()["imapmux_replica_logins_total"] == 0


# Several proxies, and restarts

def test_all_proxies_act(begin):
    one, other = begin(), begin()
    with other.logged_in() as session:
        done(one, "shard", "down", "store")
        wait_for_row(other, state="down")
        is_refused_at_once(other, why=OPERATOR)
        assert session.read_to_end().startswith(b"* BYE ")
        done(other, "shard", "weight", "second", "3")
        wait_for_row(one, "second", weight=3)
        done(other, "shard", "up", "store")
        wait_for_row(one, state="up")
        get_in(one)
        get_in(other)


def test_a_restart_remembers(begin):
    proxy = begin()
    done(proxy, "shard", "down", "store")
    done(proxy, "shard", "weight", "store", "42")
    proxy.stop()
    proxy.lines.clear()
    proxy.start()
    wait_for_row(proxy, state="down", weight=42)
    is_refused_at_once(proxy, why=OPERATOR)


def test_alone_a_restart_forgets(begin):
    proxy = begin(shared=False)
    done(proxy, "shard", "down", "store")
    proxy.stop()
    proxy.lines.clear()
    proxy.start()
    assert rows(proxy)["store"]["state"] == "up"


def test_redis_is_away(begin, folder):
    """The last word counts; a new one is refused, and changes nothing; what was said meanwhile is read afterwards."""
    with servers.Redis(folder / "shards-away") as own:
        proxy = begin(redis_address=own.address)
        done(proxy, "shard", "drain", "second")
        own.stop()
        for words in ["down", "store"], ["up", "second"], ["weight", "store", "9"]:
            result = ctl(proxy, "shard", *words)
            assert (result.returncode, result.stdout) == (FAILED, ""), result
            assert result.stderr.startswith(f"imapmuxctl: shard {words[1]}: redis: "), result
        found = rows(proxy)
        assert (found["store"]["state"], found["store"]["weight"], found["second"]["state"]) == ("up", 100, "drain")
        own.start()  # it has forgotten everything
        own.call("HSET", "imapmux:shard:{store}", "state", "down")
        for kind in "normal", "pubsub":  # whoever was there before that was said comes again
            own.call("CLIENT", "KILL", "TYPE", kind)
        wait_for_row(proxy, state="down")
        wait_for_row(proxy, "second", state="up")


@pytest.mark.parametrize("field, value", [("state", "sideways"), ("state", ""), ("weight", "1001"), ("weight", "ten"),
                                          ("weight", "99999999999999999999999"), ("let_go_ms", "-1"),
                                          ("changed_ms", "x")])
def test_what_makes_no_sense_changes_nothing(begin, redis, field, value):
    redis.call("HSET", "imapmux:shard:{store}", field, value)
    proxy = begin()
    assert "shard store" in proxy.wait_for_event("shard state unusable")["detail"]
    assert rows(proxy)["store"]["state"] == "up" and rows(proxy)["store"]["weight"] == 100
    redis.call("DEL", "imapmux:shard:{store}")


def test_a_key_of_another_type(begin, redis):
    redis.call("SET", "imapmux:shard:{store}", "down")
    proxy = begin()
    proxy.wait_for_event("shard state unusable")
    result = ctl(proxy, "shard", "down", "store")
    assert result.returncode == FAILED and "WRONGTYPE" in result.stderr
    assert rows(proxy)["store"]["state"] == "up"
    redis.call("DEL", "imapmux:shard:{store}")
