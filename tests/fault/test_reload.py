"""
Another configuration for a running process: each kind of change counts for the next login, sessions notice nothing, and
a file that is not good leaves all as it was.
"""
import json
import signal
import socket
import subprocess
import threading

import pytest

import servers
from crowd import wait_for_metrics
from stage import FILES, PASSWORD, Peer, Store, good, password_line, shard
from test_admin import FAILED, ctl, done

ADMIN = 'admin { socket = "admin.sock" }\n'
QUICK = "connect_timeout = 20s login_timeout = 20s drain_time = 200ms"


def named(name):
    """The script of a store that says its name."""
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID IDLE AUTH=PLAIN] " + name + b"\r\n")
        peer.serve()
    return script


@pytest.fixture(scope="module")
def stores():
    with Store(named(b"first")) as first, Store(named(b"second")) as second:
        yield first, second
        first.check()
        second.check()


@pytest.fixture
def begin(start, stores):
    running = []

    def begin_one(more="", shards=None, **options):
        text = shard("store", stores[0].port, more=QUICK) if shards is None else shards
        options = {"workers": 2, "pool": "warm = 1 park_time = 1m", **options}
        running.append(start(text, more=ADMIN + more, **options))
        return running[-1]

    yield begin_one
    for proxy in running:
        proxy.stop()


def path_of(proxy):
    return proxy.folder / "proxy.conf"


def change(proxy, *replacements, more=""):
    """Writes another proxy.conf: each of the pairs (old, new) must be in it."""
    text = path_of(proxy).read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    path_of(proxy).write_text(text + more)


def reloaded(proxy, *replacements, more=""):
    change(proxy, *replacements, more=more)
    return json.loads(done(proxy, "reload", "--json"))


def refused(proxy, *replacements, more=""):
    """The same with one that is not good: what is said. The old file is back afterwards."""
    before = path_of(proxy).read_text()
    change(proxy, *replacements, more=more)
    result = ctl(proxy, "reload")
    assert result.returncode == FAILED, result
    path_of(proxy).write_text(before)
    return result.stderr


def login_text(proxy, user="alice", listener="plain", password=PASSWORD):
    """What the store says to who logs in."""
    with proxy.wire(listener) as wire:
        return wire.command(f"LOGIN {user} {password}")[-1]


def test_what_has_changed_is_told_and_counts(begin):
    proxy = begin()
    told = reloaded(proxy, more='login { greeting = "another one." }\nprocess_of_none { }\n'.replace("process_of_none { }\n", ""))
    assert told == {"changed": ["login greeting"], "needs_restart": []}
    with proxy.wire() as wire:
        assert b"another one." in wire.greeting
    assert proxy.events("reloaded")[-1]["changed"] == "login greeting"
