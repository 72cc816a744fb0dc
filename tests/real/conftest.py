"""
The stage of the real tests: a directory, Redis, two Dovecots and imapmux before them, started once. With
IMAPMUX=none the scripts run with the first store in imapmux's place: that checks the scripts themselves.
"""
import os
import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import servers  # noqa: E402
from imapwire import Wire  # noqa: E402

PASSWORD = 'pass "word\\ %'
PEOPLE = [f"user{number:02}" for number in range(1, 21)]
# One for each script of the differential tests, so that each begins with an empty mailbox.
FRESH = [f"fresh{number:03}" for number in range(300)]

PROXY_CONF = """
process {{ workers = 2  stop_timeout = 10s  core_dumps = {dumps} }}
log {{ level = debug }}
certificate main {{ chain = "{chain}" key = "{key}" }}
listener plain {{ address = {{"127.0.0.1:{plain_port}"}} tls = none plaintext_login = yes }}
listener imap {{ address = {{"127.0.0.1:{starttls_port}"}} tls = starttls }}
listener imaps {{ address = {{"127.0.0.1:{tls_port}"}} tls = implicit }}
auth {{ sources = {{ldap}} timeout = 3s }}
throttle {{ trusted = {{"127.0.0.0/8"}} }}
ldap {{
    uri = {{"{ldap_uri}"}}
    base = "ou=people,dc=example,dc=org"
    filter = "(uid=%{{user}})"
    connect_timeout = 1s
    timeout = 1s
}}
route {{ sources = {{redis}} timeout = 2s cache_ttl = 0s }}
cutover {{ hold_timeout = 2s }}
redis {{ address = "{redis_address}" connect_timeout = 500ms timeout = 500ms retry_max = 200ms }}
{shards}
"""
SHARD_PLAIN = 'shard {name} {{ address = {{"127.0.0.1:{port}"}} tls = none }}\n'
SHARD_AUTHZID = """shard {name} {{
    address = {{"127.0.0.1:{port}"}}
    tls = starttls
    tls_ca_file = "{chain}"
    tls_name = "localhost"
    login = master_authzid
    master_user = "{master}"
    master_password_file = "{master_file}"
}}
"""
SHARD_SUFFIX = """shard {name} {{
    address = {{"127.0.0.1:{port}"}}
    tls = implicit
    tls_ca_file = "{chain}"
    tls_name = "localhost"
    login = master_suffix
    master_user = "{master}"
    master_password_file = "{master_file}"
}}
"""


def write_proxy_conf(chain, key, ldap_uri, redis_address, shards):
    """The text of a proxy.conf with three listeners on free ports, and these ports by name."""
    ports = {name: servers.free_port() for name in ("plain", "starttls", "tls")}
    text = PROXY_CONF.format(chain=chain, key=key, ldap_uri=ldap_uri, redis_address=redis_address, shards=shards,
                             dumps=servers.CORE_DUMPS, plain_port=ports["plain"], starttls_port=ports["starttls"],
                             tls_port=ports["tls"])
    return text, ports


@pytest.fixture(scope="session")
def folder():
    with servers.Folder("imapmux-test-") as path:
        yield path


@pytest.fixture(scope="session")
def certificate(folder):
    return servers.make_certificate(folder)


@pytest.fixture(scope="session")
def passwords():
    return {name: PASSWORD for name in PEOPLE + FRESH}


@pytest.fixture(scope="session")
def slapd(folder, passwords):
    with servers.Slapd(folder / "slapd", users=passwords) as server:
        yield server


@pytest.fixture(scope="session")
def redis(folder):
    with servers.Redis(folder / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def blue(folder, passwords, certificate):
    with servers.Dovecot(folder / "blue", users=passwords, certificate=certificate) as server:
        yield server


@pytest.fixture(scope="session")
def green(folder, passwords, certificate):
    with servers.Dovecot(folder / "green", users=passwords, certificate=certificate) as server:
        yield server


@pytest.fixture(scope="session")
def proxy(folder, certificate, slapd, redis, blue, green):
    """imapmux, as an object with `ports` by name: plain, starttls, tls. Users live on blue unless a test moves them."""
    if os.environ.get("IMAPMUX") == "none":
        yield types.SimpleNamespace(ports={"plain": blue.port, "starttls": blue.port, "tls": blue.tls_port},
                                    server=None)
        return
    master_file = folder / "master.password"
    master_file.write_text(servers.MASTER_PASSWORD)
    master_file.chmod(0o600)
    chain, key = certificate
    common = {"chain": chain, "master": servers.MASTER_USER, "master_file": master_file}
    shards = (SHARD_PLAIN.format(name="blue", port=blue.port) +
              SHARD_AUTHZID.format(name="authzid", port=blue.port, **common) +
              SHARD_SUFFIX.format(name="suffix", port=blue.tls_port, **common) +
              SHARD_PLAIN.format(name="green", port=green.port))
    text, ports = write_proxy_conf(chain, key, slapd.uri, redis.address, shards)
    redis.route({name: "blue" for name in PEOPLE + FRESH})
    server = servers.Imapmux(folder / "imapmux", configuration=text, ports=list(ports.values()))
    yield types.SimpleNamespace(ports=ports, server=server)
    server.stop()


@pytest.fixture(scope="session")
def unused_users():
    return iter(FRESH)


class Pair:
    """
    One user with the same, empty mailbox on two stores: `direct` connects to the second, `through` by way of imapmux
    to the first. The name is the same, so that answers can be compared as they are.
    """

    def __init__(self, user, proxy, green, route):
        self.user, self.proxy, self.green, self.route = user, proxy, green, route

    def direct(self, **options):
        return self._logged_in(Wire(servers.HOST, self.green.port, **options))

    def through(self, listener="plain", **options):
        tls = {"plain": None, "starttls": "starttls", "tls": "implicit"}[listener]
        return self._logged_in(Wire(servers.HOST, self.proxy.ports[listener], tls=tls, **options))

    def _logged_in(self, wire):
        wire.login(self.user, PASSWORD)
        return wire


@pytest.fixture
def pair(proxy, green, redis, unused_users):
    user = next(unused_users)
    return Pair(user, proxy, green, lambda shard: redis.route({user: shard}))
