"""
Who judges what clients and the log tell. A symptom is excused if a disturbance that may cause it was under way, or had
just been: within TAIL_SECONDS, in which everybody must have been told, and all must be well again.
"""
import collections
import dataclasses
import threading
import time

TAIL_SECONDS = 10
SHOWN_FAILURES = 20
OF_CRASH, BY_ITSELF = {"cut", "bye", "no", "unavailable"}, "a process of a store crashed by itself"


@dataclasses.dataclass
class Window:
    """A disturbance while it lasts: of one shard's users, or of all (None)."""

    name: str
    excuses: frozenset
    shard: str
    begun: float
    ended: float = None

    def excuses_it(self, symptom, shard, since, until):
        hits = self.shard is None or shard is None or self.shard == shard
        ended = self.ended is None or self.ended + TAIL_SECONDS >= since
        return symptom in self.excuses and hits and self.begun <= until and ended


class Judge:
    """
    Collects failures, prints each as it comes, and counts what was excused. `crashes` tells when processes of a shard's
    store have crashed by themselves: that is no fault of the proxy's.
    """

    def __init__(self, say, crashes):
        self.say, self.crashes = say, crashes
        self.lock = threading.Lock()
        self.windows, self.failures = [], []
        self.excused = collections.Counter()
        self.played = collections.Counter()

    def begin(self, name, excuses, shard=None):
        window = Window(name, frozenset(excuses), shard, time.monotonic())
        with self.lock:
            self.windows.append(window)
            self.played[name] += 1
        return window

    def end(self, window):
        window.ended = time.monotonic()

    def fail(self, text):
        with self.lock:
            self.failures.append(text)
            count = len(self.failures)
        if count <= SHOWN_FAILURES:
            self.say(f"FAILURE  {text}")

    def hear(self, symptom, shard, since, detail, until=None):
        """Someone of this shard met the symptom after `since`: it is excused, or a failure."""
        until = time.monotonic() if until is None else until
        with self.lock:
            causes = [window.name for window in self.windows if window.excuses_it(symptom, shard, since, until)]
        if not causes and symptom in OF_CRASH and any(since - 2 <= when <= until + 2 for when in self.crashes(shard)):
            causes = [BY_ITSELF]
        if causes:
            with self.lock:
                self.excused[causes[-1], symptom] += 1
        else:
            self.fail(f"{symptom} [{shard}], and nothing explains it: {detail}")

    def hear_trouble(self, trouble, shard, who):
        self.hear(trouble.symptom, shard, trouble.since, f"{who}: {trouble.detail}")

    def under_way(self):
        with self.lock:
            return [window.name for window in self.windows if window.ended is None]
