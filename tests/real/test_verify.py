"""
Mailboxes of one user at two real stores, compared: Dovecots whose paths look different, a Cyrus, each way to log in
without the user's password, and each thing that can differ.
"""
import json
import os
import shutil
import subprocess

import pytest

import servers
from conftest import PASSWORD
from cyrus import Cyrus
from imapwire import Wire

pytestmark = pytest.mark.skipif(os.environ.get("IMAPMUX") == "none", reason="there is nothing to ask")
USER = "ann"
NAMES = [b"Sent", b"Work", b"Work/2026", b'"with \\"quotes\\" and \\\\"', b'"a b"', b'"&AOQ-"']
MASTER = f'master_user = "{servers.MASTER_USER}" master_password_file = "master"'
SHARD = """shard {name} {{
    address = {{"127.0.0.1:{port}"}}  tls = {tls}  tls_ca_file = "{chain}"  tls_name = "localhost"  {login}
}}
"""
CONFIGURATION = """
log {{ level = debug }}
admin {{ socket = "admin.sock" }}
listener plain {{ address = {{"127.0.0.1:{port}"}} tls = none plaintext_login = yes }}
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
route {{ sources = {{file}} file = "routes" }}
{shards}
"""
MESSAGE = b"Subject: one\r\n\r\none\r\n"


def session(store):
    wire = Wire(servers.HOST, store.port)
    wire.login(USER, PASSWORD)
    return wire


def do(store, *commands):
    with session(store) as wire:
        for command in commands:
            answer = wire.command(command)
            assert b" OK " in answer.splitlines()[-1], answer


def append(store, mailbox, count=1):
    do(store, *[b"APPEND %s {%d+}\r\n%s" % (mailbox, len(MESSAGE), MESSAGE)] * count)


def copy(store, other):
    """Gives the other store all that the user has, with its UIDs."""
    target = other.mail / USER
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", store.mail / USER, target], check=True)


@pytest.fixture(scope="module")
def stores(folder, certificate):
    path = 'namespace inbox {{\n prefix = {}\n separator = {}\n}}\n'.format
    with servers.Dovecot(folder / "verify-a", users={USER: PASSWORD}, certificate=certificate) as a, \
            servers.Dovecot(folder / "verify-b", users={USER: PASSWORD}, certificate=certificate) as b, \
            servers.Dovecot(folder / "verify-c", users={USER: PASSWORD}, more=path("INBOX.", ".")) as c, \
            Cyrus(folder / "verify-cyrus", users={USER: PASSWORD}) as cyrus:
        yield {"a": a, "b": b, "c": c, "cyrus": cyrus}


@pytest.fixture(scope="module")
def proxy(folder, certificate, stores):
    home = folder / "imapmux-verify"
    home.mkdir()
    (home / "master").write_text(servers.MASTER_PASSWORD)
    (home / "master").chmod(0o600)
    (home / "passwd").touch(0o600)
    (home / "routes").write_text("* a\n")

    def shard(name, port, login, tls="none"):
        return SHARD.format(name=name, port=port, login=login, tls=tls, chain=certificate[0])
    authzid, suffix = (f"passwordless_login = {way} {MASTER}" for way in ("master_authzid", "master_suffix"))
    shards = (shard("a", stores["a"].port, authzid) + shard("b", stores["b"].tls_port, suffix, "implicit") +
              shard("c", stores["c"].port, f"login = master_authzid {MASTER}") +
              shard("starttls", stores["a"].port, authzid, "starttls") +
              shard("cyrus", stores["cyrus"].port, authzid) + shard("closed", stores["a"].port, ""))
    port = servers.free_port()
    with servers.Imapmux(home, configuration=CONFIGURATION.format(port=port, shards=shards), ports=[port]) as server:
        yield server


@pytest.fixture
def filled(stores):
    a = stores["a"]
    shutil.rmtree(a.mail / USER, ignore_errors=True)
    do(a, *[b"CREATE " + name for name in NAMES])
    append(a, b"INBOX", 3)
    append(a, b"Work/2026", 2)
    for other in "b", "c":
        copy(a, stores[other])


