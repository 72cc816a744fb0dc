"""
A core dump, where it is wanted, leaves out the secrets of the configuration and the private keys (but for what is said
in docs/threat-model.md). The release build, as it is, is made to crash.
"""
import contextlib
import re
import resource
import signal
import subprocess

import pytest

import servers
from host import Host, over_tls
from stage import Proxy, Store, shard

RELEASE = servers.REPOSITORY / "build/imapmux"
MASTER, SERVICE = "master-word-in-a-file", "service-word-in-proxy-conf"
LDAP = f'ldap {{ uri = {{"ldap://127.0.0.1:1"}} bind_dn = "cn=x" bind_password = "{SERVICE}" base = "dc=x" }}\n'
STORE = 'login = master_authzid master_user = "root" master_password_file = "master"'


def openssl(*words):
    return subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True).stdout


def private_number(key):
    """The octets of the number that is an EC key."""
    text = openssl("pkey", "-in", key, "-noout", "-text").decode()
    return bytes.fromhex(re.sub("[^0-9a-f]", "", re.search(r"priv:\n((?: +[0-9a-f:]+\n)+)", text).group(1)))


def pieces_of(key):
    """What must not be found of it: its number as others write it, and as OpenSSL has it; its lines."""
    number = private_number(key)[-32:]
    lines = [line for line in key.read_bytes().splitlines() if not line.startswith(b"-----")]
    return [number, number[::-1], lines[0][-40:]]  # the next line has begun with the public key


def crashed(proxy):
    """The core dump."""
    proxy.process.send_signal(signal.SIGSEGV)
    proxy.process.wait()
    with contextlib.suppress(servers.ServerError):
        proxy.stop()
    cores = list(proxy.folder.glob("*core*"))
    if not cores:
        pytest.skip("this machine keeps core dumps elsewhere")
    return cores[0].read_bytes()


@pytest.fixture
def dumps():
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


class Crashing(Proxy):
    def prepare(self, **options):
        (self.folder / "master").write_text(MASTER)
        super().prepare(**options)


@pytest.mark.parametrize("together", [False, True], ids=["key-file", "chain-and-key"])
@pytest.mark.parametrize("used", [False, True], ids=["at-once", "after-use"])
def test_secrets_are_not_in_it(folder, dumps, together, used):
    own = folder / f"core-{together}-{used}"
    own.mkdir()
    chain, key = servers.make_certificate(own)
    searched = pieces_of(key)
    if together:
        chain.write_bytes(chain.read_bytes() + key.read_bytes())
    with Store(Host(prologue=over_tls((chain, key), "implicit"))) as store, \
            Crashing(own / "proxy", shards=shard("store", store.port, tls="implicit", more=STORE), more=LDAP, workers=2,
                     certificate=(chain, chain if together else key), core_dumps="yes", binary=RELEASE) as proxy:
        for listener in ("tls", "starttls") if used else ():
            proxy.logged_in(listener=listener).close()
        core = crashed(proxy)
    assert b"imapmux ready." in core  # the heap is there
    assert not [piece for piece in searched if piece in core]
    assert all(word.encode() not in core for word in (MASTER, SERVICE))
