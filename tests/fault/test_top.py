"""imapmuxctl top: on a terminal, in a file, and while imapmux is away."""
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios

import pytest

import servers
from screen import Screen
from stage import Store, shard
from test_admin import FAILED, NO_CONNECTION, as_root, ctl, hanging, path_of

FAST = ["--interval", "100ms"]


@pytest.fixture(scope="module")
def begin(start):
    with Store() as store:
        yield lambda: start(shard("store", store.port), workers=2, more='admin { socket = "admin.sock" }')


@pytest.fixture(scope="module")
def proxy(begin):
    return begin()


class Terminal:
    """imapmuxctl top in a terminal of its own; `seen` is all that it has written there, `screen` what that shows."""

    def __init__(self, proxy, *words, lines=24, columns=80, **environment):
        self.seen = b""
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(lines, columns)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [proxy.binary.with_name("imapmuxctl"), "-s", path_of(proxy), "top", *words], stdin=slave, stdout=slave,
            stderr=slave, start_new_session=True, env={**proxy.environment(), "TERM": "xterm-256color", **environment})

    def resize(self, lines, columns):
        self.screen = Screen(lines, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self):
        while select.select([self.master], [], [], 0.01)[0]:
            piece = os.read(self.master, 65536)
            self.seen += piece
            self.screen.feed(piece)

    def shows(self, pattern):
        self.read()
        return re.search(pattern, self.screen.text(), re.M) is not None

    def wait_for(self, pattern):
        servers.wait_for(lambda: self.shows(pattern), f"{pattern} on the screen")

    def press(self, key):
        os.write(self.master, key)

    def status(self):
        """When it has ended."""
        servers.wait_for(lambda: self.read() or self.process.poll() is not None, "the end")
        self.read()
        return self.process.returncode

    def is_restored(self):
        return termios.tcgetattr(self.slave) == self.before and b"\x1b[?1049l" in self.seen

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(proxy):
    opened = []

    def open_one(*words, of=proxy, **options):
        opened.append(Terminal(of, *words, **options))
        return opened[-1]
    yield open_one
    for each in opened:
        each.close()


def test_pages(proxy):
    with proxy.logged_in():
        printed = ctl(proxy, "top", "--count", "2", *FAST)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.count("\nSHARD ") == 2 and max(map(len, printed.stdout.splitlines())) <= 80
    assert re.search(r"^Sessions +1 of 16384 +0 arriving +0 logging in +1 at stores$", printed.stdout, re.M)
    assert re.search(r"^store +up +up +1 ", printed.stdout, re.M) and "\x1b" not in printed.stdout


def test_for_programs(proxy):
    """Logins between two looks are told of as a rate."""
    program = subprocess.Popen([proxy.binary.with_name("imapmuxctl"), "-s", path_of(proxy), "-j", "top", *FAST],
                               stdout=subprocess.PIPE, text=True, env=proxy.environment())
    with program:
        figures = json.loads(program.stdout.readline())
        assert figures["logins_ok_per_second"] == 0 and figures["hits_percent"] is None
        with proxy.logged_in():
            while figures["logins_ok_per_second"] == 0:
                figures = json.loads(program.stdout.readline())
            login = figures["latencies"][0]
            assert login["of"] == "login" and 0 < login["p50_ms"] <= login["p99_ms"] < 30000
            assert figures["shards"][0]["logins_per_second"] > 0 and figures["hits_percent"] == 0
            assert figures["shards"][0]["sessions"] == figures["sessions"] == 1
        program.terminate()
    assert program.returncode == 0


def test_keys(proxy, terminal):
    top = terminal(*FAST)
    top.wait_for(r"^Sessions +0 of 16384 .* 0 at stores$")
    assert top.shows(r"^imapmux \S+  pid %d  up .* running .*every 0.1s$" % proxy.process.pid)
    assert top.shows(r"^WORKER|LATENCY +PER S +P50 +P95 +P99 +WORKER SESSIONS LOGINS/S  STATE$")
    assert top.screen.text().endswith("\nquit  pause  sort by name sessions logins waiting")
    assert b"\x1b[?1049h" in top.seen and b"\x1b[32m" in top.seen  # another screen, and a colour
    top.press(b"p")
    top.wait_for("PAUSED")
    with proxy.logged_in():
        top.press(b"p")
        top.wait_for(r"^Sessions +1 of 16384 .* 1 at stores$")
        assert not top.shows("PAUSED")
    top.press(b"q")
    assert top.status() == 0 and top.is_restored()


