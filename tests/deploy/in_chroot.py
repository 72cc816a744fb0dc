"""
The Debian package in an empty Debian that systemd runs: `make deb-test`, as root. debootstrap makes that once, with
what imapmux depends on downloaded, and it is kept. A copy of it is booted with processes, mounts and a loopback address
of its own; there the package is installed, serves a login, is configured anew and upgraded under a session, has its
sockets held by systemd, and is purged without a trace.
"""
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading

import pytest
import servers
from imapwire import Wire

CACHE = pathlib.Path(os.environ.get("DEB_CACHE", pathlib.Path.home() / ".cache/imapmux"))
PACKAGES = servers.REPOSITORY / "build/deb"
STORE = servers.REPOSITORY / "build/bench/store"
SUITE = "bookworm"
BOOTSTRAP = ("debootstrap", "--variant=minbase", "--include=systemd-sysv", SUITE)
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CLONE_NEWNET = 0x40000000
# The root file system of the namespaces is the folder $1, and systemd its first process.
BOOT = """
set -e
mount --make-rprivate / && mount --bind $1 $1 && cd $1
ip link set lo up
mount -t proc proc proc && mount -t sysfs -o ro sysfs sys && mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs sys/fs/cgroup && mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . mnt && umount -l mnt
exec env -i PATH=/usr/sbin:/usr/bin container=other /lib/systemd/systemd --system --show-status=false
"""
# What the programs that are in an empty Debian, and the packages that came along, keep of themselves.
OF_OTHERS = re.compile(r"/(var/(lib|log|cache)/(apt|dpkg)|var/cache/(debconf|ldconfig)|var/log/journal|var/lib/systemd|"
                       r"var/tmp/systemd-private|tmp/systemd-private|run/adduser$|etc/ssl|root|etc/\.pwd\.lock$|"
                       r"etc/(ld\.so\.cache|(passwd|group|shadow|gshadow|subuid|subgid)-)$)")


def run(*words, **options):
    ended = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, **options)
    assert ended.returncode == 0, f"{words}: {ended.stdout[-3000:]}"
    return ended.stdout


def mirror():
    """Where apt has the distribution from."""
    uris = run("apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {SUITE}", "Identifier: Packages")
    return uris.split()[0]


def field(package, name):
    return run("dpkg-deb", "--field", package, name).strip()


@pytest.fixture(scope="session")
def package():
    return next(PACKAGES.glob("imapmux_*.deb"))


def kept(make, *of):
    """A folder of the cache, which `make` makes if it is not there yet; `of` is all that what is in it depends on."""
    folder = CACHE / f"{SUITE}-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = folder.with_suffix(f".{os.getpid()}")
        make(made)
        made.rename(folder)
    return folder


def empty_debian(*downloads):
    """An empty Debian with systemd, for which these commands have downloaded what they will install."""
    def bare(made):
        run(*BOOTSTRAP, made, mirror())
        run("chroot", made, "apt-get", "clean")

    def filled(made):
        run("cp", "-a", "--reflink=auto", kept(bare, BOOTSTRAP, mirror()), made)
        for words in downloads:
            run("chroot", made, *words, "-y", "--download-only")
    return kept(filled, BOOTSTRAP, mirror(), downloads)


@pytest.fixture(scope="session")
def base(package):
    return empty_debian(("apt-get", "satisfy", "--no-install-recommends", field(package, "Depends")))


class Cgroup:
    """A control group for a systemd of its own to be in."""

    def __init__(self, folder):
        self.top = folder / "cgroup"
        self.top.mkdir()
        run("mount", "-t", "cgroup2", "cgroup2", self.top)
        self.path = self.top / f"imapmux-{os.getpid()}"
        self.path.mkdir()

    def enter(self):
        (self.path / "cgroup.procs").write_text("0")

    def remove(self):
        def is_empty():
            return "populated 0" in (self.path / "cgroup.events").read_text()
        servers.wait_for(is_empty, "the processes of the machine to be gone")
        for folder, _, _ in os.walk(self.path, topdown=False):
            os.rmdir(folder)
        run("umount", self.top)


