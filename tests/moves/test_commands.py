"""
Every command of imapmuxctl at a running pair of proxies: what people see and what programs read; and that it says why, and
does not exit with 0, when it did not do what it was asked for.
"""
import json
import re

import campus
import pytest
import servers

USERS = ["ann", "bob", "carl", "dora"]
MOVE = "0123456789abcdef"
# In this order, for some prepare others. A command, and words that it refuses: at the second proxy, with exit status 1 or,
# for those that are wrong in themselves, 2. None: there is nothing that it would refuse.
STORY = [
    ("version", [], None),
    ("status", [], None),
    ("metrics", [], None),
    ("log level", ["info"], ["loud"]),
    ("cache flush", ["ann"], ["@"]),
    ("reload", [], ["now"]),
    ("drain", None, ["soon"]),  # for then it is gone; tests/fault/test_drain.py
    ("config show", ["shard"], ["sing"]),
    ("upgrade", None, ["now"]),  # for then another process is there; tests/fault/test_upgrade.py
    ("handover", None, ["finish"]),  # imapmux --take-over asks for it; tests/fault/test_upgrade.py
    ("proxies", [], None),
    ("who", ["dora"], ["nowhere", "--by", "shard"]),
    ("sessions", ["--sort", "idle", "--phase", "relay"], ["--shard", "nowhere"]),
    ("users", [], ["--limit", "none"]),
    ("pool", ["--by", "worker"], ["--by", "day"]),
    ("top", ["--count", "1", "--interval", "100ms"], ["--interval", "never"]),
    ("trace", ["dora", "--for", "1s"], ["dora", "--for", "1y"]),  # tests/moves/test_trace.py
    ("trace fetch", ["ann", "1", "--end"], ["@", "1"]),
    ("kick", ["dora"], ["nobody"]),
    ("route", ["ann"], ["nobody"]),
    ("explain", ["ann"], ["@"]),
    ("shard list", [], None),
    ("shard weight", ["green", "50"], ["green", "5000"]),
    ("shard drain", ["green"], ["red"]),
    ("shard down", ["green"], ["red"]),
    ("shard up", ["green"], ["red"]),
    ("cutover verify", ["ann", "blue", "green"], ["ann", "blue", "red"]),
    ("cutover begin", ["ann", "green", MOVE], ["bob", "red"]),
    ("cutover look", ["ann", MOVE], ["bob", MOVE]),
    ("cutover commit", ["ann", MOVE], ["bob", MOVE]),
    ("cutover abort", ["bob", "fedcba9876543210"], ["ann", MOVE]),
    ("routes import", ["new,blue"], None),
    ("routes export", [], ["--shard", "red"]),
    ("import", ["{folder}/new.csv"], ["{folder}/bad.csv"]),
    ("export", ["--shard", "blue"], ["--shard", "red"]),
    ("move", ["bob", "--to", "green", "--sync", "{sync}"], ["carl", "--to", "green", "--sync", "false"]),
    ("shard empty", ["green", "--to", "blue", "--sync", "{sync}"], ["green", "--to", "red"]),
    ("waves", [], ["00000000"]),
    ("wave create", ["w", "{{}}"], ["w2", "[]"]),
    ("wave add", ["w", '{{"ann":{{"state":"waiting"}}}}'], ["none", "{{}}"]),
    ("wave hold", ["w", "somebody"], ["w", "another"]),
    ("wave show", ["w"], ["none"]),
    ("wave list", [], None),
    ("proxies forget", None, ["{other}"]),  # it lives; tests/moves/test_fence.py has one that does not
]


@pytest.fixture(scope="module")
def place():
    with campus.Campus(USERS, sentinels=False) as all_of_it:
        (all_of_it.folder / "new.csv").write_text("emma,blue\nfred,blue,fred\n")
        (all_of_it.folder / "bad.csv").write_text("ann,red\n")
        yield all_of_it


def words_of(place, words):
    proxies = place.rows(place.proxies[0], "proxies")[0]
    other = next(proxy["id"] for proxy in proxies if proxy["state"] != "self")
    return [word.format(folder=place.folder, sync=place.sync(), other=other) for word in words]


def test_all_are_in_the_story():
    text = (servers.REPOSITORY / "proxy/ctl/commands.def").read_text()
    assert sorted(name for name, _, _ in STORY) == sorted(re.findall(r'^    X\(\w+, "([^"]+)"', text, re.MULTILINE))


def test_status_tells_of_what_it_depends_on(place):
    def told():
        return json.loads(place.ctl(place.proxies[0], "--json", "status").stdout)
    servers.wait_for(lambda: told()["fleet"]["proxies"] == 2, "a beat of the first after that of the second")
    status = told()
    assert status["redis"]["state"] == "connected" and status["redis"]["role"] == "master"
    assert [(server["state"], server["up_for_workers"]) for server in status["ldap"]] == [("up", status["workers"])]
    assert status["stores"] == {"up": 2, "down": [], "withdrawn": []}


@pytest.mark.parametrize("name, good, bad", STORY, ids=[row[0].replace(" ", "-") for row in STORY])
def test_command(place, name, good, bad):
    first, second = place.proxies
    with campus.session(first, "dora"):
        for proxy, options in ((first, []), (second, ["--json"])) if good is not None else ():
            with campus.session(second, "dora"):
                ended = place.ctl(proxy, *options, *name.split(), *words_of(place, good))
            assert ended.returncode == 0, ended
            assert all(json.loads(line) is not None for line in ended.stdout.splitlines() if options)
            assert "Sanitizer" not in ended.stderr
        if bad is not None:
            ended = place.ctl(second, *name.split(), *words_of(place, bad))
            assert ended.returncode in (1, 2) and len(ended.stderr.strip()) > 5, ended
