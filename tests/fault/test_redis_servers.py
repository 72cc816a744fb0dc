"""Redis as an operator runs it: watched by Sentinels, with replicas, and with a user that may do only what we need."""
import itertools
import re
import subprocess

import pytest

import servers
from passage import Passage
from stage import PASSWORD, Store, shard
from test_admin import ctl, done

SOURCES = """
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{redis}} timeout = 5s }}
redis {{ connect_timeout = 1s timeout = 1s {redis} }}
username {{ default_domain = "" }}
"""
ADMIN = 'admin { socket = "admin.sock" }\n'
MOVE, NEXT_MOVE = "0123456789abcdef", "123456789abcdef0"
numbers = itertools.count()


@pytest.fixture(scope="module")
def store():
    with Store() as only:
        yield only


@pytest.fixture
def start_by(start, store):
    """Starts a proxy with the shards blue and green, which are the same store, and these settings of Redis."""
    def start_one(redis, more="", **options):
        return start(shard("blue", store.port) + shard("green", store.port), sources=SOURCES.format(redis=redis),
                     more=ADMIN + more, **options)
    return start_one


def logs_in(proxy, user="alice"):
    with proxy.wire() as wire:
        answer = wire.command(f'LOGIN {user} "{PASSWORD}"'.encode(), tag=b"in")
        assert b"in OK" in answer or b"in NO [UNAVAILABLE]" in answer, answer
        return b"in OK" in answer


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_fail_over(folder, start_by, how):
    with servers.WatchedRedis(folder / f"watched-{next(numbers)}") as redis:
        old = redis.master()
        old.route({"alice": "blue"})
        servers.wait_for(lambda: redis.servers[1].ask("EXISTS", "imapmux:user:{alice}"), "the replica to know")
        proxy = start_by(redis.settings, workers=2)
        assert logs_in(proxy)
        with proxy.logged_in() as session:
            old.kill() if how == "killed" else old.pause()
            new = redis.master_after(old)
            servers.wait_for(lambda: logs_in(proxy), "logins to go on")
            assert b"OK" in session.command(b"NOOP")
            new.route({"bob": "green"})
            servers.wait_for(lambda: logs_in(proxy, "bob"), "the other worker to have noticed, too")
        if how == "frozen":
            old.resume()
            servers.wait_for(lambda: old.role() == "slave", "the old master to be told")
            assert logs_in(proxy)
        assert proxy.metrics()["imapmux_redis_switches_total"] >= 1
        assert proxy.events("redis master changed")


def leave_cut_off(old):
    """As if it had not answered the control thread for a moment: of its connections only those of workers stay."""
    listed = subprocess.run(["redis-cli", "-p", str(old.port), "CLIENT", "LIST"], capture_output=True, text=True,
                            check=True, timeout=20).stdout
    for number, command in re.findall(r"^id=(\d+) .* cmd=(\S+)", listed, re.MULTILINE):
        if command not in ("hmget", "client|list"):
            old.ask("CLIENT", "KILL", "ID", number)


def make_a_replica(old):
    """Of a server that it cannot reach; reading goes on, and no connection ends."""
    old.ask("REPLICAOF", servers.HOST, str(servers.free_port()))


@pytest.mark.parametrize("leave", [leave_cut_off, make_a_replica])
def test_a_worker_does_not_stay_with_an_old_master(folder, start_by, leave):
    """It still says where a user was before she was moved; and another subscription may have begun since."""
    with servers.Redis(folder / f"old-{next(numbers)}") as old, \
            servers.Redis(folder / f"new-{next(numbers)}", replica_of=old) as new, Passage(old.port) as way:
        old.route({"alice": "blue"})
        servers.wait_for(lambda: new.ask("EXISTS", "imapmux:user:{alice}"), "the replica to know")
        proxy = start_by(f'address = "{servers.HOST}:{way.port}" node_expiry = 3s retry_max = 200ms')
        assert logs_in(proxy) and proxy.wait_for_event("login ok")["shard"] == "blue"
        new.ask("REPLICAOF", "NO", "ONE")
        way.server_port = new.port
        leave(old)
        servers.wait_for(lambda: new.ask("PUBSUB", "NUMSUB", "imapmux:events")[1], "the events to be heard there")
        done(proxy, "move", "alice", "--to", "green", "--verify", "none")
        reads = proxy.metrics()["imapmux_fleet_reads_total"]
        new.ask("CLIENT", "KILL", "TYPE", "pubsub")
        servers.wait_for(lambda: proxy.metrics()["imapmux_fleet_reads_total"] > reads, "another subscription")
        assert old.ask("HGET", "imapmux:user:{alice}", "shard") == "blue"
        servers.wait_for(lambda: logs_in(proxy), "her to be served")
        servers.wait_for(lambda: len(proxy.events("login ok")) == 2, "the log")
        assert proxy.events("login ok")[1]["shard"] == "green"


def test_a_user_that_may_do_what_the_documentation_says(folder, start_by):
    page = (servers.REPOSITORY / "docs/operations.md").read_text()
    rights = re.search(r"^ +ACL SETUSER (imapmux .*)$", page, re.MULTILINE).group(1).replace("PASSWORD", "sesame")
    with servers.Redis(folder / f"own-user-{next(numbers)}") as redis:
        redis.ask("ACL", "SETUSER", *rights.split())
        redis.route({"alice": "blue"})
        proxy = start_by(f'address = "{redis.address}" user = imapmux password = sesame', throttle="shared = yes",
                         more="limits { shared = yes per_user = 5 per_address = 5 }\n")
        servers.wait_for(lambda: proxy.metrics()["imapmux_registry_nodes_total"] >= 1, "Redis to know the worker")
        with proxy.wire() as wire:
            assert b"in NO [AUTHENTICATIONFAILED]" in wire.command(b"LOGIN alice wrong", tag=b"in")
        with proxy.logged_in():
            pass
        done(proxy, "cutover", "begin", "alice", "green", "--move", MOVE)
        done(proxy, "cutover", "look", "alice", MOVE)
        done(proxy, "cutover", "abort", "alice", MOVE)
        done(proxy, "cutover", "begin", "alice", "green", "--move", NEXT_MOVE)
        servers.wait_for(lambda: ctl(proxy, "cutover", "commit", "alice", NEXT_MOVE).returncode == 0, "the commit")
        assert logs_in(proxy)
        proxy.stop()
        assert redis.ask("ACL", "LOG") == []
        with pytest.raises(servers.ServerError, match="NOPERM"):
            redis.call_all([("AUTH", "imapmux", "sesame"), ("SET", "other:key", "x")])
        assert redis.ask("ACL", "LOG") != []
