"""Programs that people use, through imapmux: curl, mbsync, Python's imaplib, openssl s_client."""
import imaplib
import shutil
import ssl
import subprocess

import pytest
import servers
from conftest import PASSWORD
from imapwire import Sync, Wire, quoted
from test_same_bytes import LOOKS_LIKE_IMAP, append, comparable, fill

def needs(program):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def curl(proxy, certificate, user, path, *options, scheme="imaps", listener="tls", password=PASSWORD):
    login = f"{user}:{password}".replace("\\", "\\\\").replace('"', '\\"')
    return subprocess.run(["curl", "-q", "--silent", "--show-error", "--max-time", "20", "--cacert", str(certificate[0]),
                           "--config", "-", *options, f"{scheme}://localhost:{proxy.ports[listener]}/{path}"], input=f'user = "{login}"\n'.encode(),
                          capture_output=True)


@needs("curl")
def test_curl_lists_fetches_and_appends(pair, proxy, certificate, folder):
    mail = folder / f"{pair.user}.eml"
    mail.write_bytes(LOOKS_LIKE_IMAP[1])
    put = curl(proxy, certificate, pair.user, "INBOX", "-T", str(mail))
    assert put.returncode == 0, put.stderr
    listed = curl(proxy, certificate, pair.user, "")
    assert (listed.returncode, listed.stdout) == (0, b'* LIST (\\HasNoChildren) "/" INBOX\r\n')
    fetched = curl(proxy, certificate, pair.user, "INBOX;MAILINDEX=1")
    assert (fetched.returncode, fetched.stdout) == (0, LOOKS_LIKE_IMAP[1])


@needs("curl")
def test_curl_with_starttls(pair, proxy, certificate):
    listed = curl(proxy, certificate, pair.user, "", "--ssl-reqd", scheme="imap", listener="starttls")
    assert (listed.returncode, listed.stdout) == (0, b'* LIST (\\HasNoChildren) "/" INBOX\r\n')


@needs("curl")
def test_curl_with_wrong_password(pair, proxy, certificate):
    refused = curl(proxy, certificate, pair.user, "", password="wrong")
    assert refused.returncode == 67


MBSYNC_CONF = """
IMAPStore far
Host localhost
Port {port}
User {user}
PassCmd "cat {folder}/password"
SSLType {tls}
CertificateFile {chain}
AuthMechs LOGIN

MaildirStore near
Path {folder}/mail/
Inbox {folder}/mail/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Both
Remove None
Expunge None
SyncState {folder}/state/
"""


def mbsync(folder, port, user, tls, chain):
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "mbsyncrc").write_text(MBSYNC_CONF.format(folder=folder, port=port, user=user, tls=tls, chain=chain))
    done = subprocess.run(["mbsync", "-c", str(folder / "mbsyncrc"), "-a"], capture_output=True, timeout=60)
    assert done.returncode == 0, (done.stdout, done.stderr)


