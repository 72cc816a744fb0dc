"""
What the system no longer gives: room on the disk, descriptors, a clock that goes on evenly. Sessions that exist go on,
new ones are refused or wait, the processor is not kept busy, and all is well when there is enough again.
"""
import contextlib
import itertools
import os
import pathlib
import re
import resource
import struct
import subprocess
import time

import pytest

import servers
from host import Host
from passage import Passage
from stage import PASSWORD, Proxy, Store, directory_and_redis, shard

BUSY = 0.3  # of one processor: an idle proxy under a sanitizer is far below, one that spins far above
LOG_LINE = re.compile(r"time=\S+ level=\w+ event=")
DAY = 24 * 3600
HURRY = "connect_timeout = 3s login_timeout = 3s"
MOVED_CLOCK = pathlib.Path(__file__).with_name("moved_clock.c")


def login(wire, user="alice"):
    return wire.command(f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")


def refused(answer, code):
    return re.match(rb"in NO \[" + code + rb"\] [^\r\n]*\r\n\Z", answer)


def play(proxy, user="alice"):
    """A whole session."""
    with proxy.logged_in(user, "tls") as wire:
        assert b"OK NOOP" in wire.command(b"NOOP")
        assert b"* BYE" in wire.command(b"LOGOUT")


# A full disk

class OnSmallDisk(Proxy):
    """imapmux with a small disk of its own, for its metrics or its log; others see it by way of /proc."""

    def prepare(self, log_there=False, **options):
        self.log_there = log_there
        (self.folder / "disk").mkdir()
        super().prepare(metrics="metrics.prom" if log_there else "disk/metrics.prom", **options)

    def command(self):
        disk = self.folder / "disk"
        run = " ".join(super().command()) + (f" 2>>{disk}/log" if self.log_there else "")
        return ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o size=48k small {disk} && exec {run}"]

    @property
    def disk(self):
        return pathlib.Path(f"/proc/{self.process.pid}/root{self.folder}/disk")

    def fill(self):
        with open(self.disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 1024)

    def make_room(self):
        (self.disk / "filler").unlink()

    @property
    def lines(self):
        log = self.disk / "log" if self.process else None
        return log.read_text().splitlines() if log and log.exists() else self._lines

    @lines.setter
    def lines(self, lines):
        self._lines = lines

    def wait_for_event(self, name, seconds=servers.START_SECONDS):
        return servers.wait_for(lambda: self.events(name), f"event={name}", seconds)[0]


def can_mount():
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "small", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def on_small_disk(folder, certificate):
    if not can_mount():
        pytest.skip("no right to mount a disk of one's own")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(Host()))

        def start(log_there):
            proxy = OnSmallDisk(folder / f"disk-{log_there}", shards=shard("store", store.port, more=HURRY),
                                certificate=certificate, log_there=log_there)
            stack.callback(proxy.stop)
            return proxy
        yield start


def test_no_room_for_the_log(on_small_disk):
    """Nobody notices but who reads the log; there are no halves of lines in it when there is room again."""
    proxy = on_small_disk(log_there=True)
    play(proxy)
    proxy.fill()
    size = (proxy.disk / "log").stat().st_size
    while (proxy.disk / "log").stat().st_size > size:  # the page that it has is used up
        size = (proxy.disk / "log").stat().st_size
        play(proxy)
    for _ in range(10):
        play(proxy)
    proxy.make_room()
    before = len(proxy.events("session end"))
    play(proxy)
    servers.wait_for(lambda: len(proxy.events("session end")) > before, "the log to go on")
    torn = [line for line in proxy.lines if LOG_LINE.search(line, 1)]
    assert not torn, "a line within a line"


def test_no_room_for_metrics(on_small_disk):
    """Told once each time; the file that Prometheus reads is never a part of one."""
    proxy = on_small_disk(log_there=False)
    path = proxy.disk / "metrics.prom"
    servers.wait_for(path.exists, "the first metrics")
    for times in (1, 2):
        proxy.fill()
        servers.wait_for(lambda: len(proxy.events("metrics not written")) >= times, "the failure to be logged")
        whole = path.read_text()
        for _ in range(5):
            play(proxy)
        assert path.read_text() == whole and whole.count("imapmux_bytes_to_clients_total") == 3
        assert len(proxy.events("metrics not written")) == times
        proxy.make_room()
        servers.wait_for(lambda: path.read_text() != whole, "metrics to be written again")


# No more descriptors

@contextlib.contextmanager
def no_descriptors(proxy):
    """The process gets none beyond those that it has now."""
    process = proxy.process.pid
    used = {int(path.name) for path in pathlib.Path(f"/proc/{process}/fd").iterdir()}
    lowest_free = next(number for number in itertools.count() if number not in used)
    soft, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
    resource.prlimit(process, resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_NOFILE, (soft, hard))


