#!/usr/bin/python3
"""
Compares imapmux with other proxies on this machine: each row of rows.py, with each peer of peers.py, in alternating
rounds; what is printed are medians. All servers run on free ports of the loopback address in a temporary folder, and
are ended by their process ids; nothing is left behind.

    bench/bench.py                             everything, three rounds: some 15 minutes
    bench/bench.py --quick                     every row and every peer once and briefly: does the benchmark work?
    bench/bench.py --only login,noop-64 --peers imapmux,nginx --rounds 5
"""
import argparse
import contextlib
import pathlib
import signal
import sys
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent / "tests")]
import servers  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402
import tools  # noqa: E402


@contextlib.contextmanager
def unbroken():
    """Lets an interruption wait for the end of the block: a server that is just being started would be left behind."""
    came = []
    before = {number: signal.signal(number, lambda *_: came.append(True)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


class Site:
    """What all peers share: the store, a certificate, and a directory with routes once a row needs them."""

    def __init__(self, folder, stack, amounts):
        self.folder, self.stack = folder, stack
        self.chain, self.key = servers.make_certificate(folder)
        self.store = self.enter(stack, tools.Store, "store")
        self.users = [f"user{number}" for number in range(amounts.users)]
        self.directory_users = [f"user{number}" for number in range(amounts.directory_users)]
        self.slapd = self.redis = None
        self.started = 0

    def enter(self, stack, kind, name, **options):
        """Starts a server that ends with the stack."""
        with unbroken():
            return stack.enter_context(kind(self.folder / name, **options))

    def open_directory(self):
        users = self.directory_users
        self.slapd = self.enter(self.stack, servers.Slapd, "slapd", users={name: tools.PASSWORD for name in users})
        self.redis = self.enter(self.stack, servers.Redis, "redis")
        self.redis.route({name: "store" for name in users})

    def start(self, stack, kind, setting):
        """A new process of a peer."""
        if setting.get("directory") and self.slapd is None:
            self.open_directory()
        self.started += 1
        return self.enter(stack, kind, f"peer{self.started}", site=self, **setting)


def run_all(site, chosen_rows, chosen_peers, rounds, amounts):
    """All runs: by row name and peer name the figures of each round."""
    found = {}
    for row in chosen_rows:
        for number in range(rounds):
            for kind in chosen_peers:
                if kind.name not in row.peers:
                    continue
                began = time.monotonic()
                with contextlib.ExitStack() as stack:
                    figures = row.run_once(site.start(stack, kind, row.setting), site, amounts)
                found.setdefault(row.name, {}).setdefault(kind.name, []).append(figures)
                print(report.progress(row, number, kind.name, figures, time.monotonic() - began), flush=True)
    return found


def choose(parser, things, words):
    """Those whose names begin with one of these words; an empty one is all of them."""
    for word in words.lower().split(","):
        if not any(thing.name.lower().startswith(word) for thing in things):
            parser.error(f"{word}: choose from {', '.join(thing.name for thing in things)}")
    return [thing for thing in things if thing.name.lower().startswith(tuple(words.lower().split(",")))]


def parse():
    parser = argparse.ArgumentParser(description="Compares imapmux with other proxies on this machine.")
    parser.add_argument("--quick", action="store_true", help="tiny amounts, one round: figures mean nothing")
    parser.add_argument("--rounds", type=int, help="3; 1 with --quick")
    parser.add_argument("--only", default="", help="rows, by the start of their names: login,noop-64")
    parser.add_argument("--peers", default="", help="the same for peers: imapmux,nginx,dovecot,haproxy,store")
    parser.add_argument("--page", type=pathlib.Path, help="also write the page of the documentation there")
    options = parser.parse_args()
    options.rows = choose(parser, rows.ROWS, options.only)
    options.kinds = choose(parser, peers.ALL, options.peers)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    options = parse()
    amounts = rows.QUICK if options.quick else rows.Amounts()
    signal.signal(signal.SIGTERM, interrupted)
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(servers.Folder("imapmux-bench-"))
            site = Site(folder, stack, amounts)
            found = run_all(site, options.rows, options.kinds, options.rounds, amounts)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (tools.BenchError, servers.ServerError) as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        return 1
    tables = report.tables(options.rows, [kind.name for kind in options.kinds], found)
    print("\n" + tables)
    if options.page:
        options.page.write_text(report.page(tables, options.rounds, amounts, " ".join(sys.argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
