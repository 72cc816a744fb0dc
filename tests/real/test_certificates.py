"""Certificates in a running proxy: when they expire, how new ones come into force, and what is stapled to them."""
import datetime
import os
import pathlib
import socket
import ssl
import subprocess

import pytest

import authority
import servers

CONF = """
process {{ workers = 2 }}
metrics {{ file = "metrics.prom" interval = 100ms }}
certificate first {{ chain = "first.pem" {first} }}
certificate second {{ chain = "second.pem" }}
listener imaps {{ address = {{"127.0.0.1:{port}"}} tls = implicit }}
passwd {{ file = "passwd" }}
route {{ file = "routes" }}
shard only {{ address = {{"127.0.0.1:1"}} tls = none }}
"""
HOSTS = {"first": "mail.example.org", "second": "imap.example.net"}


class Site:
    """A proxy with two certificates of one authority, in its own folder."""

    def __init__(self, folder, first="", more="", ends=30):
        self.folder = folder / "imapmux"
        self.folder.mkdir()
        self.authority = authority.Authority(folder / "ca", "Example CA")
        for name in HOSTS:
            self.write(name, self.issue(name, ends))
        (self.folder / "passwd").write_text("")
        (self.folder / "routes").write_text("* only\n")
        self.port = servers.free_port()
        self.configuration = CONF.format(first=first, port=self.port) + more

    def issue(self, name, ends=30):
        return self.authority.issue(name, f"/CN={HOSTS[name]}", [f"subjectAltName=DNS:{HOSTS[name]}"], ends=ends)

    def write(self, name, file):
        """Puts a file in the place of the one that is served."""
        new = self.folder / f"{name}.new"
        new.write_bytes(file.read_bytes())
        new.rename(self.folder / f"{name}.pem")

    def run(self):
        return servers.Imapmux(self.folder, configuration=self.configuration, ports=[self.port])


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def context():
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    return trusting


def served(port, name="first"):
    """The serial number of the certificate for this name."""
    with context().wrap_socket(socket.create_connection((servers.HOST, port), timeout=10),
                               server_hostname=HOSTS[name]) as tls:
        return serial(ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)).encode())


def serial(pem):
    return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True, check=True).stdout


def wait_for_count(proxy, event, count):
    servers.wait_for(lambda: len(proxy.events(event)) >= count, f"{count} times {event!r}")
    assert len(proxy.events(event)) == count


def x509(file, *words):
    return subprocess.run(["openssl", "x509", "-noout", "-in", file, *words], capture_output=True, check=True,
                          text=True).stdout


def not_after(file):
    text = x509(file, "-enddate").strip().partition("=")[2]
    return datetime.datetime.strptime(text, "%b %d %H:%M:%S %Y %Z").replace(tzinfo=datetime.timezone.utc).timestamp()


def test_what_expires_soon_is_told(tmp_path):
    site = Site(tmp_path)
    site.write("second", site.authority.issue("short", f"/CN={HOSTS['second']}", starts=-40, ends=9))
    site.write("first", site.authority.issue("over", f"/CN={HOSTS['first']}", starts=-40, ends=-1))
    with site.run() as proxy:
        assert HOSTS["second"] in proxy.wait_for_event("certificate expires")["detail"]
        assert HOSTS["first"] in proxy.wait_for_event("certificate has expired")["detail"]


def test_the_first_to_expire_is_told(site):
    """That of the chain counts, too: clients refuse it when any of its certificates has expired."""
    site.write("second", site.issue("second", ends=20))
    with site.run() as proxy:
        assert proxy.metrics()["imapmux_certificate_not_after_seconds"] == not_after(site.folder / "second.pem")
    soon = site.authority.issue("soon", "/CN=Intermediate", ends=10)
    with open(site.folder / "first.pem", "a") as chain:
        chain.write(soon.read_text().partition("-----END PRIVATE KEY-----\n")[2])
    with site.run() as proxy:
        assert proxy.metrics()["imapmux_certificate_not_after_seconds"] == not_after(soon)


WATCH = 'tls { watch = 100ms }\n'