def processor_seconds(proxy):
    fields = pathlib.Path(f"/proc/{proxy.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def scarce_proxy(folder, certificate):
    """A proxy before real servers, whose connections can be cut."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        slapd = enter(servers.Slapd(folder / "scarce-slapd", users={"alice": PASSWORD, "bob": PASSWORD}))
        redis = enter(servers.Redis(folder / "scarce-redis"))
        redis.route({"alice": "store", "bob": "store"})
        store = enter(Store(Host()))
        directory, route = enter(Passage(slapd.port)), enter(Passage(redis.port))
        proxy = Proxy(folder / "scarce", shards=shard("store", store.port, more=HURRY), certificate=certificate,
                      sources=directory_and_redis(directory.port, route.port))
        stack.callback(proxy.stop)
        proxy.passages = {"directory": directory, "redis": route}
        proxy.logged_in().close()
        proxy.wait_for_event("session end")
        proxy.descriptors_at_rest = proxy.descriptors()
        yield proxy


@pytest.fixture
def scarce(scarce_proxy):
    """At rest: what other tests have left has ended."""
    proxy = scarce_proxy
    servers.wait_for(lambda: proxy.descriptors() <= proxy.descriptors_at_rest, "rest")
    return proxy


def test_no_descriptor_for_clients(scarce):
    """New clients wait in the kernel's queue, and the proxy does not run in circles meanwhile."""
    with scarce.logged_in() as neighbour, contextlib.ExitStack() as stack:
        with no_descriptors(scarce):
            waiting = [stack.enter_context(scarce.wire(greeting=False)) for _ in range(3)]
            scarce.wait_for_event("accept failed")
            told, used, started = len(scarce.events("accept failed")), processor_seconds(scarce), time.monotonic()
            for _ in range(50):
                assert b"OK NOOP" in neighbour.command(b"NOOP")
            noops = processor_seconds(scarce) - used
            servers.wait_for(lambda: time.monotonic() - started > 1, "a second to pass")
            used = processor_seconds(scarce) - used - noops
            assert used / (time.monotonic() - started) < BUSY
            assert len(scarce.events("accept failed")) - told <= 1, "the log is flooded"
        for wire in waiting:
            assert wire.read_response().startswith(b"* OK ")
            assert b"in OK" in login(wire)


def test_no_descriptor_for_the_store(scarce):
    with scarce.wire() as wire:
        with no_descriptors(scarce):
            assert refused(login(wire), b"LIMIT")
        assert b"in OK" in login(wire)


@pytest.mark.parametrize("name,user", [("directory", "alice"), ("redis", "bob")])
def test_no_descriptor_for_sources(scarce, name, user):
    """Of alice the route is known, so Redis need not be asked."""
    passage = scarce.passages[name]
    with scarce.wire() as wire:
        scarce.logged_in().close()  # both sources are connected
        passage.close()
        held = scarce.descriptors()
        gone = passage.cut_off()
        servers.wait_for(lambda: scarce.descriptors() <= held - gone, "the connections to be given up")
        with no_descriptors(scarce):
            passage.open()
            assert refused(login(wire, user), b"UNAVAILABLE")
        servers.wait_for(lambda: b"in OK" in login(wire, user), "logins to work", 10)


# A clock that jumps

class ElsewhenProxy(Proxy):
    """imapmux with a wall clock of its own, which the test can set; the monotonic one is as it is."""

    def environment(self):
        self.set_clock(0)
        library = self.folder / "moved_clock.so"
        subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
                        "-o", library, MOVED_CLOCK], check=True)
        return {**super().environment(), "LD_PRELOAD": str(library), "MOVED_CLOCK": str(self.folder / "clock")}

    def set_clock(self, seconds):
        """So many seconds from now. Written in place, for the proxy has mapped the file."""
        with open(self.folder / "clock", "r+b" if (self.folder / "clock").exists() else "wb") as clock:
            clock.write(struct.pack("q", seconds))


def logged_at(event):
    return time.mktime(time.strptime(event["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone


@pytest.fixture
def elsewhen(folder, certificate):
    with Store(Host()) as store:
        proxy = ElsewhenProxy(folder / "elsewhen", shards=shard("store", store.port, more=HURRY), pool="warm = 1",
                              certificate=certificate, more='login { timeout = 20s }')
        yield proxy
        proxy.stop()


def test_clock_jumps(elsewhen):
    """A day on, two days back, a day on: no session ends, none lasts for ever, and the log has the new time."""
    play(elsewhen, "bob")
    with elsewhen.logged_in("alice", "tls") as resting, elsewhen.logged_in("alice") as idling, elsewhen.wire() as new:
        idling.send(b"i IDLE\r\n")
        assert idling.read_line() == b"+ idling\r\n"
        for jump in (DAY, -DAY, 0):
            elsewhen.set_clock(jump)
            ended = len(elsewhen.events("session end"))
            play(elsewhen, "bob")
            servers.wait_for(lambda: len(elsewhen.events("session end")) > ended, "bob's session to end")
            assert len(elsewhen.events("session end")) == ended + 1
            line = elsewhen.events("session end")[-1]
            assert abs(logged_at(line) - time.time() - jump) < 60, line
            assert b"OK NOOP" in resting.command(b"NOOP")
            assert b"OK NOOP" in new.command(b"NOOP")
            assert line["lease"] == "parked", "the parked connection was given up"
        idling.send(b"DONE\r\n")
        assert b"i OK" in idling.read_line()
    elsewhen.set_clock(-DAY)
    servers.wait_for(lambda: len(elsewhen.events("session end")) >= 7, "the others' sessions to end")
    elsewhen.stop()
    durations = [int(line["duration_ms"]) for line in elsewhen.events("session end")]
    assert all(duration < 60_000 for duration in durations), durations