def maildirs(root):
    """All messages of a tree of Maildirs, without the names of their files, and without mbsync's own header line."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.parent.name in ("cur", "new") and path.is_file():
            octets = b"".join(line for line in path.read_bytes().splitlines(True) if not line.startswith(b"X-TUID:"))
            flags = path.name.partition(":2,")[2]
            found.setdefault(str(path.parent.parent.relative_to(root)), []).append((octets, flags))
    return {name: sorted(messages) for name, messages in found.items()}


def put_local(root, mailbox, number, octets):
    for part in ("cur", "new", "tmp"):
        (root / mailbox / part).mkdir(parents=True, exist_ok=True)
    (root / mailbox / "cur" / f"1700000000.{number}.test:2,S").write_bytes(octets.replace(b"\r\n", b"\n"))


def tree_on_store(wire):
    with wire:
        said = [wire.command(b'LIST "" "*"')]
        for mailbox in (b"INBOX", b"Archive", b"Local"):
            said.append(wire.command(b"EXAMINE " + mailbox))
            said.append(wire.command(b"FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS.NOT (X-TUID)] BODY.PEEK[TEXT])"))
        return [comparable(answer) for answer in said]


@needs("mbsync")
def test_mbsync_both_ways(pair, proxy, green, certificate, folder):
    trees, stores = [], []
    chain = certificate[0]
    for name, connect, port in (("direct", pair.direct, green.tls_port), ("through", pair.through, proxy.ports["tls"])):
        home = folder / f"mbsync-{name}"
        (home / "mail").mkdir(parents=True)
        (home / "state").mkdir()
        with connect() as wire:
            for step in [(b"CREATE Archive",), *fill(), *fill(b"Archive")]:
                wire.command(*step)
        put_local(home / "mail", "INBOX", 1, LOOKS_LIKE_IMAP[0])
        put_local(home / "mail", "Local", 2, LOOKS_LIKE_IMAP[6])
        mbsync(home, port, pair.user, "IMAPS", chain)
        with connect() as wire:
            wire.command(b"SELECT INBOX")
            wire.command(b"STORE 1:3 +FLAGS (\\Flagged)")
            wire.command(*append(b"INBOX", LOOKS_LIKE_IMAP[2]))
        mbsync(home, port, pair.user, "IMAPS", chain)
        trees.append(maildirs(home / "mail"))
        stores.append(tree_on_store(connect()))
    assert trees[1] == trees[0]
    assert set(trees[0]) >= {"INBOX", "Archive", "Local"} and len(trees[0]["INBOX"]) >= 8
    assert stores[1] == stores[0]


def trusting(certificate):
    return ssl.create_default_context(cafile=str(certificate[0]))


def use_imaplib(connection, user):
    connection.login(user, PASSWORD)
    assert connection.append("INBOX", "(\\Seen)", None, LOOKS_LIKE_IMAP[0])[0] == "OK"
    assert connection.select("INBOX") == ("OK", [b"1"])
    assert connection.fetch("1", "(BODY.PEEK[])")[1][0][1] == LOOKS_LIKE_IMAP[0]
    assert connection.logout()[0] == "BYE"


def test_imaplib_over_tls(pair, proxy, certificate):
    use_imaplib(imaplib.IMAP4_SSL("localhost", proxy.ports["tls"], ssl_context=trusting(certificate)), pair.user)


def test_imaplib_with_starttls(pair, proxy, certificate):
    connection = imaplib.IMAP4("localhost", proxy.ports["starttls"])
    connection.starttls(trusting(certificate))
    use_imaplib(connection, pair.user)


def test_imaplib_authenticate_plain(pair, proxy, certificate):
    connection = imaplib.IMAP4_SSL("localhost", proxy.ports["tls"], ssl_context=trusting(certificate))
    connection.authenticate("PLAIN", lambda _: b"\0" + pair.user.encode() + b"\0" + PASSWORD.encode())
    assert connection.noop()[0] == "OK"
    connection.logout()


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("listener", ["starttls", "tls"])
def test_s_client(pair, proxy, certificate, listener, version):
    options = ["-starttls", "imap"] if listener == "starttls" else []
    script = b"a LOGIN " + pair.user.encode() + b" " + quoted(PASSWORD) + b"\r\nb LOGOUT\r\n"
    done = subprocess.run(["openssl", "s_client", "-connect", f"{servers.HOST}:{proxy.ports[listener]}", version,
                           "-servername", "localhost", "-verify_return_error", "-verify_hostname", "localhost",
                           "-CAfile", str(certificate[0]), "-quiet", "-ign_eof", *options], input=script,
                          capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert b"a OK" in done.stdout and b"* BYE" in done.stdout and b"b OK" in done.stdout


def test_python_tls_1_1_is_refused(proxy):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        imaplib.IMAP4_SSL(servers.HOST, proxy.ports["tls"], ssl_context=context)


def test_literal_password(pair, proxy):
    """LOGIN with both arguments as literals."""
    with Wire(servers.HOST, proxy.ports["tls"], tls="implicit") as wire:
        answer = wire.command(b"LOGIN ", Sync(pair.user.encode()), b" ", Sync(PASSWORD.encode()), tag=b"x")
        assert answer.split(b"\r\n")[-2].startswith(b"x OK")
