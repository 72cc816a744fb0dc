"""
The health of the proxy itself: memory while it works; and when all clients have left: descriptors, counters, log.
"""
import calendar
import collections
import os
import pathlib
import re
import statistics
import threading
import time

import servers
from town import status_of

ALLOWED_GROWTH, ALLOWED_BYTES = 1.10, 2 << 20
DRAIN_SECONDS = 60
REST_SECONDS, REST_SHARE = 2, 0.1  # of a processor, when nobody wants anything
GAUGES = ("imapmux_backends_open", "imapmux_backends_warm", "imapmux_backends_parked", "imapmux_leases_waiting",
          "imapmux_logins_in_flight", "imapmux_ldap_waiting", "imapmux_ldap_operations_in_flight", "imapmux_ldap_down",
          "imapmux_stores_down")
LABEL = re.compile(r"\{.*\}")
# Ends of sessions that are in order at any time, and those that need a disturbance of this symptom.
GOOD_ENDS = {"logout", "closed by client", "connection to client broke", "ended by the proxy", "shutdown"}
EXCUSED_ENDS = {"closed by store": "bye", "connection to store broke": "cut"}
BAD_ENDS_BEFORE_LOGIN = {"out of memory", "out of descriptors", "no memory for TLS", "TLS time-out", "time-out"}
GOOD_EVENTS = {"privileges", "sandbox", "ready", "hand-over", "upgrade", "draining", "stopping", "stopped",
                "redis connected", "proxy known", "login ok", "repeated", "new ticket key", "reloaded"}


class Memory(threading.Thread):
    """Samples the resident memory each second. It is flat if the last third of them is hardly higher than the first."""

    def __init__(self, proxy, stop):
        super().__init__(daemon=True)
        self.proxy, self.stop = proxy, stop
        self.samples = []

    def run(self):
        while not self.stop.wait(1):
            self.samples.append(self.proxy.resident_bytes())

    def thirds(self):
        """The median of each third."""
        count, size = len(self.samples), max(1, len(self.samples) // 3)
        return [statistics.median(self.samples[start:start + size] or [0]) for start in (0, size, count - size)]

    def complaints(self):
        first, _, last = self.thirds()
        if self.proxy.sanitized or last <= first * ALLOWED_GROWTH + ALLOWED_BYTES:
            return []
        return [f"memory has grown from {first / (1 << 20):.1f} MiB to {last / (1 << 20):.1f} MiB"]


def complaints_of_rest(proxy):
    """Without clients the proxy sleeps."""
    before = processor_seconds(proxy)
    time.sleep(REST_SECONDS)
    used = processor_seconds(proxy) - before
    if used <= REST_SECONDS * REST_SHARE:
        return []
    return [f"{used:.2f} s of processor time within {REST_SECONDS} s at rest"]


def processor_seconds(proxy):
    fields = status_of(proxy.process.pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sum_of(metrics, name):
    """The metric, over all its labels."""
    return int(sum(value for key, value in metrics.items() if LABEL.sub("", key) == name))


def wait_for_drain(town):
    """What the metrics say when nothing is under way any more, or after a while."""
    def at_rest():
        metrics = town.proxy.metrics()
        quiet = not any(metrics[name] for name in GAUGES) and \
            metrics["imapmux_sessions_opened_total"] == metrics["imapmux_sessions_closed_total"]
        return quiet and metrics
    try:
        return servers.wait_for(at_rest, "the proxy to come to rest", DRAIN_SECONDS)
    except servers.ServerError:
        return town.proxy.metrics()


def complaints_of_metrics(metrics, connections):
    """All that was opened must have been closed, and nothing may be left in a gauge."""
    opened, closed, connects, failures = (sum_of(metrics, f"imapmux_{name}_total") for name in (
        "sessions_opened", "sessions_closed", "backend_connects", "backend_failures"))
    drops, leases, logins = (sum_of(metrics, f"imapmux_{name}_total") for name in (
        "backend_drops", "leases", "logins_ok"))
    facts = [(f"{name} is {metrics[name]:.0f} when all have left", metrics[name] == 0) for name in GAUGES]
    facts += [
        (f"{opened} sessions opened, {closed} closed", opened == closed),
        (f"{opened} sessions opened, {connections} made by clients", opened == connections),
        (f"{connects} connections to stores, {drops} ended, {failures} failed",
         connects <= drops <= connects + failures),
        (f"{leases} leases, {logins} logins", leases == logins),
        ("sessions refused", metrics["imapmux_sessions_refused_total"] == 0),
    ]
    return [text for text, holds in facts if not holds]


def descriptors(town):
    """The proxy's descriptors by what they are for."""
    folder = pathlib.Path(f"/proc/{town.proxy.process.pid}")
    purposes = {town.slapd.port: "LDAP", town.redis.port: "Redis"}
    purposes.update((port, "store") for store in town.stores.values() for port in store.ports())
    sockets = {}
    for line in (folder / "net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_, inode = line.split()[:10]
        ports = [int(address.rpartition(":")[2], 16) for address in (local, remote)]
        kind = "client" if ports[0] in town.ports.values() else purposes.get(ports[1], "unknown peer")
        sockets[f"socket:[{inode}]"] = "listener" if state == "0A" else kind
    found = collections.Counter()
    for path in (folder / "fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:  # closed just now
            continue
        dead = "dead socket" if target.startswith("socket:") else target.partition(":")[0]
        found[sockets.get(target, dead)] += 1
    return found


def complaints_of_descriptors(before, after):
    """Connections to LDAP and to Redis may stay; of all else there must be as many as at the beginning."""
    return [f"{before[kind]} descriptors for {kind} at the beginning, {after[kind]} at the end"
            for kind in sorted((before - after) + (after - before)) if kind not in ("LDAP", "Redis")]


class LogReader:
    """Reads the proxy's log, and has the judge hear of what is not in order."""

    def __init__(self, town, judge):
        self.town, self.judge = town, judge
        self.epoch = time.time() - time.monotonic()
        self.events = collections.Counter()

    def read(self):
        for line in list(self.town.proxy.lines):
            fields = {key: value.strip('"') for key, value in self.town.proxy.log_field.findall(line)}
            if line and "event" not in fields:
                self.judge.fail(f"imapmux says {line!r}")
            elif line:
                self._read_event(fields, line)

    def _read_event(self, fields, line):
        event, shard, when = fields["event"], fields.get("shard"), self._moment(fields["time"])
        self.events[event] += 1
        if event == "session end":
            self._read_end(fields, line, shard, when)
        elif event == "login refused" and fields["reason"] in ("unavailable", "admin"):
            symptom = "no route" if fields["reason"] == "admin" else "unavailable"
            self.judge.hear(symptom, shard, when - 1, line, until=when + 1)
        elif event not in GOOD_EVENTS and (event != "login refused" or fields["reason"] != "credentials"):
            self.judge.hear(event, shard, when - 1, line, until=when + 1)

    def _read_end(self, fields, line, shard, when):
        why = fields["why"]
        if why in EXCUSED_ENDS:
            self.judge.hear(EXCUSED_ENDS[why], shard, when - 1, line, until=when + 1)
        elif why in BAD_ENDS_BEFORE_LOGIN or (shard and why not in GOOD_ENDS):
            self.judge.fail(f"the end of a session: {line}")

    def _moment(self, text):
        """A time in the log, as time.monotonic tells it."""
        whole, _, fraction = text.rstrip("Z").partition(".")
        return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}") - self.epoch
