"""
Many TLS sessions in IDLE at once: what each costs, that a push reaches all of them, and that the proxy takes its leave
of all. IMAPMUX_SESSIONS says how many (5000 needs `ulimit -n 20000`); the figure is appended to the file that
IMAPMUX_FIGURES names.
"""
import os
import select
import selectors
import signal
import socket
import ssl
import threading
import time

from imapwire import unverified_context
from stage import CAPABILITIES, PASSWORD, shard
import servers

COUNT = int(os.environ.get("IMAPMUX_SESSIONS", "300"))
USERS = [f"user{number}" for number in range(50)]
STARTING_AT_ONCE = 64
OVERALL_SECONDS = 60 + COUNT / 20
PUSHED = b"* 42 EXISTS\r\n"


class ManyStore(threading.Thread):
    """One thread with one loop for all connections; knows LOGIN, AUTHENTICATE and IDLE, and pushes when told."""

    ANSWERS = {b"ID": b"* ID NIL\r\n%s OK\r\n",
               b"AUTHENTICATE": b"%s OK [CAPABILITY " + CAPABILITIES + b"] in\r\n",
               b"IDLE": b"+ idling\r\n%.0s"}

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server((servers.HOST, 0), backlog=1024)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.poll = select.epoll()
        self.poll.register(self.listener, select.EPOLLIN)
        self.connections = {}
        self.start()

    def run(self):
        while True:
            for number, _ in self.poll.poll():
                if number == self.listener.fileno():
                    self._accept()
                else:
                    self._read(number)

    def _accept(self):
        connection = self.listener.accept()[0]
        self.connections[connection.fileno()] = connection
        connection.send(b"* OK [CAPABILITY " + CAPABILITIES + b"] store\r\n")
        self.poll.register(connection, select.EPOLLIN)

    def _read(self, number):
        connection = self.connections[number]
        try:
            lines = connection.recv(65536).splitlines()
            for line in lines:
                tag, name = line.split()[:2]
                connection.send(self.ANSWERS[name.upper()] % tag)
        except ConnectionError:
            lines = []
        if not lines:
            self.poll.unregister(number)
            self.connections.pop(number).close()

    def push(self, line):
        for connection in list(self.connections.values()):
            connection.send(line)


class Client:
    """One session, driven by the crowd's selector: connect, TLS, greeting, LOGIN, IDLE."""

    def __init__(self, crowd, number):
        self.crowd, self.number = crowd, number
        self.received, self.ended = b"", False
        raw = socket.socket()
        raw.setblocking(False)
        raw.connect_ex((servers.HOST, crowd.port))
        self.socket = crowd.context.wrap_socket(raw, do_handshake_on_connect=False)
        crowd.selector.register(self.socket, selectors.EVENT_WRITE, self.on_handshake)

    def on_handshake(self):
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.crowd.selector.modify(self.socket, selectors.EVENT_READ, self.on_handshake)
        except ssl.SSLWantWriteError:
            self.crowd.selector.modify(self.socket, selectors.EVENT_WRITE, self.on_handshake)
        else:
            self.crowd.selector.modify(self.socket, selectors.EVENT_READ, self.on_bytes)
            self.on_bytes()

    def on_bytes(self):
        try:
            while True:
                piece = self.socket.recv(16384)
                if not piece:
                    self._end()
                    return
                self.received += piece
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except (ConnectionError, ssl.SSLError) as failure:
            self.received += repr(failure).encode()
            self._end()
            return
        if self.received.endswith(b"\r\n"):
            self._next()

    def _next(self):
        lines = self.received.splitlines()
        if lines[0].startswith(b"* OK ") and len(lines) == 1:
            user = USERS[self.number % len(USERS)]
            self.received = b""
            self.socket.send(f"in LOGIN {user} {PASSWORD}\r\n".encode())
        elif lines[0].startswith(b"in OK "):
            self.received = b""
            self.socket.send(b"i IDLE\r\n")
        elif lines[0] == b"+ idling":
            self.received = b""
            self.crowd.idling += 1

    def _end(self):
        self.ended = True
        self.crowd.ended += 1
        self.crowd.selector.unregister(self.socket)
        self.socket.close()


class Crowd:
    def __init__(self, port, count):
        self.port, self.count = port, count
        self.selector = selectors.EpollSelector()
        self.context = unverified_context()
        self.clients, self.idling, self.ended = [], 0, 0

    def turn_until(self, condition, what):
        deadline = time.monotonic() + OVERALL_SECONDS
        while not condition():
            assert time.monotonic() < deadline, what
            for key, _ in self.selector.select(1):
                key.data()

    def all_idle(self):
        while self.idling < self.count:
            while len(self.clients) < min(self.count, self.idling + STARTING_AT_ONCE):
                self.clients.append(Client(self, len(self.clients)))
            target = min(self.count, self.idling + 1)
            self.turn_until(lambda: self.idling >= target, f"{self.idling} of {self.count} sessions are up")
            assert self.ended == 0, [client.received for client in self.clients if client.ended][:3]


def test_many_idle_sessions(start):
    store = ManyStore()
    proxy = start(shard("store", store.port), users=USERS, workers=2, stop_timeout="30s")
    warm = Crowd(proxy.port["tls"], 8)
    warm.all_idle()
    base = proxy.resident_bytes()

    crowd = Crowd(proxy.port["tls"], COUNT)
    crowd.all_idle()
    each = (proxy.resident_bytes() - base) / COUNT
    line = f"idle_tls_session_resident_bytes sessions={COUNT} sanitized={int(proxy.sanitized)} {each:.0f}"
    print("\n" + line)
    if os.environ.get("IMAPMUX_FIGURES"):
        with open(os.environ["IMAPMUX_FIGURES"], "a") as figures:
            figures.write(line + "\n")

    store.push(PUSHED)
    crowd.turn_until(lambda: all(client.received == PUSHED for client in crowd.clients), "the push")

    started = time.monotonic()
    proxy.process.send_signal(signal.SIGTERM)
    crowd.turn_until(lambda: crowd.ended == COUNT, "the end of all sessions")
    warm.turn_until(lambda: warm.ended == warm.count, "the end of the first sessions")
    for client in crowd.clients:
        assert client.received.startswith(PUSHED + b"* BYE [UNAVAILABLE] "), client.received
        assert client.received.count(b"\n") == 2 and client.received.endswith(b"\r\n"), client.received
    assert proxy.process.wait(30) == 0
    print(f"stopped after {time.monotonic() - started:.2f} s")
    assert "time is up" not in proxy.output()
    assert len(proxy.events("session end")) == COUNT + warm.count