def test_a_new_file_is_read(tmp_path):
    site = Site(tmp_path, more=WATCH)
    with site.run() as proxy:
        before = served(site.port)
        assert before == serial((site.folder / "first.pem").read_bytes())
        site.write("first", site.issue("first", ends=5))
        wait_for_count(proxy, "certificates read", 1)
        assert served(site.port) == serial((site.folder / "first.pem").read_bytes()) != before
        assert served(site.port, "second") == serial((site.folder / "second.pem").read_bytes())
        assert proxy.metrics()["imapmux_certificate_not_after_seconds"] == not_after(site.folder / "first.pem")


def test_without_a_watch_nothing_is_read(site):
    """Another proxy, which has one, tells when the file has rested for long enough."""
    with site.run() as proxy:
        before, watching = served(site.port), servers.free_port()
        other = site.configuration.replace(str(site.port), str(watching)) + WATCH
        with servers.Imapmux(site.folder, configuration=other, ports=[watching]) as observer:
            site.write("first", site.issue("first"))
            observer.wait_for_event("certificates read")
        assert served(site.port) == before
        assert not proxy.events("certificates read")


def test_a_bad_set_changes_nothing(tmp_path):
    """A certificate whose key has not come yet; a half-written file; none at all: told once each, then forgotten."""
    site = Site(tmp_path, first='key = "first.key"', more=WATCH)
    (site.folder / "first.key").write_bytes((site.folder / "first.pem").read_bytes())
    with site.run() as proxy:
        before = served(site.port)
        new = site.issue("first")
        site.write("first", new)
        wait_for_count(proxy, "certificates not read", 1)
        assert "key" in proxy.events("certificates not read")[0]["detail"]
        assert served(site.port) == before
        (site.folder / "first.key").write_bytes(new.read_bytes())
        wait_for_count(proxy, "certificates read", 1)
        assert served(site.port) == serial(new.read_bytes()) != before

        (site.folder / "second.pem").write_bytes((site.folder / "second.pem").read_bytes()[:600])
        wait_for_count(proxy, "certificates not read", 2)
        (site.folder / "second.pem").unlink()
        wait_for_count(proxy, "certificates not read", 3)
        site.write("second", site.issue("second"))
        wait_for_count(proxy, "certificates read", 2)
        assert len(proxy.events("certificates not read")) == 3
        assert served(site.port, "second") == serial((site.folder / "second.pem").read_bytes())


def test_a_handshake_goes_on_with_what_it_began_with(tmp_path):
    """Its certificates stay, also the one that it has not chosen yet, and a session notices nothing."""
    site = Site(tmp_path, more=WATCH)
    with site.run() as proxy:
        old = serial((site.folder / "second.pem").read_bytes())
        begun = socket.create_connection((servers.HOST, site.port), timeout=10)
        with context().wrap_socket(socket.create_connection((servers.HOST, site.port), timeout=10)) as session:
            assert session.recv(4096).startswith(b"* OK ")
            servers.wait_for(lambda: proxy.metrics()["imapmux_sessions_opened_total"] >= 2, "both to be accepted")
            for number in (1, 2):
                site.write("second", site.issue("second"))
                wait_for_count(proxy, "certificates read", number)
            with context().wrap_socket(begun, server_hostname=HOSTS["second"]) as tls:
                assert serial(ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)).encode()) == old
                assert tls.recv(4096).startswith(b"* OK ")
            session.sendall(b"a NOOP\r\n")
            assert session.recv(4096).startswith(b"a OK")


MOVED_CLOCK = pathlib.Path(servers.__file__).parent / "fault/moved_clock.c"


def moved_clock(folder, seconds):
    """The environment of a program whose clock is moved; moving it once more counts for those that run."""
    library, offset = folder / "moved_clock.so", folder / "clock"
    if not library.exists():
        subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-fPIC", "-shared", "-o", library, MOVED_CLOCK], check=True)
    with open(offset, "r+b" if offset.exists() else "wb") as file:
        file.write(seconds.to_bytes(8, "little", signed=True))
    return {**os.environ, "LD_PRELOAD": str(library), "MOVED_CLOCK": str(offset)}


