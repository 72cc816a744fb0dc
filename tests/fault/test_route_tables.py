"""Routes in Redis as a whole, read and written over imapmuxctl; and what is kept of waves of moves."""
import contextlib
import json
import socket
import threading

import pytest

import servers
from stage import Store, shard
from test_admin import FAILED, WRONG_USAGE, connect, ctl, done
from test_cutover import ADMIN, SOURCES

MOVE = "0123456789abcdef"


@pytest.fixture(scope="module")
def redis(folder):
    with servers.Redis(folder / "redis-tables") as server:
        yield server


@pytest.fixture(scope="module")
def begin(start, redis):
    with Store() as store:
        def begin_one(more="", address=redis.address, **options):
            shards = "".join(shard(name, store.port) for name in ("blue", "green", "store"))
            return start(shards, more=ADMIN, sources=SOURCES.format(sources="redis", redis=address,
                                                                    timeout="5s", more=more), **options)
        yield begin_one


@pytest.fixture(scope="module")
def proxy(begin):
    return begin()


@pytest.fixture(autouse=True)
def forget(redis):
    redis.call("FLUSHALL")


def ask(proxy, command, **arguments):
    """The items, and the last line; without imapmuxctl, whose arguments cannot be as long."""
    with connect(proxy) as peer:
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = {"command": command, "arguments": arguments}
        peer.sendall(json.dumps(request).encode() + b"\n")
        items = []
        for line in peer.makefile("rb"):
            answer = json.loads(line)
            if "item" not in answer:
                return items, answer
            items.append(answer["item"])
    raise AssertionError("no end")


def import_lines(proxy, *lines, **arguments):
    """(user, action, from, to, why) of each."""
    items, end = ask(proxy, "routes import", csv="\n".join(lines), **arguments)
    assert end == {"ok": True, "result": None}
    assert all(list(item) == ["user", "action", "from", "to", "why"] for item in items)
    return [tuple(item.values()) for item in items]


def export(proxy, **arguments):
    items, end = ask(proxy, "routes export", **arguments)
    assert end == {"ok": True, "result": None}
    assert all(list(item) == ["user", "shard", "state", "backend_user", "epoch"] for item in items)
    return sorted(tuple(item.values()) for item in items)


