"""
Passwords do not stay: when a login is over, whatever came of it, its password is nowhere in the memory of the process,
in none of the forms in which it went over a wire, nor in the log at level debug. Nor can whoever is not root look
there, or at what a crash leaves. The release build is searched, for a sanitizer keeps what is freed.
"""
import base64
import contextlib
import itertools
import os
import pathlib
import re
import resource
import secrets
import shutil
import signal
import socket
import string

import pytest

import memory
import servers
from host import Host, over_tls
from imapwire import Wire, quoted, random_chunks, single_bytes, whole
from issuer import Issuer
from passage import Passage
from stage import CAPABILITIES, Proxy, Store, reset, shard

RELEASE = servers.REPOSITORY / "build/imapmux"
MARK_LENGTH = 9
STORES = {  # how to speak TLS with them, and what they can do
    "store": ("none", CAPABILITIES),
    "asks": ("none", b"IMAP4rev1 ID AUTH=PLAIN"),
    "old": ("none", b"IMAP4rev1"),
    "implicit": ("implicit", CAPABILITIES),
    "starttls": ("starttls", CAPABILITIES),
    "master": ("none", CAPABILITIES),
    "tokens": ("none", CAPABILITIES + b" AUTH=OAUTHBEARER"),
}


def refuses(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"L NO [CONTACTADMIN] Not you.\r\n")
    peer.wait_for_end()


def breaks_off(peer):
    peer.greet()
    peer.until_login()


def hangs(peer):
    peer.greet()
    peer.until_login()
    peer.wait_for_end()


BAD_STORES = {"refuses": refuses, "breaks": breaks_off, "hangs": hangs}
LISTENERS = "plain", "starttls", "tls"
MASTER = 'login = master_suffix master_user = "root" master_password = "master-secret"'
SOURCES = """
auth {{ sources = {{passwd, ldap}} }}
passwd {{ file = "passwd" }}
ldap {{ uri = {{"ldap://{host}:{port}"}} {ldap} }}
route {{ sources = {{file}} file = "routes" }}
oauth {{ keys = "{issuer.file}" issuer = "{issuer.name}" audience = imap }}
"""
COUNTED = "free_failures = 16 max_delay = 0s max_user_delay = 0s max_parallel = 100000"
PEOPLE = "ou=people,dc=example,dc=org"
SITES = {
    "template": {"ldap": f'dn_template = "uid=%{{user}},{PEOPLE}"'},
    "search": {"ldap": f'base = "{PEOPLE}" verify = no start_tls = yes', "throttle": COUNTED,
               "more": "auth_cache { ttl = 1h negative_ttl = 1h }\n", "pool": "warm = 1 park_time = 1m"},
}


class Passwords:
    """
    No two alike, and yet all have a mark of random letters in them, three times: so one search finds what is left of
    any of them.
    """

    def __init__(self):
        self.mark = "".join(secrets.choice(string.ascii_letters) for _ in range(MARK_LENGTH))
        self.given, self.tokens = {}, {}  # to what it was for

    def new(self, purpose, odd=""):
        password = odd + f"{len(self.given):05}{self.mark}" * 3
        self.given[password] = purpose
        return password

    def keep_token(self, token, purpose):
        """A token has its mark in its end, which is of its signature."""
        self.tokens[token[-3 * MARK_LENGTH:]] = purpose
        return token

    def found_in(self, octets):
        """Of all that is there: in which form, and the purpose."""
        for end, purpose in self.tokens.items():
            for form, pattern in forms(end).items():
                if pattern in octets:
                    yield form, purpose
        for form, pattern in forms(self.mark).items():
            for match in re.finditer(re.escape(pattern), octets):
                yield form, self._purpose(octets[max(0, match.start() - 60):match.end() + 60])

    def _purpose(self, octets):
        for password, purpose in self.given.items():
            if any(pattern in octets for pattern in forms(password[-MARK_LENGTH - 5:]).values()):
                return purpose
        return "a part of one"