def test_order_and_scrolling(start, terminal):
    with Store() as store:
        names = [f"s{number:02}" for number in range(40)]
        proxy = start(shard("store", store.port) + "".join(shard(name, store.port) for name in names), users=["alice"],
                      routes={"alice": "s33"}, more='admin { socket = "admin.sock" }')
        with proxy.logged_in():
            top = terminal(*FAST, of=proxy)
            top.wait_for(r"^s00 +up +up +0 ")
            assert top.shows(r"shards 1-\d+ of 41$") and not top.shows("^s33")
            top.press(b"s")
            top.wait_for(r"^s33 +up +up +1 ")
            top.press(b"n")
            top.wait_for(r"^s00 ")
            top.press(b"\x1bOB" * 60)
            top.wait_for(r"^store ")
            assert top.shows(r"-41 of 41$")
            top.press(b"q")
            assert top.status() == 0


def test_another_size(terminal):
    top = terminal(*FAST)
    top.wait_for("^SHARD")
    for lines, columns in (50, 132), (3, 10), (24, 80):
        top.resize(lines, columns)
        os.kill(top.process.pid, signal.SIGWINCH)
        top.wait_for("^quit  pau" if lines < 24 else r"\nquit  pause .* waiting\Z")
    top.press(b"q")
    assert top.status() == 0 and top.is_restored()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_restore_the_terminal(terminal, signum):
    top = terminal(*FAST)
    top.wait_for("^SHARD")
    top.process.send_signal(signum)
    assert top.status() == 0 and top.is_restored()


def test_without_colours(terminal):
    top = terminal(*FAST, NO_COLOR="1")
    top.wait_for("^SHARD")
    top.press(b"q")
    assert top.status() == 0 and not re.search(rb"\x1b\[[0-9;]*3[0-7]m", top.seen)


def test_a_terminal_that_is_not_known(terminal):
    top = terminal("--count", "1", *FAST, TERM="nonsense")
    assert top.status() == 0 and b"SHARD" in top.seen and b"\x1b" not in top.seen, top.seen


def test_a_restart(begin, terminal):
    proxy = begin()
    top = terminal(*FAST, of=proxy)
    top.wait_for("^SHARD")
    proxy.kill()
    top.wait_for("^No answer, trying again: .*admin.sock: ")
    assert top.shows("^SHARD")  # what was known last
    proxy.start()
    top.wait_for(r"^imapmux .* pid %d  up .* running " % proxy.process.pid)
    assert not top.shows("No answer")
    top.press(b"q")
    assert top.status() == 0 and top.is_restored()


@as_root
def test_a_process_that_hangs(begin, terminal):
    proxy = begin()
    top = terminal(*FAST, "--timeout", "3s", of=proxy)
    top.wait_for("^SHARD")
    with hanging(proxy):
        top.wait_for("SILENT")
    top.wait_for(" well$")
    proxy.process.send_signal(signal.SIGSTOP)
    top.wait_for("^No answer, trying again: there was no answer within 3 s")
    top.press(b"q")  # heard while it waits
    assert top.status() == 0 and top.is_restored()
    proxy.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("words, reason", [
    (["--interval", "never"], "expected a time of 100ms or more"), (["--interval", "1ms"], "expected a time of 100ms or more"),
    (["--count", "0"], "expected a number"), (["--count", "some"], "expected a number")])
def test_what_is_wrong_is_said(proxy, words, reason):
    refused = ctl(proxy, "top", *words)
    assert refused.returncode == FAILED and reason in refused.stderr, refused


def test_nobody_there(proxy, folder):
    assert ctl(proxy, "top", socket_path=folder / "nothing").returncode == NO_CONNECTION
