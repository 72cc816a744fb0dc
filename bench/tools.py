"""The two programs of the benchmark, as Python sees them: the store behind the proxies, the load before them."""
import json
import os
import pathlib
import select
import signal
import subprocess

import servers

PASSWORD = "bench-password"
FOLDER = pathlib.Path(os.environ.get("IMAPMUX_BENCH_TOOLS") or servers.REPOSITORY / "build/bench").resolve()


class BenchError(Exception):
    """A run went wrong: its figures are worth nothing."""


class Store(servers.Server):
    """The synthetic store; see store.c."""

    name = "store"

    def prepare(self):
        self.port = servers.free_port()

    def ports(self):
        return [self.port]

    def command(self):
        return [str(FOLDER / "store"), str(self.port)]

    def counts(self):
        """What it has served so far, as a dictionary."""
        before = self.output().count("\n")
        self.process.send_signal(signal.SIGUSR2)
        servers.wait_for(lambda: self.output().count("\n") > before, "the store's counts")
        return json.loads(self.output().splitlines()[-1])


class Load:
    """One run of the load: all its clients are up and wait when the constructor returns; see load.c."""

    def __init__(self, workload, port, *words, **options):
        names = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self.command = [str(FOLDER / "load"), workload, str(port), "--hold", "--password", PASSWORD, *words, *names]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            self._line("ready")
        except BaseException:
            self.close(at_once=True)
            raise

    def _line(self, start):
        line = self.process.stdout.readline()
        if not line.startswith(start):
            self._fail(line)
        return line

    def _fail(self, line):
        self.process.kill()
        raise BenchError(f"{' '.join(self.command)}: {line}{self.process.stderr.read()[:2000]}")

    def start(self):
        """Lets the clients begin."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def is_done(self, seconds):
        """Waits so long for the end of the work."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def result(self):
        """Waits for the end of the work; the clients stay connected until `close`."""
        line = self._line("{")
        result = json.loads(line)
        if result["errors"] > 0:
            self._fail(line)
        return result

    def close(self, at_once=False):
        if at_once:
            self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        self.close(at_once=failure is not None)


def warm_up(workload, port, *words, **options):
    """Runs a load whose figures nobody wants."""
    with Load(workload, port, *words, **options) as load:
        load.start()
        load.result()
