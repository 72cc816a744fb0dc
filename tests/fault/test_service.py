"""
What a service manager is told, by sd_notify(3): that the process is ready, that it stops, and that it is alive: only
while each worker answers.
"""
import contextlib
import json
import socket

import pytest

import servers
from intruder import hanging, threads
from stage import Proxy, Store, shard
from test_admin import done

WATCHDOG_MS = 600


class Manager:
    """Where messages come to, as a service manager has it."""

    def __init__(self, folder):
        self.path = folder / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.heard = []

    def _take(self):
        self.heard.append(self.socket.recv(4096).decode().split("\n"))
        return self.heard[-1]

    def wait_for(self, line):
        """The next message with that line."""
        self.socket.settimeout(servers.START_SECONDS)
        while line not in self._take():
            pass
        return self.heard[-1]

    def take_all(self):
        """What has come since, and not been looked at."""
        taken = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(self._take())
        return taken

    def fill(self):
        """Until it takes no more, as one that hangs."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
            other.setblocking(False)
            while True:
                other.sendto(b"", str(self.path))

    def close(self):
        self.socket.close()


class Service(Proxy):
    def prepare(self, manager, **options):
        self.manager = manager
        super().prepare(more='admin { socket = "admin.sock" }\n', **options)

    def environment(self):
        return {**super().environment(), "NOTIFY_SOCKET": str(self.manager.path), "WATCHDOG_USEC": f"{WATCHDOG_MS}000"}


@pytest.fixture
def manager(tmp_path):
    with contextlib.closing(Manager(tmp_path)) as manager:
        yield manager


@pytest.fixture
def proxy(tmp_path, certificate, manager):
    with Store() as store, Service(tmp_path / "proxy", manager=manager, shards=shard("store", store.port),
                                   certificate=certificate, workers=2) as proxy:
        yield proxy


def test_start_and_stop_are_told(proxy, manager):
    pid = proxy.process.pid
    assert f"MAINPID={pid}" in manager.wait_for("READY=1")
    assert any(line.startswith("STATUS=imapmux ") for message in manager.heard for line in message)
    proxy.stop()
    stopping = manager.wait_for("STOPPING=1")
    assert int(stopping[1].removeprefix("EXTEND_TIMEOUT_USEC=")) > 10_000_000  # stop_timeout


def test_a_worker_that_hangs_is_not_alive(proxy, manager):
    manager.wait_for("WATCHDOG=1")
    manager.wait_for("WATCHDOG=1")
    with hanging(threads(proxy.process, "worker")[0]):
        proxy.wait_for_event("watchdog")  # so the question before this one has been answered, if ever
        manager.take_all()
        for _ in range(2 * WATCHDOG_MS // 100):
            proxy.metrics()  # written each 100 ms, by the thread that asks
        assert manager.take_all() == []
    manager.wait_for("WATCHDOG=1")
    assert len(proxy.events("watchdog")) == 1


def test_a_manager_that_hangs_keeps_nobody(proxy, manager):
    """What cannot be told is not: all goes on, and so does what is told once it listens again."""
    manager.wait_for("READY=1")
    manager.fill()
    begun = uptime(proxy)
    servers.wait_for(lambda: uptime(proxy) >= begun + 2, "the process to go on while it would say that it is alive")
    done(proxy, "reload")
    manager.take_all()
    manager.wait_for("WATCHDOG=1")


def uptime(proxy):
    return json.loads(done(proxy, "status", "--json"))["uptime_seconds"]
