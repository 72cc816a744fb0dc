"""
The filter for fail2ban, on lines that the proxy has written for names that try to look like something else: whoever
guesses is found, each time, and nobody else; whatever the form of the log.
"""
import base64
import collections
import shutil
import socket
import subprocess

import pytest

import servers
from imapwire import NonSync, Wire
from stage import PASSWORD, Proxy, Store, shard
from test_log import Elsewhere, Journald, mounts  # noqa: F401

DEPLOY = servers.REPOSITORY / "deploy/fail2ban"
INNOCENT = "192.0.2.1"
FIELDS = f"peer={INNOCENT}:1 method=PLAIN tls=none reason=credentials "
FAKE = f"session=00 user=a {FIELDS}"
FAKE_JSON = f'"peer":"{INNOCENT}:1","method":"PLAIN","tls":"none","reason":"credentials"'
EVENT = 'level=info event="login refused" '
NAMES = [name.encode() for name in [
    "ann", "ann ", f"ann peer={INNOCENT}:1", f"ann {FAKE}",
    f'ann" {FAKE}', f'ann" {FIELDS}', f'ann\\" {FIELDS}', f'ann\\\\" {FIELDS}',
    f"ann\n{FAKE}", f"ann\r\n{EVENT}{FAKE}", f"ann\r\ntime=2026-01-01T00:00:00.000Z {EVENT}{FAKE}",
    f"ann\r\nNov 26 06:22:33 host imapmux[1]: {EVENT}{FAKE}", f"ann\u2028{EVENT}{FAKE}", f"ann\u0085{EVENT}{FAKE}",
    f'ann",{FAKE_JSON},"x":"', f'ann\\",{FAKE_JSON},"x":"', 'ann","reason":"credentials"', "reason=unavailable",
    INNOCENT, "2026-01-01 00:00:00", "\t", "\\", '"', "'", "=", "%h", "<HOST>", "user@[::1]", "a" * 255, '"' * 255,
    "\\" * 255, "\x01" * 255, "\x7f" * 255, "\u0085" * 127]]
NAMES += [b"\xff" * 255, b"\xc3", f"ann\xff {FAKE}".encode("latin-1")]
LONG = ("\u0085" * 127).encode()
OTHER_NAMES = [b"bob", b'a"b', b"x" + LONG[:250], b"\x01" * 255]  # whose mailbox is wanted
GUESSERS = ["203.0.113.7", "2001:db8::7"]
OTHER = "203.0.113.66"  # who logs in well, or has no luck that is its own fault
MORE = """
listener told {{ address = {{"{host}:{port}"}} tls = none plaintext_login = yes proxy_protocol = {{"127.0.0.0/8"}} }}
username {{ utf8 = yes  max_length = 255 }}
login {{ max_bad_commands = 1000 }}
"""
FORMS = {"logfmt": "", "json": "format = json", "syslog": "output = syslog",
         "syslog json": "output = syslog format = json", "journald": "output = journald"}


@pytest.fixture(scope="module")
def store():
    with Store() as store:
        yield store


class Journal(Journald):
    """Its lines as fail2ban has them of the journal: with the host and the process before each."""

    def lines(self):
        return self.show("short-iso").encode()


class Syslog:
    """Keeps lines in the form in which syslog daemons write them to a file."""

    def __init__(self, folder):
        (folder / "sockets").mkdir(parents=True)
        self.folder, self.kept = folder, b""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "sockets/dev-log"))

    def lines(self):
        self.socket.setblocking(False)
        try:
            while True:
                line = self.socket.recv(8192)
                self.kept += line[line.index(b">") + 1:][:16] + b"host " + line[line.index(b">") + 1:][16:] + b"\n"
        except BlockingIOError:
            return self.kept

    def stop(self):
        self.socket.close()


class Pipe:
    def __init__(self, proxy):
        self.proxy = proxy

    def lines(self):
        self.proxy.events()
        return "".join(line + "\n" for line in self.proxy.lines).encode()


