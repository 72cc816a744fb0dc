"""
Hostile peers, many of them: each exchange gets a source of randomness of its own, and after each batch of them the
proxy must be at rest again, as if nothing had been.

    IMAPMUX_HOSTILE_SECONDS=600    how long each test goes on; by default a few seconds
    IMAPMUX_SEED=17                the same exchanges again; 17:400 begins with number 400
"""
import concurrent.futures
import os
import random
import re
import time

import servers
from stage import PASSWORD, PATIENCE_SECONDS, good

SECONDS = float(os.environ.get("IMAPMUX_HOSTILE_SECONDS") or 3)
BATCH, AT_ONCE = 48, 4
GAUGES = ("backends_open", "backends_warm", "backends_parked", "leases_waiting", "logins_in_flight")


def calm(peer):
    """The script of a good store, however long nobody asks it for anything."""
    peer.socket.settimeout(None)
    good(peer)


class Rest:
    """
    What a proxy is like while nobody asks anything of it. `user` has a calm store: she has a session all the time, and
    opens another one for each look.
    """

    def __init__(self, proxy, user):
        self.proxy, self.user, self.process = proxy, user, proxy.process
        self.session = proxy.logged_in(user)
        self._serve_well()
        self.before = servers.wait_for(self._without_sessions, "the proxy to be at rest")

    def _state(self):
        found = self.proxy.metrics()
        state = {name: found["imapmux_" + name] for name in GAUGES}
        state["sessions"] = found["imapmux_sessions_opened_total"] - found["imapmux_sessions_closed_total"]
        state["descriptors"] = self.proxy.descriptors()
        return state

    def _without_sessions(self):
        state = self._state()
        return state if state["sessions"] == 1 else None

    def _serve_well(self):
        """A session that was there all the time, and a new one, get exactly what they ask for."""
        assert self.session.command(b"NOOP", tag=b"still") == b"still OK NOOP done\r\n"
        with self.proxy.wire() as wire:
            assert wire.login(self.user, PASSWORD).startswith(b"in OK [CAPABILITY ")
            assert wire.command(b"CHECK", tag=b"new") == b"new OK CHECK done\r\n"
            assert b"\r\nout OK " in wire.command(b"LOGOUT", tag=b"out")

    def check(self):
        output = self.proxy.output()
        report = re.search(r"Sanitizer|runtime error:", output)
        assert not report, output[report.start():][:8000]
        assert self.process.poll() is None, f"the proxy has ended with {self.process.returncode}: {output[-4000:]}"
        self._serve_well()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (state := self._state()) != self.before:
            assert time.monotonic() < deadline, f"it was {self.before}, and is {state} now"


def first_seed():
    """The seed, and the number of the first exchange."""
    seed, _, number = (os.environ.get("IMAPMUX_SEED") or str(random.randrange(1 << 32))).partition(":")
    return seed, int(number or 0)


def run_batches(proxy, user, exchange):
    """
    Calls exchange(source) as often as there is time for, several at once, and looks at the proxy after each batch.
    `user` takes no part in it; see Rest.
    """
    rest = Rest(proxy, user)
    seed, number = first_seed()
    end = time.monotonic() + SECONDS
    with rest.session, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        while time.monotonic() < end:
            try:
                list(pool.map(lambda one: exchange(random.Random(f"{seed}:{one}")), range(number, number + BATCH)))
                rest.check()
            except BaseException:
                print(f"to repeat this batch of {BATCH}: IMAPMUX_SEED={seed}:{number}")
                raise
            number += BATCH
    print(f"IMAPMUX_SEED={seed}: {number} exchanges")
