"""
A proxy that drains: it takes no new clients, those that are there are let go one by one, and it ends by itself.
"""
import json
import signal
import threading

import pytest

import servers
from stage import PASSWORD, Store, shard
from test_admin import ctl, done


class Slow:
    """The script of a store that answers "SLOW" only when `may_answer` is set."""

    def __init__(self):
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def __call__(self, peer):
        peer.log_in()
        while True:
            tag, name = peer.command().split()[:2]
            if name == b"SEARCH":
                self.asked.set()
                self.may_answer.wait(60)
            peer.send(tag + b" OK done\r\n")
            if name == b"LOGOUT":
                return


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def proxy(start, slow):
    with Store(slow) as store:
        yield start(shard("store", store.port), workers=2, more='admin { socket = "admin.sock" }')
        store.check()


def state(proxy):
    return json.loads(done(proxy, "--json", "status"))["state"]




def end_of(proxy):
    proxy.process.wait(60)
    return proxy.stop()


def test_who_is_there_is_let_go(proxy, slow):
    idle, busy, early = proxy.logged_in("alice"), proxy.logged_in("bob"), proxy.wire()
    busy.send(b"b SEARCH ALL\r\n")
    slow.asked.wait(60)
    done(proxy, "drain", "2s")
    assert state(proxy) == "draining"
    servers.wait_for(lambda: not servers.accepts(proxy.port["plain"]), "the listeners to close")
    early.login("alice", PASSWORD)  # who had come before is served all the same
    assert b"OK" in early.command(b"NOOP")
    for wire in (idle, early):
        assert b"* BYE [UNAVAILABLE] The server is shutting down" in wire.read_response()
    slow.may_answer.set()
    assert b"b OK" in busy.read_response()
    assert b"* BYE [UNAVAILABLE]" in busy.read_response()
    for wire in (idle, early, busy):
        wire.socket.close()
    assert end_of(proxy) == 0
    assert [event["event"] for event in proxy.events() if event["event"] in ("draining", "stopped")] == [
        "draining", "stopped"]
    assert {event["why"] for event in proxy.events("session end") if "user" in event} == {"let go"}


def test_with_nobody_it_ends_at_once(proxy):
    done(proxy, "drain", "7d")
    assert end_of(proxy) == 0


def test_it_ends_with_its_last_session(proxy):
    wire = proxy.logged_in("alice")
    done(proxy, "drain", "7d")
    assert b"OK" in wire.command(b"NOOP")
    wire.command(b"LOGOUT")
    wire.socket.close()
    assert end_of(proxy) == 0


def test_time_is_up(proxy, slow):
    wire = proxy.logged_in("alice")
    wire.send(b"b SEARCH ALL\r\n")
    slow.asked.wait(60)
    done(proxy, "drain", "7d")
    done(proxy, "drain", "0s")  # it may be made shorter
    proxy.wait_for_event("stopping")
    slow.may_answer.set()
    assert b"b OK" in wire.read_response() and b"* BYE [UNAVAILABLE]" in wire.read_response()
    wire.socket.close()
    assert end_of(proxy) == 0


def test_it_can_be_stopped(proxy):
    wire = proxy.logged_in("alice")
    done(proxy, "drain", "7d")
    proxy.process.send_signal(signal.SIGTERM)
    assert b"* BYE [UNAVAILABLE]" in wire.read_response()
    wire.socket.close()
    assert end_of(proxy) == 0


def test_what_is_no_time(proxy):
    ended = ctl(proxy, "drain", "soon")
    assert ended.returncode == 1 and "expected a duration" in ended.stderr
    assert state(proxy) == "running"
