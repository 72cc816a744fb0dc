#!/usr/bin/python3
"""
The soak: real servers, clients of all kinds, and what goes wrong in a year, in some minutes. In the end no message may
be lost or doubled, no client may have met what nothing explains, and imapmux must be as small and tidy as before.

    tests/soak/soak.py --seconds 600 --seed 7      IMAPMUX names the binary, build/imapmux if unset

Exit status 0 if all was well. If not, the folder with all logs is kept, and its name is printed.
"""
import argparse
import collections
import contextlib
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import disturb  # noqa: E402
import health  # noqa: E402
import load  # noqa: E402
import servers  # noqa: E402
import verdict  # noqa: E402
import watch  # noqa: E402
from client import HANG_SECONDS  # noqa: E402
from judge import Judge  # noqa: E402
from ledger import Ledger  # noqa: E402
from letters import Press  # noqa: E402
from town import READERS, Town  # noqa: E402

ACTORS = 10
WATCHERS = 3  # for each mailbox
LIVE_SECONDS, PLAIN_SECONDS = 1, 15  # between two lines of progress, on a terminal and elsewhere


class Clock:
    """The plan of a soak: warm-up, then disturbances, then calm, so that it ends with all servers well."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.start = time.monotonic()
        self.warm_at = self.start + min(60, seconds * 0.2)
        self.calm_at = self.start + seconds - min(30, seconds * 0.2)
        self.end = self.start + seconds

    def elapsed(self):
        return time.monotonic() - self.start

    def __str__(self):
        return f"{int(self.elapsed()) // 60:3}:{int(self.elapsed()) % 60:02}"


class Screen:
    """Prints; on a terminal the line of progress stays at the bottom."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.lock = threading.Lock()

    def say(self, text):
        with self.lock:
            print(("\r\033[K" if self.live else "") + text, flush=True)

    def progress(self, text):
        with self.lock:
            print("\r\033[K" + text[:os.get_terminal_size().columns - 1] if self.live else text,
                  end="" if self.live else "\n", flush=True)


class Soaking:
    """One soak, from the first server to the report."""

    def __init__(self, folder, seconds, seed):
        self.folder, self.seconds, self.seed = folder, seconds, seed
        self.screen = Screen()
        self.town = Town(folder)
        self.judge = Judge(self.screen.say, self.town.crashes)
        self.ledger = Ledger()
        self.soak = load.Soak(self.town, self.ledger, self.judge, Press(seed))
        self.postmen, self.tasks = [], []

    def prepare(self):
        """Starts the servers, and sees how the proxy is before anything happens."""
        self.town.start()
        load.furnish(self.soak)
        health.wait_for_drain(self.town)
        self.descriptors = health.descriptors(self.town)
        self.memory = health.Memory(self.town.proxy, self.soak.stop)
        self.clock = Clock(self.seconds)

    def play(self):
        self._start_tasks()
        disturb.play(self.soak, disturb.BURST, random.Random(self.seed))  # as many sessions as there will ever be
        self._go_on_until(self.clock.warm_at)
        self.memory.start()
        self._go_on_until(self.clock.end)
        self.soak.stop.set()
        for name in load.wait_for_all(self.tasks, 2 * HANG_SECONDS):
            self.judge.fail(f"{name} does not end")

    def _start_tasks(self):
        for name in READERS:
            person = self.town.residents[name]
            watchers = [watch.Watcher(self.soak, person, number, self.seed) for number in range(WATCHERS)]
            self.postmen.append(watch.Postman(self.soak, person, watchers, self.seed))
            self.tasks += [*watchers, self.postmen[-1]]
        actors = [load.Actor(self.soak, f"actor {number}", self.seed) for number in range(ACTORS)]
        self.tasks += actors + self._lanes()
        for task in self.tasks:
            task.start()

    def _lanes(self):
        """Each row of the table has its turn even in a short soak."""
        rows = collections.Counter(row.lane for row in disturb.DISTURBANCES)
        time_for_them = self.clock.calm_at - self.clock.start
        gaps = {"servers": min(20, time_for_them / rows["servers"] / 3), "clients": min(2, time_for_them / 60)}
        return [disturb.Lane(self.soak, lane, gap, self.clock.calm_at, self.seed) for lane, gap in gaps.items()]

    def _go_on_until(self, moment):
        """Prints how it goes."""
        pause = LIVE_SECONDS if self.screen.live else PLAIN_SECONDS
        while time.monotonic() < moment:
            time.sleep(max(0, min(pause, moment - time.monotonic())))
            self.screen.progress(self._progress())
            if self.town.proxy.process.poll() is not None:
                raise servers.ServerError("imapmux has ended")

    def _progress(self):
        return (f"{self.clock}  sessions {self.soak.sessions}  commands {self.soak.commands}  "
                f"messages {self.ledger.entered}  told {watch.figures(self.postmen)[0]}  "
                f"excused {self.judge.excused.total()}  failures {len(self.judge.failures)}  "
                f"{self.town.proxy.resident_bytes() / (1 << 20):.1f} MiB  {', '.join(self.judge.under_way())}")

    def close(self):
        """Ends what still runs, and keeps imapmux's log if there were failures."""
        self.soak.stop.set()
        with contextlib.suppress(servers.ServerError):  # it has been heard of
            self.town.close()
        if self.judge.failures and self.town.proxy:
            (self.folder / "imapmux/log").write_text(self.town.proxy.output())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # all servers are ended then, too
    folder = servers.Folder("imapmux-soak-")
    print(f"soaking for {options.seconds} s, seed {options.seed}", flush=True)
    failures = run(folder.path, options.seconds, options.seed)
    if failures:
        (folder.path / "failures.txt").write_text("\n".join(failures) + "\n")
        print(f"{len(failures)} failures; seed {options.seed}; all logs are kept in {folder.path}")
        return 1
    folder.remove()
    print("all was well")
    return 0


def run(folder, seconds, seed):
    """One soak; its failures."""
    soaking = Soaking(folder, seconds, seed)
    try:
        soaking.prepare()
        soaking.play()
        verdict.reach(soaking)
    except (Exception, KeyboardInterrupt):
        soaking.judge.fail(f"the soak was cut short:\n{traceback.format_exc()}")
    finally:
        soaking.close()
    return soaking.judge.failures


if __name__ == "__main__":
    sys.exit(main())