class Machine:
    """A copy of the base, booted; everything in it ends with it."""

    def __init__(self, base, folder):
        self.root, self.cgroup = folder / "root", Cgroup(folder)
        run("cp", "-a", "--reflink=auto", base, self.root)
        self.holder = subprocess.Popen(
            ["unshare", "--pid", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child",
             "sh", "-c", BOOT, "sh", self.root], preexec_fn=self.cgroup.enter)
        self.pid = servers.wait_for(self._first_process, "the first process")
        servers.wait_for(self.has_booted, "systemd to be up")

    def _first_process(self):
        children = pathlib.Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def has_booted(self):
        asked = subprocess.run(self.enter("systemctl", "is-system-running"), capture_output=True, text=True)
        return asked.stdout.strip() in ("running", "degraded")

    def enter(self, *words):
        return ["nsenter", f"--target={self.pid}", "--all", "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8",
                "DEBIAN_FRONTEND=noninteractive", *map(str, words)]

    def run(self, *words):
        return run(*self.enter(*words))

    def systemctl(self, *words):
        ended = subprocess.run(self.enter("systemctl", *words), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr + self.run("journalctl", "--no-pager", "--lines=30")

    def ctl(self, *words):
        return self.run("imapmuxctl", *words)

    def status(self):
        return json.loads(self.ctl("--json", "status"))

    def property(self, name):
        return self.run("systemctl", "show", "--value", f"--property={name}", "imapmux.service").strip()

    def install(self, package):
        shutil.copy(package, self.root / "root/imapmux.deb")
        self.run("apt-get", "install", "-y", "--no-install-recommends", "/root/imapmux.deb")

    def files(self):
        """All paths of the root file system."""
        return set(run("find", self.root, "-xdev", "-printf", "/%P\n").splitlines())

    def connect(self):
        """A client on this machine: what a thread has entered, its sockets stay in."""
        made = []

        def inside():
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{self.pid}/ns/net") as network:
                assert libc.setns(network.fileno(), CLONE_NEWNET) == 0
            made.append(Wire(servers.HOST, 993, tls="implicit"))
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        return made[0]

    @contextlib.contextmanager
    def session(self):
        with self.connect() as wire:
            wire.login("ann", "secret")
            yield wire

    def end(self):
        self.holder.kill()
        self.holder.wait()
        self.cgroup.remove()


@pytest.fixture(scope="session")
def machine(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    machine = Machine(base, folder)
    machine.empty = machine.files()
    yield machine
    machine.end()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def store(machine):
    """Where the package's proxy.conf expects it."""
    command = ["nsenter", f"--target={machine.pid}", "--net", STORE, "143"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def lets_in(machine):
    with machine.connect() as wire:
        return b" OK " in wire.command(b"LOGIN ann secret")


def test_it_is_installed_and_runs(machine, package, store):
    machine.install(package)
    assert machine.run("imapmuxctl", "--version").split()[1] == field(package, "Version")
    assert machine.run("stat", "-c", "%A %U:%G", "/etc/imapmux/passwd").strip() == "-rw-r----- root:imapmux"
    assert machine.property("ActiveState") == "active"
    assert machine.run("stat", "-c", "%U", f"/proc/{machine.property('MainPID')}").strip() == "imapmux"


def test_nobody_gets_in_before_a_user_is_added(machine):
    assert not lets_in(machine)


def test_a_user_is_added_as_the_file_says(machine):
    line = next(line for line in (machine.root / "etc/imapmux/passwd").read_text().splitlines() if "echo" in line)
    machine.run("sh", "-c", line.lstrip("# ").replace("passwd -6", "passwd -6 secret"))
    servers.wait_for(lambda: lets_in(machine), "the password file to be read again")


@pytest.fixture
def proxy_conf(machine):
    """The file, which is as before afterwards."""
    path = machine.root / "etc/imapmux/proxy.conf"
    usual = path.read_text()
    yield path
    path.write_text(usual)


def test_it_is_configured_anew_under_a_session(machine, proxy_conf):
    with machine.session() as wire:
        proxy_conf.write_text(proxy_conf.read_text() + 'login { greeting = "configured anew" }\n')
        machine.systemctl("reload", "imapmux")
        assert b" OK " in wire.command(b"NOOP")
    with machine.connect() as wire:
        assert b"configured anew" in wire.greeting


def test_an_upgrade_of_the_package_keeps_sessions(machine, package, tmp_path):
    with machine.session() as wire:
        old = machine.status()["pid"]
        machine.install(higher(package, tmp_path))
        new = machine.status()["pid"]
        assert new != old and machine.property("MainPID") == str(new) and machine.property("NRestarts") == "0"
        assert b" OK " in wire.command(b"NOOP")
        assert lets_in(machine)
    servers.wait_for(lambda: not pathlib.Path(f"{machine.root}/proc/{old}").exists(), "the old process to end")
    assert machine.property("ActiveState") == "active"


def higher(package, folder):
    """The same package with a higher version."""
    run("dpkg-deb", "-R", package, folder / "unpacked")
    control = folder / "unpacked/DEBIAN/control"
    control.write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control.read_text(), flags=re.MULTILINE))
    run("dpkg-deb", "-b", "-Znone", folder / "unpacked", folder / "higher.deb")
    return folder / "higher.deb"


def drop_in(machine, unit, text):
    folder = machine.root / f"etc/systemd/system/{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / "test.conf").write_text(text)
    machine.systemctl("daemon-reload")


def test_a_process_that_hangs_is_replaced(machine):
    drop_in(machine, "imapmux.service", "[Service]\nWatchdogSec=1s\nTimeoutAbortSec=1s\n")
    machine.systemctl("restart", "imapmux")
    old = machine.property("MainPID")
    machine.run("sh", "-c", f"kill -STOP {old}")
    servers.wait_for(lambda: machine.property("NRestarts") == "1" and machine.property("ActiveState") == "active",
                     "systemd to start another one")
    assert machine.property("MainPID") != old and lets_in(machine)


def test_it_reads_keys_of_root_if_it_may(machine, proxy_conf):
    page = (servers.REPOSITORY / "deploy/systemd/README.md").read_text()
    shown = re.search(r"^```ini\n([^`]*CAP_DAC_READ_SEARCH[^`]*)^```", page, re.MULTILINE).group(1)
    usual, of_root = "/etc/ssl/private/ssl-cert-snakeoil.key", "/etc/ssl/private/imapmux.key"
    machine.run("install", "-m", "600", usual, of_root)
    proxy_conf.write_text(proxy_conf.read_text().replace(usual, of_root))
    assert subprocess.run(machine.enter("systemctl", "restart", "imapmux"), capture_output=True).returncode == 1
    drop_in(machine, "imapmux.service", shown)
    machine.systemctl("restart", "imapmux")
    machine.ctl("upgrade")
    assert lets_in(machine)
    status = machine.run("cat", f"/proc/{machine.property('MainPID')}/status")
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)