def ctl(proxy, *words):
    return subprocess.run([proxy.binary.with_name("imapmuxctl"), "-s", proxy.folder / "admin.sock", "--json",
                           "cutover", "verify", USER, *words], capture_output=True, text=True, timeout=60)


def same(proxy, one, other):
    result = ctl(proxy, one, other)
    assert (result.returncode, result.stderr) == (0, ""), result
    return json.loads(result.stdout)


def differ(proxy, one, other):
    result = ctl(proxy, one, other)
    assert result.returncode == 1, result
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.stderr.startswith(f"imapmuxctl: {USER}: {len(found)} mailbox"), result
    assert f'{found[0]["mailbox"]}: {found[0]["differs"]}' in result.stderr
    return {one["mailbox"]: one["differs"] for one in found}


WHOLE = {"mailboxes": 1 + len(NAMES), "messages": 5}


@pytest.mark.parametrize("one,other", ["ab", "ba", "ac", "cb", ("starttls", "c")])
def test_the_same(proxy, filled, one, other):
    assert same(proxy, one, other) == WHOLE


def test_what_cannot_be_selected_does_not_count(proxy, filled, stores):
    do(stores["b"], b"CREATE top/below")
    assert differ(proxy, "a", "b") == {"top/below": "only at b"}
    do(stores["b"], b"DELETE top/below")
    assert same(proxy, "a", "b") == WHOLE


def test_a_message_more(proxy, filled, stores):
    append(stores["b"], b"Work/2026")
    assert differ(proxy, "a", "b") == {"Work/2026": "UIDNEXT is 3 at a, 4 at b"}
    assert differ(proxy, "b", "c") == {"Work/2026": "UIDNEXT is 4 at b, 3 at c"}


def test_a_message_less(proxy, filled, stores):
    do(stores["b"], b"SELECT INBOX", b"STORE 2 +FLAGS (\\Deleted)", b"EXPUNGE")
    assert differ(proxy, "a", "b") == {"INBOX": "MESSAGES is 3 at a, 2 at b"}


def test_a_mailbox_made_anew(proxy, filled, stores):
    """Counts where there was mail; where there never was, nobody has a UID that could mean another message now."""
    do(stores["b"], b"DELETE Sent", b"CREATE Sent")
    assert same(proxy, "a", "b") == WHOLE
    do(stores["b"], b"DELETE Work/2026", b"CREATE Work/2026")
    append(stores["b"], b"Work/2026", 2)
    found = differ(proxy, "a", "b")
    assert found.keys() == {"Work/2026"} and "UIDVALIDITY is " in found["Work/2026"]


def test_mailboxes_at_one_only(proxy, filled, stores):
    do(stores["a"], b'CREATE "of a"')
    do(stores["c"], b"CREATE INBOX.of.c")
    assert differ(proxy, "a", "c") == {"of a": "only at a", "of/c": "only at c"}


def test_ten_differences_are_told(proxy, filled, stores):
    do(stores["a"], *[b"CREATE more/%02d" % number for number in range(12)])
    result = ctl(proxy, "a", "b")
    told = [json.loads(line)["mailbox"] for line in result.stdout.splitlines()]
    assert told == [f"more/{number:02}" for number in range(10)]
    assert result.stderr == f"imapmuxctl: {USER}: 12 mailboxes differ: more/00: only at a\n"


def test_cyrus(proxy, filled, stores):
    do(stores["cyrus"], b"CREATE Sent", b"CREATE Sent/2026")
    append(stores["cyrus"], b"Sent/2026", 2)
    assert same(proxy, "cyrus", "cyrus") == {"mailboxes": 3, "messages": 2}
    assert {"Sent/2026", "Work"} < differ(proxy, "a", "cyrus").keys()


def test_no_way_without_a_password(proxy):
    result = ctl(proxy, "a", "closed")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == \
        f"imapmuxctl: {USER}: shard closed has no passwordless way to log in: set its passwordless_login\n"