class Events:
    """What is published about routes."""

    def __init__(self, redis):
        self.socket = socket.create_connection((redis.host, redis.port), timeout=30)
        self.socket.sendall(b"SUBSCRIBE imapmux:events\r\n")
        self.stream = self.socket.makefile("rb")
        self.read(6)

    def read(self, count):
        return [self.stream.readline().rstrip() for _ in range(count)]

    def next(self):
        while True:
            event = json.loads(self.read(7)[-1])
            if event["event"] == "route":
                return event["user"], event["epoch"], event["state"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()


# Import

def test_import(proxy, redis):
    with Events(redis) as events:
        assert import_lines(proxy, "# users", "", "Ann,blue", " bob , green,\trobert \r") == [
            ("ann", "new", "", "blue", ""), ("bob", "new", "", "green", "")]
        assert events.next() == ("ann", 1, "active") and events.next() == ("bob", 1, "active")
    assert export(proxy) == [("ann", "blue", "active", "", 1), ("bob", "green", "active", "robert", 1)]
    assert import_lines(proxy, '"ann",blue', "bob,green", '"Bob" ,"green","robert"') == [
        ("ann", "same", "blue", "blue", ""), ("bob", "same", "green", "green", ""),
        ("bob", "same", "green", "green", "")]
    assert import_lines(proxy, "ann,green", "bob,green,rob", "bob,green,") == [
        ("ann", "refused", "blue", "green", "has another route"),
        ("bob", "refused", "green", "green", "has another route"),
        ("bob", "refused", "green", "green", "has another route")]
    with Events(redis) as events:
        assert import_lines(proxy, "ann,green", "bob,green,", replace="yes") == [
            ("ann", "changed", "blue", "green", ""), ("bob", "changed", "green", "green", "")]
        assert events.next() == ("ann", 2, "active") and events.next() == ("bob", 2, "active")
    assert export(proxy) == [("ann", "green", "active", "", 2), ("bob", "green", "active", "", 2)]


@pytest.mark.parametrize("line,item", [
    ("ann", ("ann", "refused", "", "", "no USER,SHARD or USER,SHARD,NAME")),
    ("ann,blue,a,b", ("ann", "refused", "", "blue", "no USER,SHARD or USER,SHARD,NAME")),
    ("a b,blue", ("a b", "refused", "", "blue", "this cannot be the name of a user")),
    ("  ", ("", "refused", "", "", "no USER,SHARD or USER,SHARD,NAME")),
    ('"a""b,c",blue', ('a"b,c', "refused", "", "blue", "this cannot be the name of a user")),
    ('"ann,blue', ("ann,blue", "refused", "", "", "no USER,SHARD or USER,SHARD,NAME")),
    ('ann,"', ("ann", "refused", "", "", "there is no such shard")),
    (",blue", ("", "refused", "", "blue", "this cannot be the name of a user")),
    ("ann,red", ("ann", "refused", "", "red", "there is no such shard")),
    ("ann," + "b" * 100, ("ann", "refused", "", "b" * 100, "there is no such shard")),
    ("ann,blue," + "b" * 256, ("ann", "refused", "", "blue", "the name at the store is too long"))])
def test_lines_that_cannot_be_meant(proxy, line, item):
    assert import_lines(proxy, "ann,blue", line, "bob,blue") == [
        ("ann", "new", "", "blue", ""), item, ("bob", "new", "", "blue", "")]


def test_a_dry_run_changes_nothing(proxy, redis):
    import_lines(proxy, "ann,blue")
    assert import_lines(proxy, "ann,green", "bob,blue", replace="yes", dry_run="yes") == [
        ("ann", "changed", "blue", "green", ""), ("bob", "new", "", "blue", "")]
    assert export(proxy) == [("ann", "blue", "active", "", 1)]


def test_whoever_moves_is_left_alone(proxy, redis):
    import_lines(proxy, "ann,blue")
    done(proxy, "cutover", "begin", "ann", "green")
    assert import_lines(proxy, "ann,blue", "ann,green", replace="yes") == [
        ("ann", "refused", "blue", to, "is being moved to green") for to in ("blue", "green")]


def test_the_disabled_stay_so(proxy, redis):
    redis.call("HSET", "imapmux:user:{ann}", "shard", "blue", "state", "disabled")
    redis.call("HSET", "imapmux:user:{bob}", "state", "disabled")
    import_lines(proxy, "ann,green", "bob,green", replace="yes")
    assert export(proxy) == [("ann", "green", "disabled", "", 1), ("bob", "green", "disabled", "", 1)]


def test_hashes_that_make_no_sense(proxy, redis):
    redis.call("SET", "imapmux:user:{ann}", "blue")
    redis.call("HSET", "imapmux:user:{bob}", "epoch", "many")
    found = import_lines(proxy, "ann,blue", "bob,blue", "carol,blue")
    assert [action for _, action, *_ in found] == ["refused", "refused", "new"] and all(why for *_, why in found[:2])


def test_many_lines(proxy):
    lines = [f"user{number},blue,name{number}" for number in range(2000)]
    assert [action for _, action, *_ in import_lines(proxy, *lines)] == ["new"] * 2000
    assert len(export(proxy)) == 2000


def test_import_for_people(proxy):
    table = done(proxy, "routes", "import", "ann,blue\nbob,red")
    assert "ann" in table and "new" in table and "there is no such shard" in table
    assert "changed" in done(proxy, "routes", "import", "ann,green", "--replace")
    assert ctl(proxy, "routes", "import").returncode == WRONG_USAGE


# Export

def test_export_of_one_shard(proxy):
    import_lines(proxy, *[f"user{number},{'blue' if number % 3 else 'green'}" for number in range(300)])
    assert len(export(proxy)) == 300
    assert {user for user, *_ in export(proxy, shard="green")} == {f"user{number}" for number in range(0, 300, 3)}
    assert ask(proxy, "routes export", shard="red") == ([], {"ok": False, "error": 'there is no shard "red"'})


def test_what_is_no_route_is_not_told(proxy, redis):
    import_lines(proxy, "ann,blue")
    redis.call("SET", "imapmux:user:{text}", "x")
    redis.call("HSET", "imapmux:user:{empty}", "epoch", "3")
    redis.call("HSET", "imapmux:users", "shard", "blue")
    redis.call("HSET", "ximapmux:user:{else}", "shard", "blue")
    assert [user for user, *_ in export(proxy)] == ["ann"]


def test_a_prefix_is_meant_as_it_is(begin, redis):
    proxy = begin(more='prefix = "a*[b]?:"')
    redis.call("HSET", "a*[b]?:user:{ann}", "shard", "blue")
    redis.call("HSET", "axx[b]x:user:{bob}", "shard", "blue")
    redis.call("HSET", "axxbx:user:{bob}", "shard", "blue")
    assert export(proxy) == [("ann", "blue", "active", "", 0)]


FILL = """
for number = 0, ARGV[1] - 1 do
  local name = string.format('%04d', number) .. string.rep('n', 200)
  redis.call('HSET', 'imapmux:user:{' .. name .. '}', 'shard', 'blue', 'backend_user', name)
end
"""


def fill(redis, count):
    """Long ones: some MiB."""
    redis.call("EVAL", FILL, "0", str(count))


class ScriptedRedis:
    """Answers what the export asks by the test's script: each page in RESP, or None to hang up. Nothing else works."""

    def __init__(self, *pages):
        self.pages = list(pages)
        self.listener = socket.create_server((servers.HOST, 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _serve(self, connection):
        stream = connection.makefile("rb")
        while line := stream.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append(stream.read(int(stream.readline()[1:])))
                stream.readline()
            if words[0] == b"SELECT":
                connection.sendall(b"+OK\r\n")
            elif b"imapmux:user:{*}" in words:
                page = self.pages.pop(0)
                if page is None:
                    break
                connection.sendall(page)
            else:
                connection.sendall(b"-ERR not here\r\n")
        stream.close()
        connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


def page(cursor, *users):
    rows = b"".join(b"*5\r\n$%d\r\n%s\r\n$4\r\nblue\r\n$-1\r\n$-1\r\n$1\r\n7\r\n" % (len(user), user) for user in users)
    return b"*2\r\n$%d\r\n%s\r\n*%d\r\n" % (len(cursor), cursor, len(users)) + rows


@pytest.mark.parametrize("pages,users,error", [
    ([page(b"5", b"ann", b"bob"), page(b"7"), page(b"0", b"bob", b"ann", b"carol")], ["ann", "bob", "carol"], None),
    ([page(b"0", b"ann", b"\xff", b"bob")], ["ann", "bob"], None),
    ([page(b"5", b"ann"), None], ["ann"], "redis: the connection was lost"),
    ([page(b"5", b"ann"), b"-ERR so\r\n"], ["ann"], "redis: ERR so"),
    ([b"+OK\r\n"], [], "redis: a page makes no sense"), ([b"*0\r\n"], [], "redis: a page makes no sense"),
    ([b"*2\r\n$1\r\n0\r\n*1\r\n:1\r\n"], [], "redis: a page makes no sense"),
    ([page(b"1" * 30, b"ann")], [], "redis: a page makes no sense")])
def test_what_redis_may_say(begin, pages, users, error):
    """Also the same user twice, as SCAN does when its table shrinks."""
    with ScriptedRedis(*pages) as redis:
        items, end = ask(begin(address=redis.address), "routes export")
    assert [(item["user"], item["state"], item["epoch"]) for item in items] == [(user, "active", 7) for user in users]
    assert end.get("error") == error and not redis.pages


def test_a_client_that_takes_its_time(proxy, redis):
    fill(redis, 8000)
    with connect(proxy) as slow:
        slow.sendall(b'{"command":"routes export"}\n')
        assert ask(proxy, "version")[1]["ok"]  # others are served meanwhile
        assert len(export(proxy)) == 8000
        stream = slow.makefile("rb")
        lines = [json.loads(stream.readline()) for _ in range(8001)]
    assert lines[-1] == {"ok": True, "result": None}
    assert len({line["item"]["user"] for line in lines[:-1]}) == 8000


def test_a_client_that_leaves(proxy, redis):
    fill(redis, 8000)
    for _ in range(3):
        with connect(proxy) as peer:
            peer.sendall(b'{"command":"routes export"}\n')
            peer.recv(1000)
    assert len(export(proxy)) == 8000


def test_export_for_people(proxy):
    import_lines(proxy, "ann,blue")
    assert done(proxy, "routes", "export").split()[-4:] == ["ann", "blue", "active", "1"]


def test_redis_is_away(begin, redis):
    proxy = begin()
    redis.pause()
    try:
        for command, arguments in (("routes export", {}), ("routes import", {"csv": "ann,blue"}),
                                   ("wave create", {"wave": "w", "record": "{}"}), ("wave list", {})):
            assert ask(proxy, command, **arguments)[1]["error"].startswith("redis: ")
    finally:
        redis.resume()


# Waves

def refused(proxy, command, **arguments):
    items, end = ask(proxy, command, **arguments)
    assert items == [] and not end["ok"]
    return end["error"]


def did(proxy, command, **arguments):
    items, end = ask(proxy, command, **arguments)
    assert end["ok"], end
    return items, end["result"]


def test_a_wave(proxy, redis):
    parameters = {"to": "green", "parallel": 4}
    did(proxy, "wave create", wave="w-1", record=json.dumps(parameters))
    did(proxy, "wave create", wave="w-1", record='{"parallel":4, "to":"green"}')  # the answer was lost
    assert refused(proxy, "wave create", wave="w-1", record="{}") == "there is such a wave already"
    did(proxy, "wave add", wave="w-1", record=json.dumps({"ann": {"state": "waiting"}, "bob": {"state": "waiting"}}))
    did(proxy, "wave add", wave="w-1", record=json.dumps({"ann": {"state": "moved", "why": 'ä"\\'}}))
    items, result = did(proxy, "wave show", wave="w-1")
    assert {item.pop("user"): item for item in items} == {"ann": {"state": "moved", "why": 'ä"\\'},
                                                          "bob": {"state": "waiting"}}
    assert result == parameters
    assert did(proxy, "wave list") == ([{"wave": "w-1", "users": 2, "holder": "", **parameters}], None)


def test_one_at_a_time_works_on_a_wave(proxy, redis):
    did(proxy, "wave create", wave="w", record="{}")
    did(proxy, "wave hold", wave="w", owner="host:1")
    did(proxy, "wave hold", wave="w", owner="host:1")
    assert refused(proxy, "wave hold", wave="w", owner="host:2") == "held by host:1"
    assert did(proxy, "wave list")[0][0]["holder"] == "host:1"
    assert 25000 < int(redis.call("PTTL", "imapmux:wave_holder:{w}").lstrip(":")) <= 30000
    did(proxy, "wave hold", wave="w", owner="host:2", release="yes")  # nothing to release
    assert did(proxy, "wave list")[0][0]["holder"] == "host:1"
    did(proxy, "wave hold", wave="w", owner="host:1", release="yes")
    assert did(proxy, "wave list")[0][0]["holder"] == ""
    did(proxy, "wave hold", wave="w", owner="host:2")


def test_a_wave_of_many(proxy):
    did(proxy, "wave create", wave="w", record="{}")
    for first in range(0, 3000, 500):
        did(proxy, "wave add", wave="w",
            record=json.dumps({f"user{number}": {"n": number} for number in range(first, first + 500)}))
    items, _ = did(proxy, "wave show", wave="w")
    assert {item["user"]: item["n"] for item in items} == {f"user{number}": number for number in range(3000)}
    assert len(items) == 3000
    for number in range(200):
        did(proxy, "wave create", wave=f"w{number}", record="{}")
    assert len(did(proxy, "wave list")[0]) == 201


@pytest.mark.parametrize("command,arguments,reason", [
    ("show", {"wave": "none"}, "there is no such wave"),
    ("add", {"wave": "none", "record": "{}"}, "there is no such wave"),
    ("hold", {"wave": "none", "owner": "me"}, "there is no such wave"),
    ("create", {"wave": "w", "record": "[]"}, "this is no JSON object"),
    ("add", {"wave": "w", "record": '{"ann":1}'}, "this is no JSON object"),
    ("create", {"wave": "w", "record": "{"}, "this is no JSON object"),
    ("add", {"wave": "w", "record": "1"}, "this is no JSON object"),
    ("create", {"wave": "a b", "record": "{}"}, "the id of a wave has letters, digits and -_., 64 at the most"),
    ("show", {"wave": "}"}, "the id of a wave has letters, digits and -_., 64 at the most"),
    ("hold", {"wave": "", "owner": "me"}, "the id of a wave has letters, digits and -_., 64 at the most")])
def test_waves_refused(proxy, command, arguments, reason):
    assert refused(proxy, f"wave {command}", **arguments) == reason


def test_without_redis(start):
    with Store() as store:
        proxy = start(shard("store", store.port), more=ADMIN)
        for command, arguments in (("routes export", {}), ("routes import", {"csv": ""}), ("wave list", {}),
                                   ("wave show", {"wave": "w"})):
            assert refused(proxy, command, **arguments).startswith("the configuration has no Redis")
        assert ctl(proxy, "routes", "export").returncode == FAILED