def test_systemd_holds_the_sockets_and_no_capability_is_needed(machine):
    drop_in(machine, "imapmux.socket", "[Socket]\nListenStream=\nListenStream=127.0.0.1:993\n")
    drop_in(machine, "imapmux.service", "[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\n")
    machine.systemctl("stop", "imapmux.service")
    machine.systemctl("enable", "--now", "imapmux.socket")
    assert lets_in(machine) and machine.property("ActiveState") == "active"
    with machine.session() as wire:
        machine.ctl("upgrade")
        assert b" OK " in wire.command(b"NOOP") and lets_in(machine)


def test_a_stop_says_goodbye_to_all_generations(machine):
    with machine.session() as old:
        machine.ctl("upgrade")
        with machine.session() as new:
            machine.systemctl("stop", "--no-block", "imapmux.socket", "imapmux.service")
            for wire in (old, new):
                assert b"* BYE [UNAVAILABLE]" in wire.read_response()
    servers.wait_for(lambda: machine.property("ActiveState") == "inactive", "the end of all processes")
    assert machine.property("Result") == "success"


def test_it_is_removed_and_keeps_its_configuration(machine):
    machine.systemctl("start", "imapmux.socket", "imapmux.service")
    machine.run("apt-get", "remove", "-y", "imapmux")
    assert (machine.root / "etc/imapmux/proxy.conf").exists() and not (machine.root / "usr/sbin/imapmux").exists()
    assert machine.run("systemctl", "list-units", "--state=active", "--plain", "--no-legend", "imapmux*") == ""


def test_it_is_purged_without_a_trace(machine):
    for unit in ("imapmux.service", "imapmux.socket"):  # these are the test's
        shutil.rmtree(machine.root / f"etc/systemd/system/{unit}.d")
    machine.run("apt-get", "purge", "-y", "imapmux")
    machine.run("apt-get", "autoremove", "--purge", "-y")
    assert {path for path in machine.files() - machine.empty if not OF_OTHERS.match(path)} == set()
    assert "imapmux" not in machine.run("ls", "-R", "/run", "/etc/systemd/system", "/var/lib/systemd")
    for table in ("passwd", "group", "shadow", "gshadow"):
        assert "imapmux" not in (machine.root / "etc" / table).read_text()
    assert "imapmux" not in machine.run("dpkg", "--list")
