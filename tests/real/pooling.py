"""
What the tests of re-used connections share: imapmux with a password file before one store, and the logs of Dovecot and
imapmux counted by user as they grow, no line read twice.
"""
import re
import subprocess
import threading

import servers
from conftest import PASSWORD
from imapwire import Wire

CONF = """
process {{ workers = 2  stop_timeout = 10s }}
certificate main {{ chain = "{chain}" key = "{key}" }}
listener plain {{ address = {{"127.0.0.1:{plain}"}} tls = none plaintext_login = yes }}
listener imaps {{ address = {{"127.0.0.1:{tls}"}} tls = implicit }}
passwd {{ file = "passwd" }}
route {{ file = "routes" }}
pool {{ {pool} }}
shard store {{ address = {{"127.0.0.1:{store}"}} tls = none }}
"""


def password_lines(users):
    """Of a password file in which these users have PASSWORD."""
    digest = subprocess.run(["openssl", "passwd", "-5", "-salt", "rounds=1000$salt", "-stdin"],
                            input=PASSWORD.encode(), capture_output=True, check=True).stdout.decode().strip()
    return "".join(f"{user}:{digest}\n" for user in users)


class PooledProxy(servers.Imapmux):
    """imapmux with the listeners plain and tls before one store, and with these settings of the section `pool`."""

    def prepare(self, store, certificate, users, pool):
        self.port = {name: servers.free_port() for name in ("plain", "tls")}
        (self.folder / "passwd").write_text(password_lines(users))
        (self.folder / "passwd").chmod(0o600)
        (self.folder / "routes").write_text("* store\n")
        super().prepare(CONF.format(chain=certificate[0], key=certificate[1], store=store.port, pool=pool,
                                    **self.port), list(self.port.values()))

    def wire(self, listener="plain", **options):
        return Wire(servers.HOST, self.port[listener], tls="implicit" if listener == "tls" else None, **options)


def is_sanitized(server):
    """Whether it is a sanitizer's build, whose times tell little."""
    return b"__asan_init" in server.binary.read_bytes()


class StoreLog:
    """Counts in Dovecot's own log. What has happened may be logged a moment later: use servers.wait_for."""

    login = re.compile(rb"imap-login: Info: Login: user=<([^>]*)>")
    end = re.compile(rb"imap\(([^)]*)\)<\d+><[^>]*>: Info: .* in=\d+ out=\d+ ")

    def __init__(self, store):
        self.lock = threading.Lock()
        self.stream = open(store.folder / "dovecot.log", "rb")
        self.begun_line = b""
        self.begun, self.ended = {}, {}

    def _read(self):
        *lines, self.begun_line = (self.begun_line + self.stream.read()).split(b"\n")
        for line in lines:
            for pattern, counts in ((self.login, self.begun), (self.end, self.ended)):
                found = pattern.search(line)
                if found:
                    user = found.group(1).decode()
                    counts[user] = counts.get(user, 0) + 1

    def logins(self, *users):
        with self.lock:
            self._read()
            return sum(self.begun.get(user, 0) for user in users)

    def live(self, user):
        """Sessions of this user that have begun and not ended, parked ones among them."""
        with self.lock:
            self._read()
            return self.begun.get(user, 0) - self.ended.get(user, 0)

    def close(self):
        self.stream.close()


class ProxyLog:
    """What imapmux logs of each user: the `lease` of each login that succeeded, and how many sessions have ended."""

    def __init__(self, proxy):
        self.proxy = proxy
        self.lock = threading.Lock()
        self.next_line = 0
        self.leased, self.ended = {}, {}

    def _read(self):
        count = len(self.proxy.lines)
        for line in self.proxy.lines[self.next_line:count]:
            fields = {key: value.strip('"') for key, value in self.proxy.log_field.findall(line)}
            user = fields.get("user")
            if fields.get("event") == "login ok":
                self.leased.setdefault(user, []).append(fields.get("lease", "not told"))
            elif fields.get("event") == "session end":
                self.ended[user] = self.ended.get(user, 0) + 1
        self.next_line = count

    def leases(self, *users):
        """How each session of these users got its connection: new, warm, parked or reset."""
        with self.lock:
            self._read()
            return [lease for user in users for lease in self.leased.get(user, [])]

    def ends(self, user):
        with self.lock:
            self._read()
            return self.ended.get(user, 0)

    def wait_for_leases(self, user, count):
        servers.wait_for(lambda: len(self.leases(user)) >= count, f"login {count} of {user} in the log of imapmux")
        return self.leases(user)

    def wait_for_ends(self, user, count):
        servers.wait_for(lambda: self.ends(user) >= count, f"end {count} of {user} in the log of imapmux")


def log_out(wire):
    """LOGOUT, and all that the server says to it until it closes."""
    with wire:
        wire.send(b"out LOGOUT\r\n")
        return wire.read_to_end()
