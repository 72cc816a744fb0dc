"""
Session tickets: who resumes where, by keys of the process, of a file, and of Redis; as `openssl s_client` sees it, with
both versions of TLS.
"""
import base64
import os
import re
import subprocess

import pytest

import authority
import servers

CONF = """
process {{ workers = 2 }}
tls {{ watch = 100ms {tls} }}
redis {{ address = "{redis}" }}
certificate only {{ chain = "{folder}/cert.pem" }}
listener imaps {{ address = {{"127.0.0.1:{port}"}} tls = implicit }}
passwd {{ file = "{folder}/passwd" }}
route {{ file = "{folder}/routes" }}
shard only {{ address = {{"127.0.0.1:1"}} tls = none }}
"""
VERSIONS = ["-tls1_2", "-tls1_3"]
REDIS_KEYS = "imapmux:ticket-keys"
QUICK = "ticket_keys = redis ticket_rotation = 3s session_lifetime = 45s"  # a key is used for new tickets after 750 ms


class Site:
    """Proxies that share what is in this folder."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = authority.Authority(folder / "ca", "Example CA")
        self.renew()
        (folder / "passwd").write_text("")
        (folder / "routes").write_text("* only\n")

    def write(self, name, octets):
        (self.folder / "new").write_bytes(octets)
        (self.folder / "new").rename(self.folder / name)

    def renew(self):
        self.write("cert.pem", self.authority.issue("cert", "/CN=localhost").read_bytes())

    def proxy(self, name, tls, redis="127.0.0.1:1"):
        port = servers.free_port()
        return servers.Imapmux(self.folder / name, ports=[port], configuration=CONF.format(
            tls=tls, redis=redis, folder=self.folder, port=port))


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


class Client:
    """
    openssl with a memory for one ticket; `key` is the name of the key by which the server has encrypted the last one
    that it gave. With TLS 1.2 openssl does not put one that was renewed in the place of the first.
    """

    def __init__(self, folder, version, *words):
        self.file, self.version, self.words = folder / f"ticket{version}", version, words

    def connect(self, proxy):
        """Whether what is remembered was resumed; what comes is remembered."""
        known = ["-sess_in", self.file] if self.file.exists() else []
        said = subprocess.run(["openssl", "s_client", self.version, "-connect", f"{servers.HOST}:{proxy.ports()[0]}",
                               "-ign_eof", *known, "-sess_out", self.file, *self.words],
                              input=b"a LOGOUT\r\n", capture_output=True, timeout=20)
        assert b"* BYE" in said.stdout, said
        tickets = re.findall(rb"TLS session ticket:\s+0000 - ([0-9a-f -]{47})", said.stdout)
        self.key = bytes.fromhex(tickets[-1].decode().replace("-", " ")) if tickets else None
        return re.search(rb"^(New|Reused), TLS", said.stdout, re.MULTILINE).group(1) == b"Reused"


def wait_for_count(proxy, event, count):
    servers.wait_for(lambda: len(proxy.events(event)) >= count, f"{count} times {event!r}")


def clients(folder):
    """One for each version."""
    return [Client(folder, version) for version in VERSIONS]


def all_resume(some, proxy):
    return all([client.connect(proxy) for client in some])


def none_resumes(some, proxy):
    return not any([client.connect(proxy) for client in some])


def keys(some):
    return {client.key for client in some}


@pytest.mark.parametrize("size", [80, 48])
def test_keys_of_a_file(site, size):
    """
    Tickets resume at both proxies; when a new key comes before the old one, they are renewed with it; when the old one
    goes, its tickets are refused.
    """
    old, new = os.urandom(size), os.urandom(80)

    def share(*keys):
        site.write("keys", b"".join(base64.b64encode(key) + b"\n" for key in keys))
    share(old)
    tls = f'ticket_keys = file ticket_keys_file = "{site.folder}/keys"'
    with site.proxy("a", tls) as a, site.proxy("b", tls) as b:
        first, second, third = [clients(site.folder / name) for name in ("ca", "a", "b")]
        assert none_resumes(first, a) and none_resumes(second, b) and keys(first + second) == {old[:16]}
        assert all_resume(first, b) and all_resume(second, a) and all_resume(first, b)
        share(new, old)
        for proxy in a, b:
            wait_for_count(proxy, "certificates read", 1)
        assert all_resume(first, b) and keys(first) == {new[:16]}
        assert none_resumes(third, a) and keys(third) == {new[:16]}
        share(new)
        for proxy in a, b:
            wait_for_count(proxy, "certificates read", 2)
        assert all_resume(third, b) and none_resumes(second, b) and all_resume(second, a)
        site.write("keys", base64.b64encode(new)[:-4] + b"\n")
        wait_for_count(a, "certificates not read", 1)
        assert f"{site.folder}/keys:1: " in a.events("certificates not read")[0]["detail"]
        assert all_resume(third, a) and all_resume(second, b)


def test_keys_of_the_process(site):
    """They outlive a change of certificates and their own rotation, but not the process."""
    some = clients(site.folder)
    with site.proxy("a", "ticket_rotation = 3s session_lifetime = 45s") as proxy:
        assert none_resumes(some, proxy)
        site.renew()
        proxy.wait_for_event("certificates read")
        assert all_resume(some, proxy)
        before = keys(some)
        wait_for_count(proxy, "new ticket key", len(proxy.events("new ticket key")) + 1)
        assert all_resume(some, proxy) and not keys(some) & before
        assert all_resume(some, proxy)
    proxy.start()
    assert none_resumes(some, proxy)
    proxy.stop()


def test_no_tickets(site):
    client = Client(site.folder, "-tls1_2")
    with site.proxy("a", "session_lifetime = 0s") as proxy:
        assert not client.connect(proxy) and not client.connect(proxy)


def test_keys_of_redis(site):
    """Two proxies have the same ones: after these have changed, while Redis is away, and when it comes back empty."""
    with servers.Redis(site.folder / "redis") as redis, \
            site.proxy("a", QUICK, redis.address) as a, site.proxy("b", QUICK, redis.address) as b:
        first, second = clients(site.folder / "a"), clients(site.folder / "b")

        def crosswise():
            return (all_resume(first, b) and all_resume(second, a) and all_resume(first, a) and all_resume(second, b))

        def after_a_new_key(step):
            before = [(proxy, len(proxy.events("new ticket key"))) for proxy in (a, b)]
            step()
            for proxy, count in before:
                wait_for_count(proxy, "new ticket key", count + 1)

        for proxy in a, b:
            proxy.wait_for_event("new ticket key")  # that of Redis, in the place of its own
        assert none_resumes(first, a) and none_resumes(second, b) and crosswise()
        before = keys(first)
        after_a_new_key(lambda: None)
        assert crosswise() and not keys(first) & before
        assert len(redis.ask("HKEYS", REDIS_KEYS)) >= 2 and redis.ask("PTTL", REDIS_KEYS) > 0
        redis.kill()
        assert crosswise()
        after_a_new_key(redis.start)
        assert crosswise()


def test_old_keys_go(site):
    with servers.Redis(site.folder / "redis") as redis, \
            site.proxy("a", "ticket_keys = redis ticket_rotation = 1s session_lifetime = 1s", redis.address):
        first = servers.wait_for(lambda: redis.ask("HKEYS", REDIS_KEYS), "the first key")[0]
        servers.wait_for(lambda: first not in redis.ask("HKEYS", REDIS_KEYS), "it to be forgotten")


def test_started_without_redis(site):
    """It gives tickets by a key of its own, which are good after Redis has come, too; and then shares the others'."""
    client, other = Client(site.folder, "-tls1_3"), Client(site.folder / "ca", "-tls1_3")
    with servers.Redis(site.folder / "redis") as redis:
        redis.stop()
        with site.proxy("a", QUICK, redis.address) as a:
            assert not client.connect(a) and client.connect(a)
            redis.start()
            a.wait_for_event("new ticket key")
            with site.proxy("b", QUICK, redis.address) as b:
                b.wait_for_event("new ticket key")
                assert not other.connect(b) and other.connect(a)
                assert client.connect(a) and client.connect(b)


