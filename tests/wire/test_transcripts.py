r"""
Plays every *.wire file of this folder against one imapmux, whole and byte by byte. A transcript is read from top to
bottom; what is expected is expected exactly, and in this order. Lines end in CRLF on the wire.

    # comment
    LISTENER: plain|starttls|imaps|nologin      first of all; "nologin" is in clear and takes no passwords;
              only-plain|only-login|only-external   offer that mechanism alone
    WHOLE       not to be played byte by byte
    C: line     from the client; lines that follow each other go in one write
    S: line     from the proxy to the client, and S~ regexp for what varies
    TLS         the handshake, now
    B> line     from the proxy to the store, and B~ regexp for what varies
    B< line     from the store to the proxy; without B lines the store does what a good one does (stage.good)
    CLOSED      the proxy has nothing more to say and closes; every transcript ends so

Escapes: \\ \r \n \x00 (\x20 for a blank at the end), and \(A*100) for a hundred As.
"""
import os
import pathlib
import queue
import re
import sys
import threading

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "fault")]
import servers  # noqa: E402
import stage  # noqa: E402
from imapwire import Closed, Wire, single_bytes, whole  # noqa: E402

TRANSCRIPTS = sorted(HERE.glob("*.wire"))
PATIENCE_SECONDS = 5
STEP = re.compile(rb"(LISTENER:|C:|S:|S~|B>|B~|B<|WHOLE|TLS|CLOSED)(?: (.*))?", re.DOTALL)
ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|\((.)\*(\d+)\)|([\\rn]))")
LISTENERS = {b"plain": "plain", b"starttls": "starttls", b"imaps": "tls", b"nologin": "nologin",
             b"only-plain": "only-plain", b"only-login": "only-login", b"only-external": "only-external"}
MORE_LISTENERS = {"nologin": "plaintext_login = no", "only-plain": "plaintext_login = yes mechanisms = {plain}",
                  "only-login": "plaintext_login = yes mechanisms = {LOGIN}",
                  "only-external": "plaintext_login = yes mechanisms = {EXTERNAL}"}
USERS = {"quoted": 'se"cr\\et', "umlaut": "pässword"}


def unescape(text):
    def one(found):
        code, repeated, count, letter = found.groups()
        if code:
            return bytes([int(code, 16)])
        return repeated * int(count) if repeated else {b"r": b"\r", b"n": b"\n"}.get(letter, letter)
    return ESCAPE.sub(one, text)


def read_transcript(path):
    """The steps of a transcript: (line number, word, text), the listener first."""
    steps = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line or line.startswith(b"#"):
            continue
        found = STEP.fullmatch(line)
        assert found, f"{path.name}:{number}: not a step: {line!r}"
        word, text = found.group(1), found.group(2) or b""
        steps.append((number, word, text if word in (b"S~", b"B~") else unescape(text)))
    assert steps[0][1] == b"LISTENER:" and steps[-1][1] == b"CLOSED", f"{path.name}: from LISTENER to CLOSED"
    return steps


class Play:
    """One playing of one transcript: the client's end, and the store's if the transcript tells its part."""

    def __init__(self, proxy, store, steps, cut):
        self.steps, self.cut = steps, cut
        self.peers, self.over = queue.Queue(), threading.Event()
        self.peer = None
        scripted = any(word.startswith(b"B") for _, word, _ in steps)
        store.cut, store.script = cut, self.lend if scripted else stage.good
        listener = LISTENERS[steps[0][2]]
        self.wire = Wire(servers.HOST, proxy.port[listener], tls="implicit" if listener == "tls" else None, cut=cut,
                         timeout=PATIENCE_SECONDS, greeting=False)

    def lend(self, peer):
        self.peers.put(peer)
        self.over.wait()

    def at_store(self):
        self.peer = self.peer or self.peers.get(timeout=PATIENCE_SECONDS)
        self.peer.socket.settimeout(PATIENCE_SECONDS)
        return self.peer

    def read(self, word):
        try:
            return self.wire.read_line() if word.startswith(b"S") else self.at_store().line()
        except (Closed, OSError, queue.Empty, stage.Gone) as failure:
            return repr(failure).encode()

    def step(self, word, text):
        """Takes one step that is no C; returns what came if it is not what was expected."""
        if word in (b"S:", b"B>"):
            line = self.read(word)
            return None if line == text + b"\r\n" else line
        if word in (b"S~", b"B~"):
            line = self.read(word)
            return None if re.fullmatch(text + rb"\r\n", line) else line
        if word == b"B<":
            self.at_store().send(text + b"\r\n")
        elif word == b"TLS":
            self.wire.start_tls()
        elif word == b"CLOSED":
            self.over.set()  # the store closes, too
            return self.wire.read_to_end() or None
        return None

    def run(self, name):
        unsent = b""
        for number, word, text in self.steps:
            if word == b"C:":
                unsent += text + b"\r\n"
                continue
            self.wire.send(unsent)
            unsent = b""
            wrong = self.step(word, text)
            assert wrong is None, f"{name}:{number}: expected {(word + b' ' + text)[:300]!r}, got {wrong[:300]!r}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.wire.close()


@pytest.fixture(scope="module")
def store():
    with stage.Store() as only:
        yield only
        only.check()


# "helpdesk" may log in as anybody; the store of "carol" knows a master user, that of the others does not.
SOURCES = """
auth { sources = {passwd} master_users = {helpdesk} }
passwd { file = "passwd" }
route { sources = {file} file = "routes" }
"""
PEOPLE = ("alice", "bob", "carol", "helpdesk")
MASTER = f'passwordless_login = master_authzid master_user = "{servers.MASTER_USER}" master_password_file = "master"'


@pytest.fixture(scope="module")
def proxy(store):
    ports = {name: servers.free_port() for name in MORE_LISTENERS}
    more = "".join(f'listener {name} {{ address = {{"{servers.HOST}:{port}"}} tls = none {MORE_LISTENERS[name]} }}\n'
                   for name, port in ports.items())
    more += 'tls { client_ca_file = "ca.pem" }\n'
    with servers.Folder("imapmux-wire-") as folder, pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("IMAPMUX"):
            patch.setenv("IMAPMUX", str(servers.REPOSITORY / "build-asan/imapmux"))
        (folder / "proxy").mkdir()
        (folder / "proxy/master").write_text(servers.MASTER_PASSWORD)
        certificate = servers.make_certificate(folder)
        (folder / "proxy/ca.pem").write_bytes(certificate[0].read_bytes())  # any will do: no client has one
        shards = stage.shard("store", store.port) + stage.shard("mastered", store.port, more=MASTER)
        with stage.Proxy(folder / "proxy", shards=shards, more=more, users=PEOPLE, passwords=USERS,
                         routes={"carol": "mastered"}, sources=SOURCES, certificate=certificate) as running:
            running.port.update(ports)
            yield running


def ways(path):
    """The ways to play a transcript, with names."""
    cuts = {"whole": whole, "bytes": single_bytes}
    if any(word == b"WHOLE" for _, word, _ in read_transcript(path)):
        del cuts["bytes"]
    return [pytest.param(path, cut, id=f"{path.stem}-{name}") for name, cut in cuts.items()]


@pytest.mark.parametrize("path,cut", [way for path in TRANSCRIPTS for way in ways(path)])
def test_transcript(proxy, store, path, cut):
    steps = read_transcript(path)
    with Play(proxy, store, steps, cut) as play:
        play.run(path.name)