class LaterProxy(servers.Imapmux):
    """Its clock can be moved."""

    def environment(self):
        return {**super().environment(), **moved_clock(self.folder, 0)}

    def move_clock(self, seconds):
        moved_clock(self.folder, seconds)


class Stapling(Site):
    """The first certificate has a file with an OCSP response, which `respond` writes, and the second one has none."""

    def __init__(self, folder, more=""):
        super().__init__(folder, first='ocsp_file = "first.ocsp"', more=more)

    def respond(self, file, *validity, past=0):
        """The authority's word about the certificate in this file, said so many seconds ago."""
        folder = self.authority.folder
        environment = moved_clock(folder, -past) if past else None
        subprocess.run(["openssl", "ocsp", "-issuer", self.authority.file, "-cert", file, "-index", folder / "index",
                        "-CA", self.authority.file, "-rsigner", self.authority.file, "-rkey", folder / "ca.key",
                        "-noverify", "-respout", self.folder / "new.ocsp", *validity],
                       check=True, capture_output=True, env=environment)
        (self.folder / "new.ocsp").rename(self.folder / "first.ocsp")

    def status(self, name="first"):
        """What openssl makes of what is stapled; "none" if nothing is."""
        said = subprocess.run(["openssl", "s_client", "-status", "-connect", f"{servers.HOST}:{self.port}",
                               "-servername", HOSTS[name], "-CAfile", self.authority.file],
                              input=b"", capture_output=True, check=True, timeout=20).stdout.decode()
        if "OCSP response: no response sent" in said:
            return "none"
        assert "OCSP Response Status: successful" in said
        return said.partition("Cert Status: ")[2].split()[0]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_response_is_stapled(tmp_path, version):
    site = Stapling(tmp_path)
    site.respond(site.folder / "first.pem", "-ndays", "7")
    with site.run() as proxy:
        said = subprocess.run(["openssl", "s_client", "-status", version, "-connect", f"{servers.HOST}:{site.port}"],
                              input=b"", capture_output=True, check=True).stdout.decode()
        assert "Cert Status: good" in said
        assert site.status("second") == "none"
        assert not proxy.events("OCSP response not served") and not proxy.events("OCSP response expires")


def test_a_response_of_no_use_is_not_stapled(tmp_path):
    """Not there, no response, of another certificate, expired, of a revoked one: it is told, and clients are served."""
    site = Stapling(tmp_path)
    (site.folder / "junk.ocsp").write_bytes(b"\x30\x03\x0a\x01")

    def refused(reason):
        with site.run() as proxy:
            assert reason in proxy.wait_for_event("OCSP response not served")["detail"]
            assert site.status() == "none"
    refused("No such file")
    (site.folder / "junk.ocsp").rename(site.folder / "first.ocsp")
    refused("no OCSP response")
    site.respond(site.folder / "second.pem", "-ndays", "7")
    refused("another certificate")
    site.respond(site.folder / "first.pem", "-nmin", "1", past=120)
    refused("expired")
    site.authority.revoke(site.folder / "first.pem")
    site.respond(site.folder / "first.pem", "-ndays", "7")
    refused("revoked")


def test_a_response_that_expires_is_not_served_any_more_until_a_new_one_comes(tmp_path):
    site = Stapling(tmp_path, more=WATCH)
    site.respond(site.folder / "first.pem", "-nmin", "60", past=50 * 60)
    with LaterProxy(site.folder, configuration=site.configuration, ports=[site.port]) as proxy:
        proxy.wait_for_event("OCSP response expires")
        assert site.status() == "good"
        proxy.move_clock(11 * 60)
        assert site.status() == "none"
        site.respond(site.folder / "first.pem", "-ndays", "7")
        wait_for_count(proxy, "certificates read", 1)
        assert site.status() == "good"
        new = site.issue("first")
        site.write("first", new)
        wait_for_count(proxy, "certificates read", 2)
        assert site.status() == "none" and "another" in proxy.events("OCSP response not served")[0]["detail"]