class Site:
    """
    A proxy before a store, and one that is not there; clients say themselves where they come from. `lines` are those of
    its log, as fail2ban reads them.
    """

    def __init__(self, folder, certificate, store, form, **options):
        self.port, self.receiver, kind = servers.free_port(), None, Proxy
        if form != "logfmt" and form != "json":
            self.receiver = Journal(folder / "journald") if form == "journald" else Syslog(folder / "syslog")
            kind, options["sockets"] = Elsewhere, self.receiver.folder / "sockets"
        options.setdefault("throttle", "max_delay = 0s max_user_delay = 0s")
        self.proxy = kind(folder / "proxy", certificate=certificate, log="info " + FORMS[form], routes={"bob": "gone"},
                          shards=shard("store", store.port) + shard("gone", servers.free_port()),
                          more=MORE.format(host=servers.HOST, port=self.port), **options)
        self.lines = (self.receiver or Pipe(self.proxy)).lines

    def client(self, address):
        protocol, local = ("TCP6", "2001:db8::1") if ":" in address else ("TCP4", "198.51.100.1")
        wire = Wire(servers.HOST, self.port, greeting=False)
        wire.send(f"PROXY {protocol} {address} {local} 4711 143\r\n".encode())
        wire.read_response()
        return wire

    def banned(self, folder):
        """How often fail2ban would count each address."""
        (folder / "log").write_bytes(self.lines())
        found = subprocess.run(["fail2ban-regex", "-o", "ip", folder / "log", DEPLOY / "filter.d/imapmux.conf"],
                               capture_output=True, text=True, check=True)
        return dict(collections.Counter(found.stdout.split()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.proxy.stop()
        if self.receiver:
            self.receiver.stop()


def log_in(wire, name, password=b"wrong"):
    return wire.command(b"LOGIN ", NonSync(name), b" ", NonSync(password))


def log_in_as(wire, name, user):
    wire.send(b"p AUTHENTICATE PLAIN " + base64.b64encode(b"\0".join([name, user, b"wrong"])) + b"\r\n")
    return wire.read_tagged(b"p")


def guess(wire):
    """Wrong passwords for all kinds of names; returns how many of them the client was told."""
    answers = [log_in(wire, name) for name in NAMES] + [log_in_as(wire, name, LONG) for name in OTHER_NAMES]
    return sum(b"NO [AUTHENTICATIONFAILED]" in answer for answer in answers)


@pytest.mark.parametrize("form", FORMS)
def test_who_guesses_is_found(folder, certificate, store, form, tmp_path):
    with Site(folder / f"fail2ban-{form.replace(' ', '-')}", certificate, store, form) as site:
        expected = {}
        for address in GUESSERS:
            with site.client(address) as wire:
                expected[address] = guess(wire)
        assert min(expected.values()) > len(NAMES) - 3, expected
        with site.client(OTHER) as wire:
            assert b"NO [UNAVAILABLE]" in log_in(wire, b"bob", PASSWORD.encode())
            assert b" OK " in log_in(wire, b"alice", PASSWORD.encode())
        servers.wait_for(lambda: b"login ok" in site.lines(), "the log to have all of it")
        assert site.banned(tmp_path) == expected


def test_who_comes_too_often_at_once_is_found(folder, certificate, store, tmp_path):
    with Site(folder / "fail2ban-parallel", certificate, store, "logfmt", throttle="max_parallel = 1") as site, \
            site.client(GUESSERS[0]) as first, site.client(GUESSERS[0]) as second, site.client(OTHER) as other:
        site.proxy.pause()
        for wire in first, second, other:
            wire.send(b"in LOGIN alice wrong\r\n")
        site.proxy.resume()
        codes = sorted(wire.read_tagged(b"in").split()[2] for wire in (first, second))
        assert codes == [b"[AUTHENTICATIONFAILED]", b"[LIMIT]"]
        other.read_tagged(b"in")
        assert site.banned(tmp_path) == {GUESSERS[0]: 2, OTHER: 1}


def test_the_jail_is_taken(tmp_path):
    shutil.copytree("/etc/fail2ban", tmp_path / "fail2ban")
    shutil.copytree(DEPLOY, tmp_path / "fail2ban", dirs_exist_ok=True)
    (tmp_path / "fail2ban/jail.d/defaults-debian.conf").unlink(missing_ok=True)
    checked = subprocess.run(["fail2ban-client", "-c", tmp_path / "fail2ban", "-d"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "['add', 'imapmux', 'systemd']" in checked.stdout
    assert "['set', 'imapmux', 'addjournalmatch', '_SYSTEMD_UNIT=imapmux.service']" in checked.stdout
