"""
imapmuxctl trace: what a user's sessions at two proxies say, those that are there and those that come, without her
password and her mail; and that it is over when it should be.
"""
import contextlib
import json
import os
import signal
import stat
import subprocess

import pytest

import campus
import people
import servers
from imapwire import Sync, Wire

SECRET = b"between you and me"
MESSAGE = b"Subject: Hush\r\n\r\n" + SECRET + b"\r\n"
# What must not be in any line, whatever is asked for.
PASSWORDS = [people.PASSWORD, servers.MASTER_PASSWORD]


@pytest.fixture(scope="module")
def place():
    with campus.Campus(["ann", "bob", "carl"], sentinels=False) as all_of_it:
        yield all_of_it


class Trace:
    """A trace under way, until `end`; `lines` are those so far."""

    def __init__(self, place, user, *words):
        self.process = subprocess.Popen(place.ctl_command(place.proxies[0], "--json", "trace", user, *words),
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines = []
        os.set_blocking(self.process.stdout.fileno(), False)
        self._begun = b""

    def knows(self, text, side):
        """Whether there has been a line with this text, of this side."""
        self._begun += self.process.stdout.read() or b""
        *whole, self._begun = self._begun.split(b"\n")
        self.lines += map(json.loads, whole)
        return any(text in line["text"] and line["from"] == side for line in self.lines if "text" in line)

    def heard(self, text, side):
        servers.wait_for(lambda: self.knows(text, side), f"a line with {text!r}")

    def end(self, number=signal.SIGINT):
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors.decode()

    def all_text(self):
        return "\n".join(line.get("text", "") for line in self.lines)


@contextlib.contextmanager
def tracing(place, user, *words):
    trace = Trace(place, user, *words)
    try:
        yield trace
    finally:
        if trace.process.poll() is None:
            trace.end()


def begun(trace, wire):
    """Her session is listened to from now on: the first question has been answered."""
    def is_heard():
        wire.command(b"NOOP")
        return trace.knows("NOOP", "client")
    servers.wait_for(is_heard, "the trace to begin")


def test_sessions_that_are_there_and_those_that_come(place):
    first, second = place.proxies
    with campus.session(first, "ann") as here, campus.session(second, "ann") as there, tracing(place, "ann") as trace:
        begun(trace, here)
        there.command(b'LIST "" "%"')
        trace.heard('LIST "" "%"', "client")
        trace.heard("* LIST (", "store")
        with campus.session(second, "ann") as later:
            later.command(b"SELECT INBOX")
            trace.heard("logs in by LOGIN, from 127.0.0.1", "proxy")
            trace.heard("is logged in at blue", "proxy")
            trace.heard("SELECT INBOX", "client")
        trace.heard("session ends: ", "proxy")
        assert len({line["proxy"] for line in trace.lines}) == 2
        assert len({line["session"] for line in trace.lines}) == 3
        assert trace.end() == (0, "")


@pytest.mark.parametrize("bodies", [False, True])
def test_mail_is_counted_and_passwords_never_shown(place, bodies):
    with campus.session(place.proxies[0], "bob") as wire, tracing(place, "bob", *["--bodies"] * bodies) as trace:
        begun(trace, wire)
        assert b"OK" in wire.command(b"APPEND INBOX ", Sync(MESSAGE))
        wire.command(b"SELECT INBOX")
        assert SECRET in wire.command(b"FETCH 1:* (ENVELOPE BODY[])")
        with campus.session(place.proxies[1], "bob"):
            trace.heard("is logged in at", "proxy")
        with Wire(servers.HOST, place.proxies[1].port) as wrong:
            assert b" NO " in wrong.command(b"LOGIN bob not-the-password")
        trace.heard("login refused: credentials", "proxy")
        trace.heard("OK Fetch completed", "store")
        text = trace.all_text()
        assert ("between you and me" in text, "Hush" in text) == (bodies, bodies)
        assert ("(%d octets)" % len(MESSAGE) in text) == (not bodies)
        assert not any(word in text for word in [*PASSWORDS, "not-the-password"])


def test_one_at_a_time_and_then_the_next(place):
    with campus.session(place.proxies[0], "ann") as wire:
        with tracing(place, "ann") as trace:
            begun(trace, wire)
            other = place.ctl(place.proxies[1], "trace", "ann")
            assert (other.returncode, other.stderr) == (1, "imapmuxctl: somebody else traces this user\n")
        with tracing(place, "ann") as trace:
            begun(trace, wire)


def test_one_that_was_killed_is_over_by_itself(place):
    with campus.session(place.proxies[0], "carl") as wire:
        with tracing(place, "carl") as trace:
            begun(trace, wire)
            trace.end(signal.SIGKILL)
        for _ in range(2000):  # what nobody fetches is bounded
            wire.command(b"NOOP")

        def is_free():
            ended = place.ctl(place.proxies[0], "trace", "carl", "--for", "1s", "--lines", "1")
            assert ended.returncode == 0 or "somebody else" in ended.stderr
            return ended.returncode == 0
        servers.wait_for(is_free, "the lease of the trace to end", 30)


def test_a_file_of_ones_own(place, tmp_path):
    path = tmp_path / "ann.trace"
    with campus.session(place.proxies[0], "ann") as wire:
        process = subprocess.Popen(place.ctl_command(place.proxies[0], "trace", "ann", "--lines", "4", "--out", str(path)))

        def is_over():
            wire.command(b"NOOP")
            return process.poll() is not None
        servers.wait_for(is_over, "the end of the trace")
        assert process.returncode == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and {" C: " in line for line in lines} == {True, False}
    assert {" S: " in line for line in lines} == {True, False}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = place.ctl(place.proxies[0], "trace", "ann", "--out", str(path))
    assert again.returncode == 1 and "File exists" in again.stderr


@pytest.mark.parametrize("words, complaint", [
    (["@"], "this cannot be the name of a user"), (["ann", "--for", "2h"], "expected a duration up to 1h"),
    (["ann", "--lines", "-1"], "expected a number from 1")])
def test_what_makes_no_sense(place, words, complaint):
    ended = place.ctl(place.proxies[0], "trace", *words)
    assert ended.returncode == 1 and complaint in ended.stderr


def test_it_is_in_the_log_who_listens(place):
    before = [len(proxy.events("trace")) for proxy in place.proxies]
    assert place.ctl(place.proxies[0], "trace", "ann", "--for", "1s", "--bodies").returncode == 0
    for proxy, count in zip(place.proxies, before):
        servers.wait_for(lambda: len(proxy.events("trace")) == count + 2, "both events")
        begin, end = proxy.events("trace")[count:]
        assert (begin["user"], begin["detail"], end["detail"]) == ("ann", "begins, with mail", "ends")
    assert any(line["command"] == "trace fetch" for line in place.proxies[0].events("admin"))
