"""
Processes of one proxy that follow one another, by upgrades. Those whose parents have ended become children of this
process, so that their exit status is seen.
"""
import contextlib
import ctypes
import json
import os
import pathlib
import signal
import subprocess

import servers
from stage import Proxy

PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def subreaper():
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Generations(Proxy):
    """
    A proxy with a socket of administration. `process` is the first one, `pids` are all; one that has ended must have done
    so in order.
    """

    def prepare(self, more="", **options):
        super().prepare(more=f'admin {{ socket = "admin.sock" }}\n{more}', **options)
        self.later = []

    def start(self):
        super().start()
        self.pids = [self.process.pid]

    @property
    def path(self):
        return self.folder / "admin.sock"

    def ctl(self, *words, **options):
        return subprocess.run([self.binary.with_name("imapmuxctl"), "-s", self.path, *words], capture_output=True,
                              text=True, timeout=60, env=self.environment(), **options)

    def ask(self, *words):
        """What a command that is carried out says, as JSON."""
        ended = self.ctl("--json", *words)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return json.loads(ended.stdout)

    def all(self, command):
        """What each process says to that, by its number."""
        return {said["pid"]: said["result"] for said in self.ask("--all", command)}

    def upgrade(self):
        """By its own launcher; the number of the new process, which serves."""
        self.pids.append(self.ask("upgrade")["pid"])
        return self.pids[-1]

    def take_over(self, *words, environment=(), **options):
        """Starts a new process by hand; nothing is waited for."""
        with open(f"/proc/{self.pids[-1]}/fd/2", "wb") as log:
            heir = subprocess.Popen([*self.command(), "--take-over", *words], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=log, cwd=self.folder,
                                    env={**self.environment(), **dict(environment)}, **options)
        self.later.append(heir)
        return heir

    def configure(self, change):
        """Changes the text of proxy.conf by this function."""
        path = self.folder / "proxy.conf"
        path.write_text(change(path.read_text()))

    def wait_for_end(self, pid):
        """Returns the exit status of one of them, when it has ended."""
        if pid == self.process.pid:
            return self.process.wait(60)
        known = [heir for heir in self.later if heir.pid == pid]
        if known:
            return known[0].wait(60)
        status = []

        def has_ended():
            with contextlib.suppress(ChildProcessError):
                found, code = os.waitpid(pid, os.WNOHANG)
                status[:] = [os.waitstatus_to_exitcode(code)] if found else []
            return status
        return servers.wait_for(has_ended, f"process {pid} to end", 60)[0]

    def descriptors_of(self, pid):
        return len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))

    def resident_bytes_of(self, pid):
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))

    def stop(self):
        """Ends those that still run; all must end in order."""
        for pid in reversed(self.pids if self.process else []):
            with contextlib.suppress(ProcessLookupError):
                if pid != self.process.pid:
                    os.kill(pid, signal.SIGTERM)
                    with contextlib.suppress(servers.ServerError):
                        assert self.wait_for_end(pid) == 0
        return super().stop()
