"""
The mission's test: one script, once directly with a Dovecot and once through imapmux with its twin, and the answers
are the same to the byte. What differs between two Dovecots anyway is named, narrowly, in `comparable`.
"""
import re
import time

import pytest
import servers
from conftest import PASSWORD
from imapwire import (NonSync, NonSync8, Sync, Sync8, Wire, is_tagged, quoted, random_chunks, single_bytes,
                      whole)

DATE = b'"01-Jan-2024 12:00:00 +0000"'
VOLATILE = [
    (rb"\(\d+\.\d{3} \+ \d+\.\d{3}( \+ \d+\.\d{3})? secs\)", b"(TIMES)"),
    (rb"(UIDVALIDITY|APPENDUID|COPYUID) \d+", rb"\1 N"),
    (rb"(?m)^(\* STATUS .*)MAILBOXID \([0-9a-f]+\)", rb"\1MAILBOXID (ID)"),
    (rb"(EMAILID|THREADID|SAVEDATE) (\([^)]*\)|\"[^\"]*\")", rb"\1 ID"),
]
VOLATILE = [(re.compile(pattern), replacement) for pattern, replacement in VOLATILE]


def comparable(received):
    for pattern, replacement in VOLATILE:
        received = pattern.sub(replacement, received)
    return received


def message(subject, body, sender="ann@example.org"):
    return (f"From: {sender}\r\nTo: bob@example.org\r\nSubject: {subject}\r\n"
            f"Message-ID: <{subject.replace(' ', '.')}@example.org>\r\nDate: Mon, 1 Jan 2024 12:00:00 +0000\r\n"
            "\r\n").encode() + body


MULTIPART = (
    b"From: ann@example.org\r\nTo: bob@example.org\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
    b"Message-ID: <parts@example.org>\r\nIn-Reply-To: <one@example.org>\r\nReferences: <one@example.org>\r\n"
    b"Date: Tue, 2 Jan 2024 08:00:00 +0100\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed; boundary=\"cut\"\r\n\r\npreamble\r\n--cut\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    b"Sch=C3=B6ne Gr=C3=BC=C3=9Fe {12}\r\n--cut\r\n"
    b"Content-Type: application/octet-stream; name=\"a {3}\"\r\nContent-Transfer-Encoding: base64\r\n"
    b"Content-Disposition: attachment; filename=\"x\\\"y\"\r\n\r\nAAECAwQFBgcICQoLDA0ODw==\r\n--cut\r\n"
    b"Content-Type: message/rfc822\r\n\r\nFrom: c@example.org\r\nSubject: inner\r\n\r\ninner body\r\n"
    b"--cut--\r\nepilogue\r\n")
LOOKS_LIKE_IMAP = [
    message("one", b"A1 OK [CAPABILITY IMAP4rev1 STARTTLS COMPRESS=DEFLATE]\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"),
    message("two", b"ends in a literal {10}\r\n* BYE go away\r\n+ idling\r\nt5 OK done\r\n)\r\nt6 BAD {4}\r\n"),
    message("three {99}", b"{0}\r\n~{5}\r\n{18446744073709551616}\r\n\" unbalanced \\\r\n((((\r\n* OK [CAPABILITY]\r\n"),
    b"",
    b"\r\n",
    b"Subject: {7}\r\n\r\nlast line is {3}\r\n",
    message("long line", b"x" * 70000 + b"\r\n* 1 EXPUNGE {5}\r\n"),
    MULTIPART,
]


def append(mailbox, octets, kind=Sync, flags=b""):
    return (b"APPEND " + mailbox + b" (" + flags + b") " + DATE + b" ", kind(octets))


def fill(mailbox=b"INBOX"):
    return [append(mailbox, octets, flags=b"\\Seen" if number % 2 else b"") for number, octets in
            enumerate(octets or b"Subject: filler\r\n\r\n" for octets in LOOKS_LIKE_IMAP)]


