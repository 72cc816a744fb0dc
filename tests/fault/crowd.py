"""
Many connections at once: a store whose connections share one loop in a thread, and a crowd of clients that share
another one in the test's own thread. Both remember what came when.
"""
import collections
import contextlib
import heapq
import itertools
import os
import queue
import selectors
import socket
import threading
import time

import servers
from stage import CAPABILITIES as OF_STAGE, PASSWORD, PATIENCE_SECONDS, reset

CAPABILITIES = OF_STAGE + b" UNSELECT"
GOING_DOWN = b"* BYE going down\r\n"
GREETING_AT_ONCE = 512  # clients that connect and are not greeted yet: fewer than the kernel's accept queues hold


class Visitor:
    """The store's end of one connection."""

    def __init__(self, connection):
        self.socket = connection
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.tag = b""  # of IDLE
        self.is_in = False


class CrowdStore(threading.Thread):
    """
    Answers a login after `login_seconds`, or never while that is None. FETCH is never answered, IDLE idles, all other
    commands are done at once. `at_door` holds the connections between accept and the end of the login, `logging_in`
    those that wait for the answer to it; `fetches` counts those since the last loss.
    """

    def __init__(self, login_seconds=0):
        super().__init__(daemon=True)
        self.login_seconds = login_seconds
        self.port = servers.free_port()
        self.visitors, self.at_door, self.logging_in = set(), set(), set()
        self.most_at_door = self.most_logging_in = self.accepted = 0
        self.fetches = 0
        self.history = []  # (when, how many logged in just then), whenever a login came
        self.failures = []
        self._timers, self._numbers = [], itertools.count()
        self._jobs, self._selector, self._listener = queue.SimpleQueue(), selectors.DefaultSelector(), None
        self._alarm, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(4096))
        self._listen()
        self.start()

    # For the test's thread

    def do(self, function, *arguments):
        """Runs it between two events of the store, and returns its result."""
        answer = queue.SimpleQueue()
        self._jobs.put(lambda: answer.put(function(*arguments)))
        self._alarm.send(b"!")
        return answer.get(timeout=PATIENCE_SECONDS)

    def listen(self):
        self.do(self._listen)

    def lose_all(self, way):
        """The store is gone: all connections end at once, and nobody listens. Returns how many there were."""
        return self.do(self._lose_all, way)

    def answer_logins(self, login_seconds):
        """Ends the silence of `login_seconds` = None, also for those that wait."""
        def answer():
            self.login_seconds = login_seconds
            for visitor in list(self.logging_in):
                self._let_in(visitor)
        self.do(answer)

    def check(self):
        assert not self.failures, self.failures

    # In the loop

    def run(self):
        while True:
            pause = max(0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(pause):
                self._guard(key.data)
            while self._timers and self._timers[0][0] <= time.monotonic():
                self._guard(heapq.heappop(self._timers)[2])
            while not self._jobs.empty():
                self._guard(self._jobs.get())

    def _guard(self, function):
        try:
            function()
        except Exception as failure:  # the loop goes on for the others
            self.failures.append(failure)

    def _listen(self):
        self._listener = socket.create_server((servers.HOST, self.port), backlog=4096)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                visitor = Visitor(self._listener.accept()[0])
                self.accepted += 1
                self.visitors.add(visitor)
                self.at_door.add(visitor)
                self.most_at_door = max(self.most_at_door, len(self.at_door))
                self._selector.register(visitor.socket, selectors.EVENT_READ, lambda who=visitor: self._read(who))
                self._send(visitor, b"* OK [CAPABILITY " + CAPABILITIES + b"] store\r\n")

    def _send(self, visitor, data):
        with contextlib.suppress(ConnectionError):
            visitor.socket.send(data)

    def _forget(self, visitor):
        self._selector.unregister(visitor.socket)
        for those in (self.visitors, self.at_door, self.logging_in):
            those.discard(visitor)

    def _read(self, visitor):
        try:
            piece = visitor.socket.recv(65536)
        except ConnectionError:
            piece = b""
        if not piece:
            self._forget(visitor)
            visitor.socket.close()
            return
        *lines, visitor.received = (visitor.received + piece).split(b"\r\n")
        for line in lines:
            self._answer(visitor, *line.split()[:2])

    def _answer(self, visitor, tag, name=b""):
        if name in (b"AUTHENTICATE", b"LOGIN"):
            self._log_in(visitor)
        elif name == b"IDLE":
            visitor.tag = tag
            self._send(visitor, b"+ idling\r\n")
        elif tag == b"DONE":
            self._send(visitor, visitor.tag + b" OK IDLE done\r\n")
        elif name == b"LOGOUT":
            self._send(visitor, b"* BYE bye\r\n" + tag + b" OK bye\r\n")
            self._forget(visitor)
            visitor.socket.close()
        elif name == b"FETCH":
            self.fetches += 1
        else:
            self._send(visitor, tag + b" OK " + name + b" done\r\n")

    def _log_in(self, visitor):
        self.logging_in.add(visitor)
        self.most_logging_in = max(self.most_logging_in, len(self.logging_in))
        self.history.append((time.monotonic(), len(self.logging_in)))
        if self.login_seconds is not None:
            when = time.monotonic() + self.login_seconds
            heapq.heappush(self._timers, (when, next(self._numbers), lambda: self._let_in(visitor)))

    def _let_in(self, visitor):
        if visitor not in self.logging_in:
            return  # has left, or was let in before
        self.logging_in.discard(visitor)
        self.at_door.discard(visitor)
        visitor.is_in = True
        self._send(visitor, b"L OK [CAPABILITY " + CAPABILITIES + b"] Logged in\r\n")

    def _lose_all(self, way):
        self._selector.unregister(self._listener)
        self._listener.close()
        lost, self.fetches = list(self.visitors), 0
        for visitor in lost:
            self._forget(visitor)
            if way == "BYE" and visitor.is_in:
                self._send(visitor, GOING_DOWN)
            if way == "reset":
                reset(visitor.socket)
            else:
                visitor.socket.close()
        return len(lost)

    # The thread ends with the process; what it listens on ends with the test.

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._listener.fileno() >= 0:
            self.lose_all("closed")


class Member:
    """
    One client: connects, logs in when it is greeted, sends `then` when it is in, and keeps each line with its time.
    What came before the answer to the login is not kept.
    """

    def __init__(self, crowd, user, then):
        self.crowd, self.user, self.then = crowd, user, then
        self.lines, self.received = [], b""
        self.greeted_at = self.answered_at = self.ended_at = self.answer = None
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex((servers.HOST, crowd.port))
        crowd.selector.register(self.socket, selectors.EVENT_READ, self._read)

    def send(self, data):
        with contextlib.suppress(ConnectionError):
            self.socket.send(data)

    def log_in(self):
        """By itself when greeted; again only after a NO."""
        self.answer = None
        self.send(f"in LOGIN {self.user} {PASSWORD}\r\n".encode())

    def leave(self, how="reset"):
        """Does not wait for an answer any more: "reset" tells that, "closed" could be a half-closed connection."""
        self._forget()
        if how == "reset":
            reset(self.socket)
        else:
            self.socket.close()

    def _forget(self):
        self.ended_at = time.monotonic()
        self.crowd.selector.unregister(self.socket)
        self.crowd.counts["ended"] += 1

    def _read(self):
        try:
            piece = self.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError as failure:
            piece = b""
            self.received += repr(failure).encode()
        if not piece:
            if self.received:
                self.lines.append((time.monotonic(), self.received))
            self._forget()
            self.socket.close()
            return
        *lines, self.received = (self.received + piece).split(b"\r\n")
        for line in lines:
            self._take(line + b"\r\n")

    def _take(self, line):
        now = time.monotonic()
        if self.greeted_at is None:
            self.greeted_at = now
            self.crowd.counts["greeted"] += 1
            self.log_in()
        elif self.answer is None:
            assert line.startswith(b"in "), line
            self.answer, self.answered_at = line, now
            self.crowd.counts["answered"] += 1
            self.crowd.counts["in" if line.startswith(b"in OK ") else "refused"] += 1
            if line.startswith(b"in OK ") and self.then:
                self.send(self.then)
        elif line == b"+ idling\r\n":
            self.crowd.counts["idling"] += 1
        else:
            self.lines.append((now, line))


class Crowd:
    """
    Clients in one loop, which turns while the test waits for something. `counts` tells how many were greeted, were
    answered (those that are in, and those refused), idle, and have ended.
    """

    def __init__(self, port):
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.members = []
        self.counts = collections.Counter()

    def turn_until(self, condition, what, seconds=PATIENCE_SECONDS):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}; so far {dict(self.counts)}"
            for key, _ in self.selector.select(0.05):
                key.data()

    def add(self, user, then=b""):
        """One more; returns it when it has said who it is."""
        member = Member(self, user, then)
        self.members.append(member)
        self.turn_until(lambda: member.greeted_at or member.ended_at, "a greeting")
        return member

    def rush(self, users, then=lambda number: b"", seconds=PATIENCE_SECONDS, until="greeted", at_once=GREETING_AT_ONCE):
        """
        One client for each user; each sends `then(its number)` when it is in. At most `at_once` are not yet "greeted",
        or "answered": the former is as fast as the kernel takes them.
        """
        for number, user in enumerate(users):
            self.members.append(Member(self, user, then(number)))
            self.turn_until(lambda: len(self.members) - self.counts[until] < at_once, "room for one more", seconds)
        self.turn_until(lambda: self.counts["greeted"] == len(self.members), "greetings", seconds)

    def answered(self, count, what="answers to logins", seconds=PATIENCE_SECONDS):
        self.turn_until(lambda: self.counts["answered"] >= count, what, seconds)

    def all_ended(self, seconds=PATIENCE_SECONDS, still_there=0):
        count = len(self.members) - still_there
        self.turn_until(lambda: self.counts["ended"] >= count, "the end of all clients", seconds)

    def say_goodbye(self, seconds=PATIENCE_SECONDS):
        """LOGOUT of all that are still there."""
        for member in self.members:
            if not member.ended_at:
                member.send(b"out LOGOUT\r\n")
        self.all_ended(seconds)


def is_sanitized(proxy):
    """By any sanitizer: its memory tells nothing, and clients are dear."""
    return proxy.sanitized or b"__tsan_init" in proxy.binary.read_bytes()


def size_of(proxy, variable, full, small):
    """How many clients: as the environment says, else `full`, or `small` for a sanitizer's build."""
    return int(os.environ.get(variable) or (small if is_sanitized(proxy) else full))


def wait_for_metrics(proxy, seconds=PATIENCE_SECONDS, **wanted):
    """Until gauges (without their "imapmux_") have these values; returns all metrics."""
    def reached():
        found = proxy.metrics()
        return found if all(found["imapmux_" + name] == value for name, value in wanted.items()) else None
    return servers.wait_for(reached, f"metrics {wanted}", seconds)
