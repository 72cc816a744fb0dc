"""
The Debian package in an empty Debian: `make deb-test`, as root. debootstrap makes that once, with the packages that
imapmux needs, in a folder that is kept. A copy of it, with processes and a loopback address of its own, then has the
package installed, serves a login, is upgraded under a session, and is purged without a trace.
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
CLONE_NEWNET = 0x40000000
# As the unit has it, for there is no systemd in there.
AS_THE_UNIT = ["setpriv", "--reuid=imapmux", "--regid=imapmux", "--init-groups", "--no-new-privs",
               "--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service",
               "--bounding-set=-all,+net_bind_service"]
# What the programs that are in an empty Debian, and the packages that came along, keep of themselves.
OF_OTHERS = re.compile(r"/(var/(lib|log|cache)/(apt|dpkg)|var/cache/(debconf|ldconfig)|run/adduser$|etc/ssl|"
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


@pytest.fixture(scope="session")
def base(package):
    """An empty Debian that has downloaded, and not installed, what the package depends on."""
    needed = field(package, "Depends")
    name = hashlib.sha256(f"{SUITE} {mirror()} {needed}".encode()).hexdigest()[:16]
    kept = CACHE / f"{SUITE}-{name}"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = CACHE / f"{SUITE}-{name}.{os.getpid()}"
        run("debootstrap", "--variant=minbase", SUITE, made, mirror())
        run("chroot", made, "apt-get", "clean")
        run("chroot", made, "apt-get", "satisfy", "-y", "--no-install-recommends", "--download-only", needed)
        made.rename(kept)
    return kept


class Machine:
    """A copy of the base with processes, mounts and a network of its own, which end with it."""

    def __init__(self, base, root):
        self.root = root
        run("cp", "-a", "--reflink=auto", base, root)
        start = f"ip link set lo up && mount -t proc proc {root}/proc && echo up && exec sleep infinity"
        self.holder = subprocess.Popen(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child",
                                        "sh", "-c", start], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline() == "up\n"
        children = pathlib.Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def enter(self, *words):
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", *map(str, words)]

    def chroot(self, *words):
        return self.enter("chroot", self.root, *words)

    def run(self, *words):
        return run(*self.chroot(*words), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
                                              "DEBIAN_FRONTEND": "noninteractive"})

    def ctl(self, *words):
        return self.run("imapmuxctl", "-s", "/run/imapmux/admin.sock", *words)

    def install(self, package):
        shutil.copy(package, self.root / "tmp")
        self.run("apt-get", "install", "-y", "--no-install-recommends", f"/tmp/{package.name}")
        (self.root / "tmp" / package.name).unlink()

    def files(self):
        """All paths, but those of /proc."""
        found = run("find", self.root, "-xdev", "-path", f"{self.root}/proc", "-prune", "-o", "-printf", "/%P\n")
        return set(found.splitlines())

    def connect(self, **options):
        """A client on this machine: what a thread has entered, its sockets stay in."""
        made = []

        def inside():
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{self.pid}/ns/net") as network:
                assert libc.setns(network.fileno(), CLONE_NEWNET) == 0
            made.append(Wire(servers.HOST, 993, tls="implicit", **options))
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        return made[0]

    def end(self):
        self.holder.kill()
        self.holder.wait()


@pytest.fixture(scope="session")
def machine(base, tmp_path_factory):
    machine = Machine(base, tmp_path_factory.mktemp("machine") / "root")
    machine.empty = machine.files()
    yield machine
    machine.end()
    shutil.rmtree(machine.root)


@contextlib.contextmanager
def running(machine, *words):
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    process.stderr.close()


@pytest.fixture(scope="session")
def store(machine):
    with running(machine, *machine.enter(STORE, "143")) as process:
        yield process


@pytest.fixture(scope="session")
def daemon(machine, store):
    """imapmux, as the package has installed it, and as the unit starts it."""
    for folder in ("/run/imapmux", "/var/lib/imapmux"):
        machine.run("install", "-d", "-o", "imapmux", "-g", "imapmux", folder)
    command = machine.chroot(*AS_THE_UNIT, "/usr/sbin/imapmux", "-c", "/etc/imapmux/proxy.conf")
    with running(machine, *command) as process:
        for line in process.stderr:
            if "event=ready" in line:
                break
        else:
            pytest.fail("imapmux has not started")
        yield process


def refused(wire, user, password):
    return b" NO " in wire.command(b"LOGIN %s %s" % (user.encode(), password.encode()))


def test_it_is_installed(machine, package):
    machine.install(package)
    assert machine.run("imapmuxctl", "--version").split()[1] == field(package, "Version").partition("-")[0]
    assert machine.run("stat", "-c", "%A %U:%G", "/etc/imapmux/passwd").strip() == "-rw-r----- root:imapmux"
    assert "is good" in machine.run(*AS_THE_UNIT, "imapmux", "-t")


def test_nobody_gets_in_before_a_user_is_added(machine, daemon):
    with machine.connect() as wire:
        assert refused(wire, "ann", "secret")


def test_a_user_logs_in(machine, daemon):
    line = next(line for line in (machine.root / "etc/imapmux/passwd").read_text().splitlines() if "echo" in line)
    machine.run("sh", "-c", line.lstrip("# ").replace("passwd -6", "passwd -6 secret"))
    servers.wait_for(lambda: not refused(machine.connect(), "ann", "secret"), "the password file to be read again")


def pid(machine):
    return json.loads(machine.ctl("--json", "status"))["pid"]


def test_an_upgrade_keeps_sessions(machine, daemon, package, tmp_path):
    with machine.connect() as wire:
        wire.login("ann", "secret")
        old = pid(machine)
        machine.install(higher(package, tmp_path))
        assert pid(machine) != old
        assert b" OK " in wire.command(b"NOOP")
        with machine.connect() as other:
            other.login("ann", "secret")


def higher(package, folder):
    """The same package with a higher version."""
    run("dpkg-deb", "-R", package, folder / "unpacked")
    control = folder / "unpacked/DEBIAN/control"
    control.write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control.read_text(), flags=re.MULTILINE))
    run("dpkg-deb", "-b", "-Znone", folder / "unpacked", folder / "higher.deb")
    return folder / "higher.deb"


def test_it_is_removed_and_keeps_its_configuration(machine, daemon):
    machine.run("sh", "-c", f"kill {pid(machine)}")  # as systemd would
    daemon.wait(60)
    machine.run("apt-get", "remove", "-y", "imapmux")
    assert (machine.root / "etc/imapmux/proxy.conf").exists() and not (machine.root / "usr/sbin/imapmux").exists()


def test_it_is_purged_without_a_trace(machine):
    machine.run("apt-get", "purge", "-y", "imapmux")
    machine.run("apt-get", "autoremove", "--purge", "-y")
    left = {path for path in machine.files() - machine.empty if not OF_OTHERS.match(path)}
    assert left == set()
    for table in ("passwd", "group", "shadow", "gshadow"):
        assert "imapmux" not in (machine.root / "etc" / table).read_text()
    assert "imapmux" not in machine.run("dpkg", "--list")