FOLDERS = [(b"CREATE Archive",), (b"CREATE Archive/2024",), (b"CREATE \"a b\"",), (b"CREATE ", Sync(b"by literal")),
           (b"CREATE ", NonSync(b"Entw&APw-rfe")), (b"CREATE \"quote\\\"d\\\\name\"",), (b"SUBSCRIBE Archive",),
           (b"SUBSCRIBE ", NonSync(b"by literal")), (b"SUBSCRIBE missing",)]

# Name: steps; a step is what follows the tag, in parts.
SCRIPTS = {
    "list": FOLDERS + [
        (b'LIST "" "*"',), (b'LIST "" %',), (b'list "" ""',), (b'LSUB "" "*"',), (b'LIST "" ', Sync(b"Arch*")),
        (b"LIST ", NonSync(b""), b" ", NonSync(b"*ite*")), (b"STATUS Archive (MESSAGES UIDNEXT UNSEEN RECENT)",),
        (b"STATUS ", Sync(b"by literal"), b" (MESSAGES HIGHESTMODSEQ SIZE)"), (b"STATUS missing (MESSAGES)",),
        (b"RENAME Archive/2024 Archive/2025",), (b"DELETE missing",), (b"DELETE Archive/2025",), (b'LIST "" "*"',),
        (b"UNSUBSCRIBE Archive",), (b'LSUB "" "*"',), (b"NAMESPACE",), (b"SELECT missing",),
        (b"EXAMINE Archive",), (b"CLOSE",), (b"SELECT Archive",), (b"UNSELECT",)],
    "list extended": FOLDERS + [
        (b'LIST (SUBSCRIBED) "" "*"',), (b'LIST (SUBSCRIBED RECURSIVEMATCH) "" "%" RETURN (CHILDREN)',),
        (b'LIST "" "*" RETURN (SUBSCRIBED CHILDREN STATUS (MESSAGES UIDNEXT))',), (b'LIST "" (INBOX "A*")',),
        (b'LIST (NONSENSE) "" "*"',), (b'LIST "" "*" RETURN (SPECIAL-USE)',), (b'LIST (REMOTE) "" "*"',)],
    "fetch": fill() + [
        (b"SELECT INBOX",), (b"FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE)",),
        (b"FETCH 1:* BODY.PEEK[]",), (b"FETCH 1:* (BODY.PEEK[HEADER] BODY.PEEK[TEXT])",), (b"FETCH 1:* FULL",),
        (b"FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT MESSAGE-ID)]",), (b"FETCH 8 BODY.PEEK[1]",),
        (b"FETCH 8 (BODY.PEEK[1.MIME] BODY.PEEK[2] BODY.PEEK[3.HEADER] BODY.PEEK[3.TEXT] BODY.PEEK[9])",),
        (b"FETCH 1:8 BODY.PEEK[]<0.100>",), (b"FETCH 7 BODY.PEEK[]<60000.20000>",), (b"FETCH 7 BODY.PEEK[]<99999.5>",),
        (b"FETCH 1:* (RFC822.HEADER RFC822.TEXT)",), (b"FETCH 1:* (UID SNIPPET)",), (b"FETCH 1:3 (PREVIEW)",),
        (b"UID FETCH 1:* (FLAGS MODSEQ)",), (b"FETCH 99 FLAGS",), (b"FETCH x FLAGS",), (b"FETCH 1 (NONSENSE)",),
        (b"FETCH 1:* RFC822",)],
    "search": fill() + [
        (b"SELECT INBOX",), (b"SEARCH ALL",), (b"SEARCH SEEN",), (b"UID SEARCH SUBJECT one",),
        (b"SEARCH CHARSET UTF-8 SUBJECT ", Sync("Grüße".encode())), (b"SEARCH BODY ", NonSync(b"* BYE go")),
        (b"SEARCH TEXT ", NonSync(b"{10}")), (b"SORT (SUBJECT) UTF-8 ALL",), (b"SORT (REVERSE SIZE) US-ASCII ALL",),
        (b"UID SORT RETURN (MIN MAX COUNT ALL) (DATE) UTF-8 ALL",), (b"THREAD REFERENCES UTF-8 ALL",),
        (b"THREAD ORDEREDSUBJECT US-ASCII ALL",), (b"SEARCH RETURN (MIN MAX COUNT ALL) UNSEEN",),
        (b"UID SEARCH RETURN (SAVE) SEEN",), (b"UID SEARCH UID $",), (b"SEARCH RETURN (PARTIAL 1:2) ALL",),
        (b"SEARCH YOUNGER 60",), (b"SEARCH CHARSET NONSENSE ALL",), (b"SEARCH (",), (b"SEARCH LARGER 60000",)],
    "store, copy, move": fill() + [
        (b"CREATE Kept",), (b"SELECT INBOX",), (b"STORE 1:2 +FLAGS (\\Flagged $Forwarded key{word)",),
        (b"STORE 1 +FLAGS (\\Answered NonJunk)",), (b"STORE 2 FLAGS.SILENT (\\Draft)",), (b"STORE 1 -FLAGS (NonJunk)",),
        (b"FETCH 1:* FLAGS",), (b"COPY 1:3 Kept",), (b"UID COPY 2 Kept",), (b"COPY 1 missing",), (b"MOVE 4 Kept",),
        (b"UID MOVE 5:6 ", Sync(b"Kept")), (b"STORE 1 +FLAGS (\\Deleted)",), (b"UID EXPUNGE 9",), (b"EXPUNGE",),
        (b"STORE 99 +FLAGS (x)",), (b"CLOSE",), (b"SELECT Kept",), (b"FETCH 1:* (UID FLAGS BODY.PEEK[])",),
        (b"CHECK",), (b"NOOP",)],
    "append": [
        append(b"INBOX", b"", NonSync), append(b"INBOX", b""), append(b"INBOX", b"x", NonSync),
        append(b"INBOX", LOOKS_LIKE_IMAP[0], NonSync, b"\\Seen $Keyword"), append(b"missing", LOOKS_LIKE_IMAP[1]),
        append(b"missing", LOOKS_LIKE_IMAP[1], NonSync), append(b'"IN" BOX', LOOKS_LIKE_IMAP[2], NonSync),
        (b"APPEND ", Sync(b"INBOX"), b" " + DATE + b" ", NonSync(LOOKS_LIKE_IMAP[1])), (b"APPEND INBOX",), (b"APPEND INBOX ()",),
        (b"APPEND INBOX (\\Nonsense) " + DATE + b" ", NonSync(b"a: b\r\n\r\n")), (b"APPEND INBOX \"no date\" ", NonSync(b"a: b\r\n")),
        (b"SELECT INBOX",), (b"FETCH 1:* (FLAGS INTERNALDATE BODY.PEEK[])",), append(b"INBOX", b"a: b\r\n\r\nnul\0nul"),
        append(b"INBOX", b"8: bit\r\n\r\n\xff\xfe\x80\r\n"), append(b"INBOX", b"bare\nline feeds\n\nhere\n"),
        (b"FETCH 1:* (BODY.PEEK[])",)],
    "multiappend, catenate": fill() + [
        (b"APPEND INBOX (\\Seen) " + DATE + b" ", Sync(LOOKS_LIKE_IMAP[0]), b" (\\Flagged) " + DATE + b" ",
         Sync(LOOKS_LIKE_IMAP[1]), b" () " + DATE + b" ", Sync(LOOKS_LIKE_IMAP[2])),
        (b"APPEND INBOX " + DATE + b" ", NonSync(LOOKS_LIKE_IMAP[0]), b" " + DATE + b" ", NonSync(b"")),
        (b"APPEND INBOX (\\Seen) " + DATE + b" CATENATE (URL \"/INBOX/;UID=1/;SECTION=HEADER\" TEXT ",
         Sync(b"catenated {3}\r\n"), b")"),
        (b"APPEND INBOX " + DATE + b" CATENATE (TEXT ", NonSync(b"a: b\r\n\r\n"), b" TEXT ", NonSync(b"c\r\n"), b")"),
        (b"APPEND INBOX CATENATE (URL \"/missing/;UID=1\")",),
        (b"APPEND INBOX CATENATE (URL \"/missing/;UID=1\" TEXT ", NonSync(b"t9 LOGOUT\r\n"), b")"),
        (b"SELECT INBOX",), (b"FETCH 1:* (FLAGS INTERNALDATE BODY.PEEK[])",)],
    "binary": [
        append(b"INBOX", b"a: b\r\n\r\nnul \0 \0 {3}\r\n", Sync8), append(b"INBOX", b"c: d\r\n\r\n\0", NonSync8),
        append(b"INBOX", MULTIPART), (b"SELECT INBOX",), (b"FETCH 1:* (BINARY.PEEK[] BINARY.SIZE[])",),
        (b"FETCH 3 (BINARY.PEEK[1] BINARY.PEEK[2] BINARY.SIZE[2])",), (b"FETCH 3 BINARY.PEEK[2]<2.5>",),
        (b"FETCH 3 BINARY.PEEK[9]",), (b"FETCH 1:2 BODY.PEEK[]",)],
    "enable, qresync": fill() + [
        (b"ENABLE CONDSTORE",), (b"ENABLE QRESYNC UTF8=ACCEPT X-NONSENSE",), (b"ENABLE UTF8=ACCEPT",), (b"ENABLE",),
        (b"SELECT INBOX (QRESYNC (1 1 1:8))",), (b"STORE 1 (UNCHANGEDSINCE 1) +FLAGS (x)",),
        (b"STORE 2 (UNCHANGEDSINCE 99999) +FLAGS (x)",), (b"FETCH 1:* (FLAGS) (CHANGEDSINCE 1)",),
        (b"STORE 3 +FLAGS (\\Deleted)",), (b"EXPUNGE",), (b"UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1 VANISHED)",),
        (b"SEARCH MODSEQ 2",), (b"STATUS INBOX (HIGHESTMODSEQ)",)],
    "acl, metadata, quota": [
        (b"CREATE Shared",), (b"SETACL Shared anyone lr",), (b"GETACL Shared",), (b"LISTRIGHTS Shared anyone",),
        (b"MYRIGHTS Shared",), (b"SETACL Shared ", Sync(b"user04"), b" lrs"), (b"DELETEACL Shared anyone",),
        (b"GETACL Shared",), (b"GETACL missing",), (b"SETACL Shared anyone nonsense",),
        (b"SETMETADATA Shared (/private/comment ", Sync(b"line\r\nt1 OK {3}\r\nend"), b")"),
        (b"SETMETADATA Shared (/shared/comment ", NonSync(b"* BYE"), b" /private/x \"y\")"),
        (b"GETMETADATA Shared (/private/comment /shared/comment)",),
        (b"GETMETADATA (DEPTH infinity) Shared /private",), (b"GETMETADATA (MAXSIZE 3) Shared (/private/comment)",),
        (b"SETMETADATA Shared (/private/comment NIL)",), (b"GETMETADATA Shared /private/comment",),
        (b"GETMETADATA \"\" /shared/admin",), (b"SETMETADATA Shared (nonsense \"x\")",), (b"GETQUOTAROOT INBOX",),
        (b"GETQUOTA \"User quota\"",), (b"GETQUOTA missing",), (b"SETQUOTA \"User quota\" (STORAGE 5)",)],
    "names": [
        (b"CREATE ", Sync(b"lit {3}")), (b"CREATE ", NonSync("8-bit Grüße".encode())), (b"CREATE ", Sync(b"\xff\xfe")),
        (b"CREATE \"8-bit " + "Grüße".encode() + b"\"",), (b"CREATE ", Sync(b"line\r\nbreak")),
        (b"CREATE ", NonSync(b"nul\0nul")), (b"CREATE ", Sync(b"")), (b"CREATE ", Sync(b"t1 OK [CAPABILITY X]")),
        (b"CREATE {",), (b"CREATE {3",), (b"CREATE {x}",), (b"CREATE a{3}b",), (b"CREATE \"in quotes {3}\"",),
        (b"CREATE \"back\\slash\"",), (b"CREATE \"open",), (b"CREATE \"open {3}",), (b'LIST "" "*"',),
        (b"SELECT \"in quotes {3}\"",), (b"SELECT ", Sync(b"lit {3}")), (b'LIST "" ', NonSync(b"*\0*")),
        (b"CREATE {3} ",), (b"CREATE x" + b"y" * 6000,), (b'LIST "" x*',)],
    "unknown": [
        (b"NONSENSE",), (b"nonsense with (arguments \"and\" {3+",), (b"X-COMMAND ", Sync(b"literal {3}\r\n")),
        (b"X-COMMAND ", NonSync(b"t1 OK literal {3}\r\n"), b" more"), (b"UID NONSENSE",), (b"",), (b" ",), (b"NOOP extra",),
        (b"FETCH 1 FLAGS",), (b"CLOSE",), (b"ID NIL",), (b"ID (\"name\" \"x {3}\")",),
        (b"ID (\"name\" ", Sync(b"y"), b")"), (b"ID nonsense",), (b"NOOP",), (b"GENURLAUTH x",), (b"LANGUAGE",),
        (b"noop",), (b"NoOp",), (b"SELECT INBOX",), (b"LOGOUT",)],
    "notify": fill() + [
        (b"CREATE Other",), (b"NOTIFY SET (SELECTED (MessageNew (FLAGS) MessageExpunge)) (PERSONAL (MailboxName))",),
        (b"SELECT INBOX",), append(b"Other", LOOKS_LIKE_IMAP[0]), (b"CREATE Third",), (b"NOOP",), (b"NOTIFY NONE",),
        (b"NOTIFY SET STATUS (PERSONAL (MessageNew (UID) MessageExpunge))",), append(b"Other", b"a: b\r\n\r\n"),
        (b"NOTIFY SET (NONSENSE)",), (b"NOTIFY",)],
}
# Scripts whose bytes may also be cut one by one: not those with long messages in them.
SHORT_SCRIPTS = [name for name, steps in SCRIPTS.items()
                 if sum(len(getattr(part, "octets", part)) for step in steps for part in step) < 20000]
