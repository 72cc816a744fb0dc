"""Certificates in a running proxy: when they expire, and how new ones come into force."""
import datetime
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


def x509(file, *words):
    return subprocess.run(["openssl", "x509", "-noout", "-in", file, *words], capture_output=True, check=True,
                          text=True).stdout


def not_after(file):
    text = x509(file, "-enddate").strip().partition("=")[2]
    return datetime.datetime.strptime(text, "%b %d %H:%M:%S %Y %Z").replace(tzinfo=datetime.timezone.utc).timestamp()


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
