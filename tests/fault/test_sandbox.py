"""
The sandbox of the release build (those of the sanitizers have none): all that imapmux does works within it, as a user
without privileges; what it has no reason to do is not to be had, from any thread.
"""
import base64
import contextlib
import functools
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest

import servers
from authority import Authority
from host import Host, over_tls
from intruder import Intruder, Killed, hanging, intruder_in, needs_root, threads
from issuer import Issuer
from stage import CAPABILITIES, PASSWORD, Proxy, Store, password_line, shard

RELEASE = servers.REPOSITORY / "build/imapmux"
USER = "daemon"
PEOPLE = {name: PASSWORD for name in ("ann", "ben", "cid", "dan", "eve")}
DOMAIN = "localhost"  # so that names are looked up, and verified
SOURCES = """
auth {{ sources = {{passwd, ldap}} }}
passwd {{ file = "passwd" }}
ldap {{
    uri = {{ {uris} }} base = "ou=people,dc=example,dc=org" start_tls = yes ca_file = "{ca}"
    connect_timeout = 1s timeout = 1s fail_back = 1h
}}
oauth {{ keys = "{keys}" keys_ca_file = "{ca}" issuer = "{issuer}" audience = imap refresh = 1s }}
route {{ sources = {{redis, default}} default_shard = store snapshot = "routes.snapshot" }}
redis {{ {redis} connect_timeout = 500ms timeout = 500ms retry_max = 200ms }}
"""
MORE = """
certificate other {{ chain = "{other[0]}" key = "{other[1]}" }}
admin {{ socket = "admin.sock" mode = "0600" }}
"""
PROCESS = f'user = "{USER}"' if os.getuid() == 0 else ""


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class KeyServer:
    """The issuer's keys by https."""

    def __init__(self, folder, certificate):
        handler = functools.partial(Files, directory=folder)
        self.server = http.server.ThreadingHTTPServer((servers.HOST, 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://{DOMAIN}:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Boxed(Proxy):
    """The release build; its folder belongs to USER if it becomes that."""

    def prepare(self, process="", **options):
        super().prepare(process=process, binary=RELEASE, **options)
        if USER in process:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, USER)

    def ctl(self, *words):
        return subprocess.run([RELEASE.with_name("imapmuxctl"), "-s", self.folder / "admin.sock", *words],
                              capture_output=True, text=True, check=True, timeout=60).stdout


class Site:
    """All that a proxy has to do with, and the proxy; each in a folder of its own."""

    def __init__(self, stack, folder, process):
        keep = stack.enter_context
        folder.mkdir()
        folder.chmod(0o755)
        authority = Authority(folder / "authority", "Our authority")
        self.server = server = authority.issue("server", "/CN=localhost", ["subjectAltName=DNS:localhost,IP:127.0.0.1"])
        self.other = servers.make_certificate(folder / "authority", name="other", hosts=("other.example.org",))
        tls = f"TLSCertificateFile {server}\nTLSCertificateKeyFile {server}"
        self.directories = [keep(servers.Slapd(folder / f"slapd-{number}", users=PEOPLE, settings=tls))
                            for number in "12"]
        self.redis = keep(servers.WatchedRedis(folder / "redis"))
        self.issuer = Issuer(folder / "issuer")
        keys = KeyServer(folder / "issuer", server)
        stack.callback(keys.close)
        self.store = keep(Store(Host(CAPABILITIES + b" AUTH=OAUTHBEARER", over_tls([server], "implicit"))))
        uris = ", ".join(f'"{directory.uri}"' for directory in self.directories)
        sources = SOURCES.format(uris=uris, ca=authority.file, keys=keys.url, issuer=self.issuer.name,
                                 redis=self.redis.settings)
        stores = shard("store", self.store.port, tls="implicit", host=DOMAIN).replace(
            "tls_verify = no", f'tls_ca_file = "{authority.file}"')
        self.proxy = keep(Boxed(folder / "proxy", process=process, shards=stores, certificate=(server, server),
                                workers=2, sources=sources, more=MORE.format(other=self.other),
                                health="interval = 200ms", pool="warm = 1"))

    def logs_in(self, user, command=None):
        """At last: that a server has gone may have to be found out first."""
        def tried():
            with self.proxy.wire("tls") as wire:
                return b"in OK " in wire.command(command or f"LOGIN {user} {PASSWORD}".encode(), tag=b"in")
        servers.wait_for(tried, f"{user} to log in")


@pytest.fixture(scope="module")
def site(folder):
    with contextlib.ExitStack() as stack:
        yield Site(stack, folder / "sandbox", PROCESS)


def test_every_thread_is_within(site):
    assert site.proxy.events("sandbox")[0]["detail"] == "system calls and files are limited"
    for thread in threads(site.proxy.process):
        with open(f"/proc/{thread}/status") as status:
            assert {"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} <= set(status)


def test_certificates_and_starttls(site):
    with site.proxy.wire("starttls") as wire:
        assert b"in OK " in wire.command(f"LOGIN ann {PASSWORD}".encode(), tag=b"in")
    context = ssl.create_default_context(cafile=site.other[0])
    with socket.create_connection((servers.HOST, site.proxy.port["tls"])) as plain, \
            context.wrap_socket(plain, server_hostname="other.example.org") as tls:
        assert tls.recv(10).startswith(b"* OK")


def test_password_file_that_changes(site):
    site.logs_in("alice")
    new = site.proxy.folder / "passwd.new"
    new.write_text(password_line("zoe"))
    new.chmod(0o644)
    new.rename(site.proxy.folder / "passwd")
    site.logs_in("zoe")


def test_directories_with_tls_that_fail(site):
    site.logs_in("ann")
    first, second = site.directories
    first.stop()
    site.logs_in("ben")
    second.stop()
    first.start()
    site.logs_in("cid")
    second.start()


def test_keys_from_the_net(site):
    for kid in ("first", "second"):  # the second one is fetched anew
        if kid != "first":
            site.issuer.add_key(kid)
        message = base64.b64encode(f"n,,\1auth=Bearer {site.issuer.token('dan')}\1\1".encode())
        site.logs_in("dan", b"AUTHENTICATE OAUTHBEARER " + message)


def test_redis_whose_master_fails(site):
    site.redis.master().route({"eve": "store"})
    site.logs_in("eve")
    assert "redis" in site.proxy.ctl("route", "eve")
    first = site.redis.master()
    first.kill()
    site.redis.master_after(first)
    site.proxy.wait_for_event("redis master changed")
    site.logs_in("ben")  # whom it has not known


def test_files_and_administration(site):
    proxy = site.proxy
    assert proxy.metrics()
    proxy.ctl("log", "level", "debug")
    assert "debug" in proxy.ctl("log", "level")
    proxy.ctl("log", "level", "info")
    assert f"{proxy.process.pid}" in proxy.ctl("status")
    owner = proxy.folder.owner()
    for name in ("metrics.prom", "routes.snapshot.lock", "admin.sock"):
        assert (proxy.folder / name).owner() == owner
    proxy.stop()
    assert (proxy.folder / "routes.snapshot").owner() == owner and not (proxy.folder / "admin.sock").exists()
    proxy.start()
    site.logs_in("ann")
    assert not any(proxy.events(f"snapshot {word}") for word in ("unusable", "not kept"))


@pytest.fixture
def refused_reload(site):
    """Whether a reload of this text is refused, and why; the old one comes back."""
    conf = site.proxy.folder / "proxy.conf"
    before = conf.read_text()

    def refused_reload(old="", new=""):
        assert old in before
        conf.write_text(before.replace(old, new, 1))
        result = subprocess.run([RELEASE.with_name("imapmuxctl"), "-s", site.proxy.folder / "admin.sock", "reload"],
                                capture_output=True, text=True, timeout=60)
        return result.stderr if result.returncode == 1 else None
    yield refused_reload
    conf.write_text(before)


@pytest.mark.skipif(os.getuid() != 0, reason="there is no file that only root can read")
def test_a_reload_with_keys_of_root(site, refused_reload):
    why = refused_reload()
    assert 'setting "chain" of certificate' in why and "if root may read it, an upgrade or a restart" in why
    for file in (site.server, site.other[1]):
        file.chmod(0o644)
    assert not refused_reload()
    site.logs_in("ann")


def test_a_reload_of_files_outside(site, refused_reload, folder, certificate):
    secret, told = folder / "outside-secret", "outside of what this process may touch (process.sandbox)"
    secret.write_text("secret")
    secret.chmod(0o644)
    new_shard = f'shard new {{ address = "127.0.0.1:1" tls_ca_file = "{certificate[0]}" }}'
    for why in (refused_reload("shard store {", f"{new_shard} shard store {{"),
                refused_reload('"metrics.prom"', f'"{folder}/metrics.prom"'),
                refused_reload("ldap {", f'ldap {{ bind_dn = "cn=x" bind_password_file = "{secret}"'),
                refused_reload("log {", f'include("{secret}") log {{')):
        assert told in why and "proxy.conf:" in why


@needs_root
def test_what_is_not_to_be_had(site):
    folder = site.proxy.folder
    with intruder_in(site.proxy.process) as intruder:
        call, page, anonymous = intruder.call, intruder.before.rip & ~0xfff, 0x22
        assert call("getpid") == site.proxy.process.pid
        assert call("open", "/etc/services", os.O_RDONLY) > 0
        assert call("open", str(folder / "passwd"), os.O_RDONLY) > 0
        for path in ("/root/.bashrc", "/boot", "/var/log", "/", "/home", str(folder.parent / "slapd-1/slapd.conf")):
            assert call("open", path, os.O_RDONLY) == "EACCES", path
        for path in ("/etc/passwd", "/tmp/new", "/proc/self/mem", str(folder.parent / "new")):
            assert call("open", path, os.O_WRONLY | os.O_CREAT, 0o600) == "EACCES", path
        assert call("open", str(folder / "new"), os.O_WRONLY | os.O_CREAT, 0o600) > 0
        assert call("unlink", str(folder / "new")) == 0
        assert call("unlink", str(site.other[0])) == "EACCES"
        assert call("socket", 17, 3, 0) == "ENOSYS"  # packets
        assert call("socket", 2, 1, 0) > 0
        assert call("fork") == "EPERM" and call("clone", signal.SIGCHLD) == "EPERM"
        assert call("kill", os.getpid(), 0) == "ENOSYS" and call("kill", site.proxy.process.pid, 0) == 0
        assert call("mprotect", page, 4096, 7) == "EPERM" and call("mmap", 0, 4096, 7, anonymous, -1, 0) == "EPERM"
        for name in ("clone3", "io_uring_setup", "keyctl", "setuid", "capset", "vmsplice", "mkdir"):
            assert call(name) == "ENOSYS", name
    site.logs_in("ann")


@needs_root
def test_no_thread_is_without(site):
    for thread in threads(site.proxy.process):
        with hanging(thread):
            assert Intruder(thread).call("open", "/boot", os.O_RDONLY) == "EACCES"


@needs_root
@pytest.mark.parametrize("name", ["execve", "ptrace", "mount", "unshare", "bpf", "process_vm_readv", "init_module"])
def test_what_ends_the_process(folder, certificate, name):
    with Store() as store, pytest.raises(servers.ServerError, match=f"ended with -{int(signal.SIGSYS)}"), \
            Boxed(folder / f"ends-{name}", shards=shard("store", store.port), certificate=certificate) as proxy:
        with pytest.raises(Killed), intruder_in(proxy.process) as intruder:
            intruder.call(name)


def test_it_can_be_switched_off(folder, certificate):
    with Store() as store, Boxed(folder / "switched-off", shards=shard("store", store.port), certificate=certificate,
                                 process="sandbox = no") as proxy:
        assert proxy.events("sandbox")[0]["level"] == "warning"
        with open(f"/proc/{proxy.process.pid}/status") as status:
            assert "Seccomp:\t0\n" in status