def test_what_is_no_key(site):
    """It is told once; what was known before stays, and what is right afterwards counts."""
    client = Client(site.folder, "-tls1_3")
    tls = "ticket_keys = redis ticket_rotation = 1s session_lifetime = 16s"
    with servers.Redis(site.folder / "redis") as redis, site.proxy("a", tls, redis.address) as proxy:
        proxy.wait_for_event("new ticket key")
        client.connect(proxy)
        redis.ask("SET", REDIS_KEYS, "x")
        proxy.wait_for_event("ticket keys unusable")
        assert client.connect(proxy)
        redis.ask("DEL", REDIS_KEYS)
        servers.wait_for(lambda: redis.ask("HKEYS", REDIS_KEYS), "a new key")
        now = int(redis.ask("TIME")[0]) * 1000
        redis.ask("HSET", REDIS_KEYS, str(now), "AAAA", "99999999999999", "BBBB")
        wait_for_count(proxy, "ticket keys unusable", 2)
        redis.ask("HDEL", REDIS_KEYS, str(now))
        servers.wait_for(lambda: len(redis.ask("HKEYS", REDIS_KEYS)) >= 2, "one more key")
        assert "99999999999999" not in redis.ask("HKEYS", REDIS_KEYS)
        redis.ask("HSET", REDIS_KEYS, "-1e300", redis.ask("HVALS", REDIS_KEYS)[0])  # a key, but of no time
        wait_for_count(proxy, "ticket keys unusable", 3)
        redis.ask("HDEL", REDIS_KEYS, "-1e300")
        servers.wait_for(lambda: client.connect(proxy), "a ticket that serves")
        assert len(proxy.events("ticket keys unusable")) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_who_was_revoked_does_not_resume(site, version):
    """A ticket says that a certificate was verified: not by the revocation list of now."""
    person = site.authority.issue("ann", "/CN=ann")
    site.write("crl.pem", site.authority.crl().read_bytes())
    client = Client(site.folder, version, "-cert", person)
    files = f'client_ca_file = "{site.authority.file}" client_crl_file = "{site.folder}/crl.pem"'
    with site.proxy("a", files) as proxy:
        assert not client.connect(proxy) and client.connect(proxy)
        site.authority.revoke(person)
        site.write("crl.pem", site.authority.crl().read_bytes())
        proxy.wait_for_event("certificates read")
        with pytest.raises(AssertionError):
            client.connect(proxy)
        assert proxy.wait_for_event("session end")


