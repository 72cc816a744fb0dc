"""
Started as root, imapmux becomes the user who is set, for good, and has no privilege left, in no thread. What that user
needs while the process runs is looked at before anybody is served.
"""
import grp
import os
import pathlib
import pwd
import re
import resource
import shutil
import socket
import subprocess

import pytest

import servers
from intruder import intruder_in, needs_root, threads
from stage import Proxy, Store, shard

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
USER = "daemon"  # a user that each Debian has, as are the groups
FOLDERS = 'admin {{ socket = "{at}/admin.sock" {admin} }}\n'


class Changing(Proxy):
    """A proxy that becomes USER, started by `run_by`. Its folder and files are USER's, but for those to be `kept`."""

    def prepare(self, process=f'user = "{USER}"', admin="", kept=(), run_by=(), **options):
        self.run_by = run_by
        certificate = servers.make_certificate(self.folder)
        super().prepare(process=process, more=FOLDERS.format(at=self.folder, admin=admin), certificate=certificate,
                        **options)
        for path in (self.folder, *self.folder.iterdir()):
            if path.name not in kept:
                shutil.chown(path, USER, USER)

    def command(self):
        return [*self.run_by, *super().command()]


@pytest.fixture
def begin(folder, request):
    """Starts a proxy of the release build or whichever is tested, which is stopped at the end."""
    running = []
    store = Store()

    def begin(**options):
        own = folder / f"privileges-{request.node.name}"
        running.append(Changing(own, shards=shard("store", store.port), **options))
        return running[-1]
    yield begin
    for proxy in running:
        proxy.stop()
    store.close()


def copy_for_all(folder):
    """The program where everybody can read it, wherever the build folder may be."""
    path = folder / "imapmux-for-all"
    return path if path.exists() else shutil.copy(os.environ.get("IMAPMUX", servers.REPOSITORY / "build/imapmux"), path)


def status(thread):
    lines = pathlib.Path(f"/proc/{thread}/status").read_text().splitlines()
    return {name: value.split() for name, value in (line.split(":", 1) for line in lines)}