# Dovecot now and then forgets its "+" for the literal of SETMETADATA if the header comes in pieces, directly as well.
CUT_SCRIPTS = [name for name in SCRIPTS if name != "acl, metadata, quota"]


def run(wire, steps):
    """All that the server says to the script, step by step."""
    with wire:
        return [comparable(wire.command(*step)) for step in steps]


def compare(steps, direct, through):
    assert len(direct) == len(through) == len(steps)
    for step, said_directly, said_through in zip(steps, direct, through):
        assert said_through == said_directly, f"to {step!r:.300}"


@pytest.mark.parametrize("listener", ["plain", "starttls", "tls"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_same_bytes(pair, name, listener):
    steps = SCRIPTS[name]
    compare(steps, run(pair.direct(), steps), run(pair.through(listener), steps))


@pytest.mark.parametrize("shard", ["authzid", "suffix"])
@pytest.mark.parametrize("name", ["list", "store, copy, move", "acl, metadata, quota"])
def test_same_bytes_as_master(pair, name, shard):
    """The proxy logs in to the store as a master user over TLS; the client must not be able to tell."""
    pair.route(shard)
    steps = SCRIPTS[name]
    compare(steps, run(pair.direct(), steps), run(pair.through(), steps))


@pytest.mark.parametrize("listener", ["plain", "tls"])
@pytest.mark.parametrize("name", [name for name in CUT_SCRIPTS if name in SHORT_SCRIPTS])
def test_single_bytes(pair, name, listener):
    steps = SCRIPTS[name]
    compare(steps, run(pair.direct(), steps), run(pair.through(listener, cut=single_bytes), steps))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CUT_SCRIPTS)
def test_random_chunks(pair, name, seed):
    steps = SCRIPTS[name]
    largest = 4000 if name not in SHORT_SCRIPTS else 12
    compare(steps, run(pair.direct(), steps), run(pair.through(cut=random_chunks(seed, largest)), steps))


@pytest.mark.parametrize("listener", ["plain", "tls"])
def test_continuation_before_the_end_of_the_line(pair, listener):
    """Dovecot sends its `+` as soon as it has seen the closing brace; the CRLF may come later."""
    for wire in (pair.direct(), pair.through(listener, timeout=5)):
        with wire:
            for end in ([b"\r\n"], [b"\r", b"\n"]):
                wire.send(b"a CREATE {3}")
                assert wire.read_response().startswith(b"+")
                for piece in end:
                    wire.send(piece)
                wire.send(b"Abc\r\n")
                assert b"a " in wire.read_tagged(b"a")
            assert b"Abc" in wire.command(b'LIST "" *')


READ_ONLY = [(b"SELECT INBOX",), (b"FETCH 1:* (FLAGS BODY.PEEK[])",), (b"SEARCH BODY ", NonSync(b"BYE")),
             (b'LIST "" ', NonSync(b"*")), (b"NONSENSE ", NonSync(b"t1 OK {3}\r\n")), (b"FETCH 8 BODY.PEEK[1]",),
             (b"STATUS ", NonSync(b"INBOX"), b" (MESSAGES)"), (b"SORT (SIZE) UTF-8 ALL",), (b"LOGOUT",)]


def in_one(steps):
    """A script with non-synchronizing literals as one string of bytes, and its last tag."""
    data = b""
    for number, step in enumerate(steps):
        data += b"p%d " % number
        for part in step:
            data += part.header % len(part.octets) + part.octets if isinstance(part, Sync) else part
        data += b"\r\n"
    return data, b"p%d" % (len(steps) - 1)


@pytest.mark.parametrize("cut", [whole, single_bytes, random_chunks(7)], ids=["whole", "single", "random"])
def test_pipelined(pair, cut):
    """Many commands at once, without waiting for answers. Dovecot works on some side by side: order may differ."""
    data, last_tag = in_one(READ_ONLY)
    said = []
    for wire in (pair.direct(), pair.through()):
        with wire:
            for step in fill():
                wire.command(*step)
            wire.cut = cut
            wire.send(data)
            said.append([])
            while not said[-1] or not is_tagged(said[-1][-1], last_tag):
                said[-1].append(comparable(wire.read_response()))
            assert wire.read_to_end() == b""
    assert sorted(said[1]) == sorted(said[0])


@pytest.mark.parametrize("size", [1, 4095, 4096, 65535, 65536, 1 << 20, 25 << 20])
@pytest.mark.parametrize("kind", [Sync, NonSync])
def test_append_and_fetch_of_size(pair, size, kind):
    body = (b"%09d {10}\r\n" * (size // 16 + 1) % tuple(range(size // 16 + 1)))[:size]
    for wire in (pair.direct(), pair.through("tls")):
        with wire:
            answer = wire.command(b"APPEND INBOX " + DATE + b" ", kind(body))
            assert b"\r\nt1 OK" in b"\r\n" + answer
            wire.command(b"SELECT INBOX")
            fetched = wire.command(b"FETCH 1 BODY.PEEK[]")
            # A line cut between CR and LF at the end is mended by the store.
            assert body[:-2] in fetched


def test_append_of_nothing_is_refused_alike(pair):
    steps = [append(b"INBOX", b"", Sync), append(b"INBOX", b"", NonSync), (b"STATUS INBOX (MESSAGES)",)]
    compare(steps, run(pair.direct(), steps), run(pair.through(), steps))


def idle_transcript(connect):
    """What an idling client hears while another one appends, flags and expunges; and how long the first news took."""
    with connect() as watcher, connect() as actor:
        heard = watcher.command(b"SELECT INBOX")
        watcher.send(b"idle IDLE\r\n")
        heard += watcher.read_until(lambda response: response.startswith(b"+"))
        start = time.monotonic()
        actor.command(*append(b"INBOX", LOOKS_LIKE_IMAP[0]))
        # NOOP-free from here on: all that follows is unsolicited.
        heard += watcher.read_until(lambda response: b"RECENT" in response)
        seconds = time.monotonic() - start
        actor.command(b"SELECT INBOX")
        actor.command(b"STORE 1 +FLAGS (\\Flagged)")
        heard += watcher.read_until(lambda response: b"FETCH" in response)
        actor.command(b"STORE 1 +FLAGS.SILENT (\\Deleted)")
        heard += watcher.read_until(lambda response: b"FETCH" in response)
        actor.command(b"EXPUNGE")
        heard += watcher.read_until(lambda response: b"EXPUNGE" in response)
        watcher.send(b"DONE\r\n")
        heard += watcher.read_tagged(b"idle")
        heard += watcher.command(b"NOOP")
        return comparable(heard), seconds


def test_idle_hears_at_once(pair):
    said_directly, direct_seconds = idle_transcript(pair.direct)
    said_through, through_seconds = idle_transcript(pair.through)
    assert said_through == said_directly
    assert through_seconds < direct_seconds + 1


def test_idle_over_tls_cut_in_bytes(pair):
    said_directly, _ = idle_transcript(pair.direct)
    said_through, _ = idle_transcript(lambda: pair.through("tls", cut=single_bytes))
    assert said_through == said_directly


def test_capability_after_login_is_the_stores_less_what_cannot_pass(pair):
    with pair.direct() as direct, pair.through() as through:
        for command in (b"CAPABILITY", b"capability"):
            ours, theirs = (set(wire.command(command).split(b"\r\n")[0].split()) for wire in (through, direct))
            gone = {name for name in theirs - ours}
            assert not ours - theirs
            for name in gone:
                assert name.startswith((b"AUTH=", b"COMPRESS=")) or name in (
                    b"STARTTLS", b"LOGINDISABLED", b"SASL-IR", b"UNAUTHENTICATE", b"LOGIN-REFERRALS"), name


def test_capability_in_the_answer_to_login(proxy, pair):
    """Clients that never ask again find the list in the tagged OK, the same as on request."""
    with Wire(servers.HOST, proxy.ports["plain"]) as wire:
        in_code = re.search(rb"\[CAPABILITY ([^]]*)\]", wire.login(pair.user, PASSWORD).split(b"\r\n")[-2])
        on_request = re.search(rb"\* CAPABILITY (.*)\r\n", wire.command(b"CAPABILITY"))
        assert in_code.group(1) == on_request.group(1)


def test_login_pipelined_with_commands(proxy, pair):
    """What a client sends behind its LOGIN without waiting is answered, in order."""
    with Wire(servers.HOST, proxy.ports["plain"]) as wire:
        wire.send(b"a LOGIN " + quoted(pair.user) + b" " + quoted(PASSWORD) + b"\r\nb SELECT INBOX\r\n"
                  b"c APPEND INBOX {6+}\r\na: b\r\n\r\nd NOOP\r\n")
        heard = wire.read_tagged(b"d")
        tags = [line.split()[:2] for line in heard.split(b"\r\n") if line[:2] in (b"a ", b"b ", b"c ", b"d ")]
        assert tags == [[b"a", b"OK"], [b"b", b"OK"], [b"c", b"OK"], [b"d", b"OK"]]
