"""The converters: what other proxies print becomes lines for `imapmuxctl import`; what cannot is told with its line."""
import re
import subprocess

import pytest
import servers

CONVERTERS = servers.REPOSITORY / "deploy/convert"
SHARDS = ["--shard", "192.0.2.11=blue", "--shard", "store2.example.org:143=green"]
POPMAP = """\
# the campus

ann:192.0.2.11
bob:robert@192.0.2.11:143
carl@example.org:carl@example.org@store2.example.org:143
dora : dora@192.0.2.11:imap
ann:192.0.2.11:993
"""
MAP_2_2 = """\
user                                              mail server ip expire time
ann                                               192.0.2.11     2026-11-24 10:00:00
carl@example.org                                  192.0.2.11     2026-11-24 10:05:00
"""
MAP_2_3 = """\
user                                              hash       mail server ip expire time
ann                                               1234567890 192.0.2.11     2026-11-24 10:00:00
42                                                77         192.0.2.11     2026-11-24 10:05:00
user                                              78         192.0.2.11     2026-11-24 10:05:00
"""


def convert(program, text, *words, shards=SHARDS):
    return subprocess.run([CONVERTERS / program, *shards, *words, "-"], input=text, capture_output=True, text=True)


@pytest.mark.parametrize("program, text, routes", [
    ("perdition-popmap", POPMAP, "ann,blue\nbob,blue,robert\ncarl@example.org,green\ndora,blue\n"),
    ("director-map", MAP_2_2, "ann,blue\ncarl@example.org,blue\n"),
    ("director-map", MAP_2_3, "ann,blue\n42,blue\nuser,blue\n"),
    ("director-map", re.sub(" {2,}", "\t", MAP_2_3), "ann,blue\n42,blue\nuser,blue\n"),
    ("director-map", "", "")], ids=["popmap", "2.2", "2.3", "tabs", "empty"])
def test_what_is_good(program, text, routes):
    ended = convert(program, text)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, routes, "")


@pytest.mark.parametrize("program, line, complaint", [
    ("perdition-popmap", "ann", "not KEY:"),
    ("perdition-popmap", "ann:192.0.2.11:143:1", "not KEY:"),
    ("perdition-popmap", "^[a-m]:192.0.2.11", "regular expression"),
    ("perdition-popmap", "ann:192.0.2.99", "add --shard 192.0.2.99=SHARD"),
    ("perdition-popmap", "ann:store2.example.org:993", "add --shard store2.example.org:993=SHARD"),
    ("perdition-popmap", "ann smith:192.0.2.11", "cannot be a name"),
    ("perdition-popmap", "first:store2.example.org:143", '"first" is elsewhere by line 1'),
    ("director-map", "ann 192.0.2.11", "not USER"),
    ("director-map", "<unknown> 77 192.0.2.11 2026-11-24 10:00:00", "--skip-unknown"),
    ("director-map", "ann 77 192.0.2.99 2026-11-24 10:00:00", "add --shard 192.0.2.99=SHARD"),
    ("director-map", "doveadm director add 192.0.2.11 100", "take `doveadm director map`")])
def test_what_is_not(program, line, complaint):
    good = {"perdition-popmap": "first:192.0.2.11\n", "director-map": "first 1 192.0.2.11 2026-11-24 10:00:00\n"}
    ended = convert(program, good[program] + line + "\n")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("-:2: ") and complaint in ended.stderr and ended.stderr.count("\n") == 1


def test_whom_the_director_cannot_name_can_be_left_out():
    text = "<unknown> 77 192.0.2.11 2026-11-24 10:00:00\nann 78 192.0.2.11 2026-11-24 10:00:00\n"
    ended = convert("director-map", text, "--skip-unknown")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ann,blue\n", "")


@pytest.mark.parametrize("shards", [[], ["--shard", "blue"], ["--shard", "=blue"], ["--shard", "192.0.2.11="]])
def test_shards_must_be_given(shards):
    assert convert("director-map", MAP_2_2, shards=shards).returncode == 2


def test_a_file_that_is_not_there():
    ended = subprocess.run([CONVERTERS / "director-map", *SHARDS, "/none"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "") and "/none" in ended.stderr