def forms(text):
    """The text as it is, and as base64 in the three ways in which its octets may lie."""
    octets = text.encode()
    found = {"as it is": octets}
    for before in range(3):
        code = base64.b64encode(b"\0" * before + octets)
        found[f"base64 behind {before}"] = code[(before * 8 + 5) // 6:(before + len(octets)) * 8 // 6]
    return found


def encoded(*parts):
    return base64.b64encode(b"\0".join(part.encode() for part in parts))


# The ways to log in: what is said. Each line but the first waits for the proxy's "+".
WAYS = {
    "atom": lambda user, password: [f"a LOGIN {user} {password}\r\n".encode()],
    "quoted": lambda user, password: [f"a LOGIN {user} ".encode() + quoted(password) + b"\r\n"],
    "literals": lambda user, password: [f"a LOGIN {{{len(user)}}}\r\n".encode(),
                                        f"{user} {{{len(password.encode())}}}\r\n".encode(),
                                        password.encode() + b"\r\n"],
    "literals at once": lambda user, password: [
        f"a LOGIN {{{len(user)}+}}\r\n{user} {{{len(password.encode())}+}}\r\n{password}\r\n".encode()],
    "PLAIN": lambda user, password: [b"a AUTHENTICATE PLAIN\r\n", encoded("", user, password) + b"\r\n"],
    "PLAIN at once": lambda user, password: [b"a AUTHENTICATE PLAIN " + encoded(user, user, password) + b"\r\n"],
    "LOGIN": lambda user, password: [b"a AUTHENTICATE LOGIN\r\n", encoded(user) + b"\r\n", encoded(password) + b"\r\n"],
    "LOGIN at once": lambda user, password: [b"a AUTHENTICATE LOGIN " + encoded(user) + b"\r\n",
                                             encoded(password) + b"\r\n"],
}


def say(wire, lines):
    """All of them; the last one is not answered yet. What came in place of a "+", if anything did."""
    for number, line in enumerate(lines):
        answer = wire.read_response() if number else b"+"
        if not answer.startswith(b"+"):
            return answer
        wire.send(line)
    return None


def log_in(wire, way, user, password):
    return say(wire, WAYS[way](user, password)) or wire.read_tagged(b"a")


class Site:
    """A password file, a directory and stores of all kinds; users are named after their stores."""

    def __init__(self, stack, folder, certificate, start, ldap, **options):
        self.passwords = Passwords()
        self.in_file = {f"{store}-file": self.passwords.new("right", "ü\"\\ ") for store in STORES}
        self.in_directory = {f"{store}-ldap": self.passwords.new("right") for store in STORES}
        self.users = {**self.in_file, **self.in_directory}
        self.unlucky = {f"{store}-file": self.passwords.new("right") for store in BAD_STORES}
        self.slapd = stack.enter_context(servers.Slapd(
            folder, users=self.in_directory,
            settings="TLSCertificateFile {}\nTLSCertificateKeyFile {}".format(*certificate)))
        self.directory = stack.enter_context(Passage(self.slapd.port))
        self.issuer = Issuer(folder / "issuer")
        scripts = {name: Host(able, None if tls == "none" else over_tls(certificate, tls))
                   for name, (tls, able) in STORES.items()}
        self.stores = {name: stack.enter_context(Store(script)) for name, script in {**scripts, **BAD_STORES}.items()}
        shards = "".join(shard(name, store.port, tls=STORES.get(name, ["none"])[0], more=MASTER * (name == "master"))
                         for name, store in self.stores.items())
        self.proxy = start(shards, binary=RELEASE, users=(), passwords={**self.in_file, **self.unlucky}, log="debug",
                           routes={user: user.partition("-")[0] for user in {**self.users, **self.unlucky}},
                           sources=SOURCES.format(host=servers.HOST, port=self.directory.port, ldap=ldap,
                                                  issuer=self.issuer), workers=2,
                           **options)
        self.kept = []

    def search(self):
        """(what is mapped there, in which form, for what) of all remains."""
        return {(place, *remains) for place, octets in memory.writable(self.proxy.process.pid)
                for remains in self.passwords.found_in(octets)}

    def assert_clean(self):
        """Soon: a hash for a client that has left may still be computed."""
        with contextlib.suppress(servers.ServerError):
            servers.wait_for(lambda: not self.search(), "nothing to be left", 3)
        assert not self.search()

    def keep(self, wire):
        """Closed by end_all."""
        self.kept.append(wire)
        return wire

    def end_all(self):
        """All clients have been let go; connections to stores may be parked."""
        for wire in self.kept:
            wire.close()
        self.kept.clear()
        servers.wait_for(lambda: self.count("sessions_opened") == self.count("sessions_closed"), "the end of them all")

    def count(self, *names):
        metrics = self.proxy.metrics()
        return sum(metrics[f"imapmux_{name}_total"] for name in names)


@pytest.fixture(scope="module", params=SITES)
def site(request, folder, certificate, start):
    assert RELEASE.exists(), "run make first"
    with contextlib.ExitStack() as stack:
        yield Site(stack, folder / f"secrets-{request.param}", certificate, start, **SITES[request.param])


def test_the_search_finds_what_is_there(site):
    """What a client has not finished, the proxy has to keep."""
    for form in forms(""):
        purpose = f"half a login, {form}"
        site.keep(site.proxy.wire()).send(b"a LOGIN u " + forms(site.passwords.new(purpose))[form])
        servers.wait_for(lambda: (form, purpose) in {found[1:] for found in site.search()}, "it to be found")
    site.end_all()
    site.assert_clean()


def test_logins(site):
    cuts = itertools.cycle([whole, single_bytes, random_chunks(1)])
    for (user, right), way, listener in itertools.product(site.users.items(), WAYS, LISTENERS):
        if way == "atom" and not right.isalnum():
            continue
        wire = site.keep(site.proxy.wire(listener, cut=next(cuts)))
        assert log_in(wire, way, user, site.passwords.new(f"wrong, {way}")).startswith(b"a NO [AUTHENTICATIONFAILED]")
        assert b"a OK" in log_in(wire, way, user, right)
        wire.command(b"NOOP")
    site.assert_clean()
    for wire in site.kept:
        wire.command(b"LOGOUT")
    site.end_all()
    site.assert_clean()


# The ways to log in with a token.
BEARERS = {
    "OAUTHBEARER": lambda token: [b"a AUTHENTICATE OAUTHBEARER\r\n", encoded(f"n,,\1auth=Bearer {token}\1\1") + b"\r\n"],
    "OAUTHBEARER at once": lambda token: [
        b"a AUTHENTICATE OAUTHBEARER " + encoded(f"n,,\1auth=Bearer {token}\1\1") + b"\r\n"],
    "XOAUTH2 at once": lambda token: [b"a AUTHENTICATE XOAUTH2 " + encoded(f"user=\1auth=Bearer {token}\1\1") + b"\r\n"],
}


def test_tokens(site):
    """Passed on to the store, or not; good, late, and none at all."""
    for way, listener, user in itertools.product(BEARERS, LISTENERS, ("tokens-file", "master-ldap", "store-file")):
        wire = site.keep(site.proxy.wire(listener))
        bad = [site.passwords.keep_token(site.issuer.token(user, exp=1), f"late, {way}"),
               site.passwords.new(f"no token, {way}")]
        for token in bad:
            assert say(wire, [*BEARERS[way](token), b"AQ==\r\n"]) is None  # after it has heard why
            assert wire.read_tagged(b"a").startswith(b"a NO [AUTHENTICATIONFAILED]")
        good = site.passwords.keep_token(site.issuer.token(user), f"good, {way}")
        answer = say(wire, BEARERS[way](good)) or wire.read_tagged(b"a")
        assert answer.startswith(b"a NO [CONTACTADMIN]") if user == "store-file" else b"a OK" in answer
    site.assert_clean()
    for wire in site.kept:
        wire.command(b"LOGOUT")
    site.end_all()
    site.assert_clean()


def test_clients_that_vanish(site):
    """In the middle of what they say, or before they are answered."""
    for way, listener, part, end in itertools.product(WAYS, LISTENERS, (0.3, 0.7, 0.95, 1), ("closed", "reset")):
        for user in "store-file", "store-ldap":
            wire = site.proxy.wire(listener)
            *lines, last = WAYS[way](user, site.passwords.new(f"{end} after {part:.0%} of {way}"))
            say(wire, [*lines, last[:int(len(last) * part)]])
            if end == "reset":
                reset(wire.socket)
            wire.close()
    site.end_all()
    site.assert_clean()


REFUSED = {
    "an argument more": b"a LOGIN u %s x\r\n",
    "no command": b"a PASS %s\r\n",
    "no base64": b"a AUTHENTICATE PLAIN %s!\r\n",
    "no mechanism": b"a AUTHENTICATE OTHER %s\r\n",
    "a long line": b"a LOGIN u " + b"x" * 9000 + b"%s\r\n",
    "a long literal": b"a LOGIN u {9000+}\r\n" + b"x" * 8900 + b"%s\r\n" + b"x" * 100 + b"\r\n",
    "more behind it": b"a LOGIN u %s\r\nb NOO",
    "much before it": b"a NOOP\r\n" * 3000 + b"a LOGIN u %s\r\n",
}


def test_what_is_refused(site):
    """While the client is still there."""
    for (what, line), listener in itertools.product(REFUSED.items(), ("plain", "tls")):
        wire = site.keep(site.proxy.wire(listener))
        wire.send(line % site.passwords.new(what).encode())
        wire.read_until(lambda answer: not answer.startswith(b"a OK NOOP"))
    for way in WAYS:
        wire = site.keep(Wire(site.proxy.host, site.proxy.port["starttls"]))
        assert log_in(wire, way, "u", site.passwords.new(f"{way} without TLS")).startswith(b"a NO [PRIVACYREQUIRED]")
    site.assert_clean()
    site.end_all()


def test_in_clear_where_tls_is_wanted(site):
    for listener, before in ("tls", b""), ("starttls", b"a STARTTLS\r\n"):
        with socket.create_connection((site.proxy.host, site.proxy.port[listener]), timeout=30) as connection:
            connection.sendall(before + b"a LOGIN u %s\r\n" % site.passwords.new("in clear").encode())
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    site.end_all()
    site.assert_clean()


@pytest.mark.parametrize("end", ["answers late", "is cut off", "answers nobody"])
def test_a_directory_that(site, end):
    before = site.count("ldap_binds", "ldap_searches")
    site.slapd.pause()
    wires = [site.keep(site.proxy.wire()) for _ in range(8)]
    for wire in wires:
        say(wire, WAYS["atom"]("store-ldap", site.passwords.new(f"a directory that {end}")))
    servers.wait_for(lambda: site.count("ldap_binds", "ldap_searches") >= before + 4, "the directory to be asked")
    if end == "answers nobody":
        for wire in wires:
            reset(wire.socket)
        site.end_all()
    elif end == "is cut off":
        site.directory.cut_off()
    site.slapd.resume()
    for wire in site.kept:
        wire.read_tagged(b"a")
    site.end_all()
    site.assert_clean()


def logins_at(store):
    return sum(b"AUTHENTICATE" in line for peer in store.peers for line in peer.heard)


def test_stores_that_do_not_log_in(site):
    for store, way in itertools.product(BAD_STORES, WAYS):
        user, wire = f"{store}-file", site.keep(site.proxy.wire())
        logins = logins_at(site.stores[store])
        if store != "hangs":
            assert log_in(wire, way, user, site.unlucky[user]).startswith(b"a NO")
            continue
        say(wire, WAYS[way](user, site.unlucky[user]))
        servers.wait_for(lambda: logins_at(site.stores[store]) > logins, "the login at the store")
        reset(wire.socket)
    site.assert_clean()
    site.end_all()
    site.assert_clean()


def test_the_log(site):
    assert len(site.proxy.events("login refused")) > 100 and any("level=debug" in line for line in site.proxy.lines)
    assert not set(site.passwords.found_in(site.proxy.output().encode()))


# Whoever is not root

class Unprivileged(Proxy):
    """Runs as nobody."""

    def command(self):
        shutil.copy(self.binary, self.folder / "imapmux")  # wherever the build folder may be
        for path in (self.folder, *self.folder.iterdir()):
            shutil.chown(path, "nobody")
        return ["setpriv", "--reuid=nobody", "--clear-groups", str(self.folder / "imapmux"), *super().command()[1:]]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run it as another user")
@pytest.mark.parametrize("core_dumps,owner", [("yes", "nobody"), ("no", "root")])
def test_its_memory_belongs_to(folder, core_dumps, owner):
    own = folder / f"unprivileged-{core_dumps}"
    own.mkdir()
    with Unprivileged(own, shards=shard("store", 1), certificate=servers.make_certificate(own), binary=RELEASE,
                      core_dumps=core_dumps) as proxy:
        assert pathlib.Path(f"/proc/{proxy.process.pid}/mem").owner() == owner


def crash(proxy):
    """Whether that leaves a core dump."""
    proxy.process.send_signal(signal.SIGABRT)
    how = os.waitid(os.P_PID, proxy.process.pid, os.WEXITED | os.WNOWAIT).si_code
    with contextlib.suppress(servers.ServerError):
        proxy.stop()
    return how == os.CLD_DUMPED


def test_a_crash_leaves_nothing(start):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with Store() as store:
            proxies = [start(shard("store", store.port), binary=RELEASE, core_dumps=dumps) for dumps in ("yes", "no")]
            for proxy in proxies:
                proxy.logged_in().close()
            dumped, not_dumped = map(crash, proxies)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert not not_dumped and not list(proxies[1].folder.glob("*core*"))
    if not dumped:
        pytest.skip("no program leaves a core dump on this machine")
