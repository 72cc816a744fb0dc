"""
A way between imapmux and a real server, which a test can disturb: hold up what goes through, let it trickle, cut the
connections that there are, or close the door.
"""
import contextlib
import queue
import selectors
import socket
import threading

import servers
from imapwire import whole
from stage import PATIENCE_SECONDS, reset


def trickling(pause_seconds):
    """Cutting: octet by octet, with a pause before each; the pace is what is tested."""
    def cut(data):
        for position in range(len(data)):
            threading.Event().wait(pause_seconds)
            yield data[position:position + 1]
    return cut


class Passage(threading.Thread):
    """
    Listens on `port`, and carries the bytes of each connection to the server's port and back, each piece as `cut` has
    it (see imapwire). One thread carries all, and does what the test asks for between two pieces.
    """

    def __init__(self, server_port):
        super().__init__(daemon=True)
        self.server_port, self.cut = server_port, whole
        self._others = {}  # to each socket the one on the other side
        self._jobs, self._selector = queue.SimpleQueue(), selectors.DefaultSelector()
        self._alarm, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, lambda _: woken.recv(4096))
        self._listener, self.port = None, servers.free_port()
        self._open()
        self.start()

    # For the test's thread

    def close(self):
        """Whoever connects is refused; those that are connected stay."""
        self._do(self._close)

    def open(self):
        self._do(self._open)

    def cut_off(self, how="reset"):
        """Ends all connections on both sides, "reset" or "closed"; returns how many there were."""
        return self._do(self._cut_off, how)

    def hold(self):
        """Carries nothing, though both kernels acknowledge what is sent; new connections are not taken up either."""
        self._do(self._watch, False)

    def release(self):
        self._do(self._watch, True)

    def connections(self):
        return self._do(lambda: len(self._others) // 2)

    def _do(self, function, *arguments):
        answer = queue.SimpleQueue()
        self._jobs.put(lambda: answer.put(function(*arguments)))
        self._alarm.send(b"!")
        return answer.get(timeout=PATIENCE_SECONDS)

    # In the loop

    def run(self):
        while True:
            for key, _ in self._selector.select():
                if key.fileobj.fileno() >= 0:  # the one before it may have ended this one, too
                    key.data(key.fileobj)
            while not self._jobs.empty():
                self._jobs.get()()

    def _open(self):
        self._listener = socket.create_server((servers.HOST, self.port), backlog=512)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _close(self):
        if self._listener.fileno() >= 0:
            self._forget(self._listener)
            self._listener.close()

    def _accept(self, listener):
        near = listener.accept()[0]
        try:
            far = socket.create_connection((servers.HOST, self.server_port), timeout=PATIENCE_SECONDS)
        except OSError:
            reset(near)
            return
        for this, other in ((near, far), (far, near)):
            this.settimeout(PATIENCE_SECONDS)
            this.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._others[this] = other
            self._selector.register(this, selectors.EVENT_READ, self._carry)

    def _carry(self, source):
        try:
            piece = source.recv(65536)
            for part in self.cut(piece):
                self._others[source].sendall(part)
        except OSError:
            self._end(source, reset)
            return
        if not piece:
            self._end(source, socket.socket.close)

    def _end(self, one, close):
        for each in (one, self._others[one]):
            self._forget(each)
            del self._others[each]
            close(each)

    def _forget(self, one):
        with contextlib.suppress(KeyError):  # while it is held
            self._selector.unregister(one)

    def _cut_off(self, how):
        count = len(self._others) // 2
        while self._others:
            self._end(next(iter(self._others)), reset if how == "reset" else socket.socket.close)
        return count

    def _watch(self, on):
        watched = {self._listener: self._accept, **{each: self._carry for each in self._others}}
        for each, carry in watched.items():
            self._forget(each)
            if on and each.fileno() >= 0:
                self._selector.register(each, selectors.EVENT_READ, carry)

    # The thread ends with the process; what it listens on ends with the test.

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.cut_off()
