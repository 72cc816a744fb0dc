"""
Networks of their own, in namespaces of the kernel, and lines between them that are as bad as a test wants: a line
carries IP packets between two TUN devices, and loses, delays, doubles or reorders them, or is cut. All of it ends with
the test: a namespace lives as long as a process that holds it, a device as long as its descriptor.
"""
import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import random
import selectors
import struct
import subprocess
import threading
import time

import pytest

import servers

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
PACKET_MAX = 65536
REST_SECONDS = 0.25

libc = ctypes.CDLL(None, use_errno=True)


def enter(file):
    """Puts the calling thread, and no other, into the network that this open file stands for."""
    if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


class Namespace:
    """A network with nothing but a loopback device."""

    def __init__(self):
        self.file = None
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if self.holder.stdout.readline() != b"up\n":
            reason = self.holder.stderr.read().decode().strip()
            self.close()
            raise OSError(f"no network namespace: {reason}")
        self.file = open(f"/proc/{self.holder.pid}/ns/net")

    @contextlib.contextmanager
    def inside(self):
        """What this thread opens and starts meanwhile belongs to this network."""
        with open("/proc/thread-self/ns/net") as before:
            enter(self.file)
            try:
                yield
            finally:
                enter(before)

    def close(self):
        if self.file:
            self.file.close()
        self.holder.stdin.close()
        self.holder.wait()
        self.holder.stdout.close()
        self.holder.stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Line(threading.Thread):
    """
    Between two namespaces; the first has the address `near`, the second `far`. Both directions are as bad:

        loss, doubled    which part of the packets is lost, or comes twice
        delay, jitter    seconds; each packet waits `delay` and up to `jitter` more, and so may overtake others
        is_cut           nothing gets through, and nobody is told

    `carried` counts the bytes that came through, `dropped` the packets that met the cut.
    """

    numbers = itertools.count(1)

    def __init__(self, one, other, seed=1):
        super().__init__(daemon=True)
        number = next(self.numbers)
        self.near, self.far = f"10.77.{number}.1", f"10.77.{number}.2"
        self.random, self._last_at = random.Random(seed), 0
        self.good()
        self._ends = [self._open(one, self.near, self.far), self._open(other, self.far, self.near)]
        self._under_way, self._order = [], itertools.count()
        self._selector = selectors.DefaultSelector()
        self._closing, closed = os.pipe()[::-1]
        self._selector.register(closed, selectors.EVENT_READ)
        for end, other_end in (self._ends, self._ends[::-1]):
            self._selector.register(end, selectors.EVENT_READ, other_end)
        self.start()

    def good(self):
        self.loss = self.doubled = self.delay = self.jitter = 0
        self.is_cut, self.carried, self.dropped = False, 0, 0

    def wait_for_rest(self):
        """Until nothing has been under way for longer than an acknowledgement may be delayed."""
        def rested():
            return time.monotonic() - self._last_at > REST_SECONDS
        servers.wait_for(rested, "nothing to be under way")

    def bad(self, **how):
        for name, value in how.items():
            setattr(self, name, value)

    @staticmethod
    def _open(namespace, here, there):
        with namespace.inside():
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            name = f"line{here.split('.')[2]}".encode()
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name, IFF_TUN | IFF_NO_PI))
            for command in (f"address add {here} peer {there} dev {name.decode()}", f"link set {name.decode()} up"):
                subprocess.run(["ip", *command.split()], check=True)
        return device

    def run(self):
        while True:
            pause = max(0, self._under_way[0][0] - time.monotonic()) if self._under_way else None
            for key, _ in self._selector.select(pause):
                if key.data is None:
                    return
                self._take_up(key.fd, key.data)
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _, _, end, packet = heapq.heappop(self._under_way)
                self._deliver(end, packet)

    def _take_up(self, source, target):
        try:
            packet = os.read(source, PACKET_MAX)
        except OSError:
            return
        for _ in range(2 if self.random.random() < self.doubled else 1):
            if self.random.random() < self.loss:
                continue
            due = time.monotonic() + self.delay + self.jitter * self.random.random()
            heapq.heappush(self._under_way, (due, next(self._order), target, packet))

    def _deliver(self, end, packet):
        self._last_at = time.monotonic()
        if self.is_cut:
            self.dropped += 1
            return
        with contextlib.suppress(OSError):
            self.carried += os.write(end, packet)

    def close(self):
        os.write(self._closing, b"!")
        self.join()
        for end in self._ends:
            os.close(end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def needed():
    """Skips the test where networks cannot be made: it takes root's rights, iproute2 and /dev/net/tun."""
    try:
        with Namespace() as one, Namespace() as other, Line(one, other):
            pass
    except (OSError, subprocess.CalledProcessError) as failure:
        pytest.skip(f"no networks of one's own: {failure}")