@pytest.mark.parametrize("tls,complaint", [
    ("ticket_keys = file", '"ticket_keys_file" is not set'),
    ('ticket_keys = file ticket_keys_file = "none"', "ticket_keys_file"),
    ('ticket_keys = file ticket_keys_file = "empty"', "there is no key in it"),
    ('ticket_keys = file ticket_keys_file = "many"', "many:33: more than 32 keys"),
    ('ticket_keys = file ticket_keys_file = "odd"', "odd:2: this is not 80 or 48 octets in base64"),
    ("ticket_rotation = 1m session_lifetime = 1h", '"ticket_rotation" of tls is too short')])
def test_bad_settings(site, tls, complaint):
    key = base64.b64encode(os.urandom(80)) + b"\n"
    (site.folder / "empty").write_bytes(b"\n")
    (site.folder / "many").write_bytes(33 * key)
    (site.folder / "odd").write_bytes(key + key[:-3] + b" =\n")
    conf = site.folder / "proxy.conf"
    conf.write_text(CONF.format(tls=tls, redis="127.0.0.1:1", folder=site.folder, port=1))
    binary = os.environ.get("IMAPMUX") or servers.REPOSITORY / "build/imapmux"
    said = subprocess.run([binary, "-t", "-c", conf], capture_output=True, text=True)
    assert said.returncode == 1 and complaint in said.stderr, said