def assert_unprivileged(process, uid, gid, groups):
    found = threads(process)
    assert len(found) > 2
    for thread in found:
        seen = status(thread)
        assert seen["Uid"] == [str(uid)] * 4 and seen["Gid"] == [str(gid)] * 4
        assert sorted(map(int, seen["Groups"])) == sorted(groups)
        assert all(int(seen[name][0], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
        assert seen["NoNewPrivs"] == ["1"] and seen["CapBnd"] == status(process.pid)["CapBnd"]
    return status(process.pid)


def test_root_becomes_the_user(begin):
    proxy, user = begin(workers=2), pwd.getpwnam(USER)
    seen = assert_unprivileged(proxy.process, user.pw_uid, user.pw_gid, os.getgrouplist(USER, user.pw_gid))
    assert int(seen["CapBnd"][0], 16) == 0
    assert pathlib.Path(f"/proc/{proxy.process.pid}/mem").owner() == "root"  # still not dumpable
    proxy.logged_in().close()
    assert proxy.metrics() and (proxy.folder / "metrics.prom").owner() == USER
    assert (proxy.folder / "admin.sock").owner() == USER
    assert not proxy.events("privileges")
    proxy.stop()
    assert not (proxy.folder / "admin.sock").exists()


@needs_root
def test_there_is_no_way_back(begin):
    proxy = begin()
    with intruder_in(proxy.process) as intruder:
        assert intruder.call("getpid") == proxy.process.pid
        assert intruder.call("setuid", 0) in ("EPERM", "ENOSYS")
        assert intruder.call("setresuid", -1, 0, -1) in ("EPERM", "ENOSYS")
        assert intruder.call("open", "/etc/shadow", os.O_RDONLY) == "EACCES"
    proxy.logged_in().close()


def test_another_group(begin):
    proxy = begin(process=f'user = "{USER}" group = "mail"', admin='group = "mail"')
    assert status(proxy.process.pid)["Gid"] == [str(grp.getgrnam("mail").gr_gid)] * 4
    assert (proxy.folder / "admin.sock").group() == "mail"


def low_port():
    """A free port below 1024."""
    for port in range(1023, 512, -1):
        with socket.socket() as probe:
            try:
                probe.bind((servers.HOST, port))
                return port
            except OSError:
                continue
    raise servers.ServerError("no free port below 1024")


def test_a_capability_to_bind_is_given_up(begin, folder):
    """As a service manager gives it to a user."""
    capability = "+net_bind_service"
    port = low_port()
    proxy = begin(process="", run_by=["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups",
                                      f"--inh-caps={capability}", f"--ambient-caps={capability}"],
                  binary=copy_for_all(folder),
                  ports={"tls": port})
    user = pwd.getpwnam(USER)
    assert servers.accepts(port)
    assert_unprivileged(proxy.process, user.pw_uid, user.pw_gid, os.getgrouplist(USER, user.pw_gid))


# What is told

def refusal(begin, **options):
    with pytest.raises(servers.ServerError) as failure:
        begin(**options)
    return re.search(r"^imapmux: (.*)$", str(failure.value), re.MULTILINE).group(1)


def test_a_folder_that_is_not_the_users(begin):
    said = refusal(begin, kept=[f"privileges-{test_a_folder_that_is_not_the_users.__name__}"])
    assert said.startswith(f'metrics.file: user "{USER}" cannot write to the folder /') and "Permission denied" in said


def test_a_file_that_the_user_cannot_read(begin):
    said = refusal(begin, kept=["passwd"])
    assert said.startswith(f'passwd.file: user "{USER}" cannot read /') and "Permission denied" in said


def test_a_group_that_is_not_the_users(begin):
    assert refusal(begin, admin='group = "mail"').startswith(f'admin.group: user "{USER}" cannot give the socket to')


@pytest.mark.parametrize("process,said", [
    ('user = "nobody-at-all"', 'there is no user "nobody-at-all"'),
    ('user = "root"', '"root" is root itself'),
    (f'user = "{USER}" group = "no-such-group"', 'there is no group "no-such-group"'),
    ('group = "mail"', '"group" of process is set, but not "user"'),
])
def test_users_that_cannot_be(begin, process, said):
    assert said in refusal(begin, process=process)


def test_only_root_changes(begin, folder):
    said = refusal(begin, process='user = "nobody"', binary=copy_for_all(folder),
                   run_by=["setpriv", f"--reuid={USER}", "--clear-groups"])
    assert 'only root can become "nobody"' in said


def test_root_that_stays(begin):
    proxy = begin(process="")
    assert "set process.user" in proxy.wait_for_event("privileges")["detail"]
    assert status(proxy.process.pid)["Uid"][0] == "0" and status(proxy.process.pid)["NoNewPrivs"] == ["1"]


# Descriptors

def limit(process):
    return next(line for line in pathlib.Path(f"/proc/{process.pid}/limits").read_text().splitlines()
                if line.startswith("Max open files")).split()[3:5]


def test_root_raises_the_limit(begin):
    low, high = ["prlimit", "--nofile=500:1000"], ["prlimit", "--nofile=8000:8000", "true"]
    if subprocess.run([*low, *high], capture_output=True).returncode:
        pytest.skip("this root may not raise limits")
    proxy = begin(max_sessions=3000, run_by=low)
    soft, hard = map(int, limit(proxy.process))
    assert soft == hard > 2 * 3000 and not proxy.events("descriptors")


def test_a_limit_that_is_too_low_is_told(begin, folder):
    proxy = begin(max_sessions=3000, process="", binary=copy_for_all(folder),
                  run_by=["prlimit", "--nofile=500:1000", "setpriv", f"--reuid={USER}", "--clear-groups"])
    said = proxy.wait_for_event("descriptors")["detail"]
    needed = int(re.search(r"LimitNOFILE=(\d+)", said).group(1))
    assert said.startswith("1000 are allowed") and 2 * 3000 < needed < resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert limit(proxy.process) == ["1000", "1000"]
