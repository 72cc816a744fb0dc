"""Turns the figures of all runs into Markdown tables, and these into the page of the documentation."""
import datetime
import os
import pathlib
import platform
import re
import statistics
import subprocess

import peers
from rows import MAIL

OURS, FLOOR, ALONE = "imapmux", "HAProxy", "store alone"
TEMPLATE = pathlib.Path(__file__).resolve().parent / "performance.md.in"


def progress(row, number, peer, figures, seconds):
    """What a run has found, on one line."""
    cpu = f"{figures['cpu'] * row.scale:9.2f} {row.unit}" if figures.get("cpu") else ""
    rest = "  ".join(f"{name} {figures[name]:.4g}" for name in
                     ("rate", "p50", "p99", "memory", "kernel", "load", "store") if name in figures)
    return f"{row.name:<14} {number + 1}  {peer:<12} {cpu:>14}  {rest}  ({seconds:.1f} s)"


class Medians:
    """The median over the rounds of a figure, by row, peer and name; None if that was not measured."""

    def __init__(self, found):
        self.found = found

    def __call__(self, row, peer, name):
        runs = self.found.get(row.name, {}).get(peer, [])
        values = [figures[name] for figures in runs if name in figures]
        return statistics.median(values) if values else None


def number(value, scale=1):
    """Three digits that count, and never an exponent."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:,.0f}".replace(",", " ") if abs(scaled) >= 100 else f"{scaled:.3g}"


def share(value):
    return "" if value is None else f"{100 * value:.0f} %"


def pair(first, second):
    return f"{first} / {second}" if first else ""


def table(head, lines):
    """Markdown, without the lines that have nothing to say; "" if none has."""
    lines = [line for line in lines if any(line[1:])]
    if not lines:
        return ""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule] + lines) + "\n"


def ratio(ours, other):
    return f"{ours / other:.2f}" if ours is not None and other else ""


def _cpu_table(rows, names, median):
    """CPU time for a unit, and what ours is of the others': below 1 is less work."""
    others = [name for name in names if name in MAIL and name != OURS]
    proxies = [name for name in names if name != ALONE]
    lines = []
    for row in rows:
        cpu = {name: median(row, name, "cpu") for name in proxies}
        best = min((cpu[name] for name in others if cpu[name]), default=None)
        lines.append([f"{row.title} ({row.unit})"] + [number(cpu[name], row.scale) for name in proxies]
                     + [ratio(cpu.get(OURS), best), ratio(cpu.get(OURS), cpu.get(FLOOR))])
    return table(["CPU time of the proxy for"] + proxies + ["imapmux / best mail proxy", "imapmux / HAProxy"], lines)


def _rate_table(rows, names, median):
    lines = [[row.title] + [number(median(row, name, "rate")) for name in names] for row in rows if row.name != "idle"]
    return table(["Units in a second"] + names, lines)


def _latency_table(rows, names, median):
    lines = [[row.title] + [pair(number(median(row, name, "p50")), number(median(row, name, "p99"))) for name in names]
             for row in rows]
    return table(["Time of a unit in ms, median / 99 %"] + names, lines)


def _memory_table(rows, names, median):
    lines = []
    for row in rows:
        what = "an idle session" if row.name == "idle" else row.title
        lines.append([f"{what}: the proxy"] + [number(median(row, name, "memory")) for name in names])
        lines.append([f"{what}: the kernel, both ends included"]
                     + [number(median(row, name, "kernel")) for name in names])
    return table(["KiB for each session"] + names, lines)


def _other_table(rows, names, median):
    lines = []
    for row in rows:
        if row.name.startswith("login"):
            lines.append([f"{row.title}: CPU time of those it asks, µs"]
                         + [number(median(row, name, "asked"), 1e6) for name in names])
        if row.name == "webmail":
            lines.append(["webmail: logins at the store, of sessions"]
                         + [share(median(row, name, "logins")) for name in names])
        if row.name == "login-resumed":
            lines.append(["TLS sessions that were resumed, of those tried"]
                         + [share(median(row, name, "resumed")) for name in names])
        if row.name == "idle":
            lines.append(["until the last idle session has its line, ms"]
                         + [number(median(row, name, "wake_up"), 1e3) for name in names])
    return table(["Other figures"] + names, lines)


def _ends_table(rows, names, median):
    """How busy the two ends were, to see that they did not set the pace; 100 % is one core."""
    lines = [[row.title] + [pair(share(median(row, name, "load")), share(median(row, name, "store"))) for name in names]
             for row in rows]
    return table(["Share of a core: load / store"] + names, lines)


def tables(rows, names, found):
    """All tables, for the peers of these names."""
    median = Medians(found)
    proxies = [name for name in names if name != ALONE]
    made = [_cpu_table(rows, names, median), _rate_table(rows, names, median), _latency_table(rows, names, median),
            _memory_table(rows, proxies, median), _other_table(rows, proxies, median),
            _ends_table(rows, names, median)]
    return "\n".join(filter(None, made))


def _processor():
    found = re.search(r"^model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def _memory_gib():
    return int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / (1 << 20)


def _system():
    return re.search(r'PRETTY_NAME="(.*)"', pathlib.Path("/etc/os-release").read_text())[1]


def _openssl():
    return subprocess.run(["openssl", "version"], capture_output=True, text=True).stdout.split()[1]


def page(text, rounds, amounts, command):
    """The page of the documentation, with these tables."""
    versions = ", ".join(f"{kind.name} {kind.version()}" for kind in peers.ALL if kind.version_command)
    values = {"tables": text, "date": datetime.date.today().isoformat(), "rounds": rounds,
              "seconds": f"{amounts.seconds:g}", "command": command, "idle_sessions": amounts.idle_sessions,
              "machine": f"{os.cpu_count()} cores ({_processor()}), {_memory_gib():.0f} GiB of memory, {_system()}, "
                         f"Linux {platform.release()}",
              "versions": f"{versions}, OpenSSL {_openssl()}"}
    return re.sub(r"@(\w+)@", lambda found: str(values[found[1]]), TEMPLATE.read_text())
