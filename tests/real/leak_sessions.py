"""
Random IMAP sessions for test_pool_leaks.py: what a client does and how it leaves, as plain data made from a seed; and
the client that plays them. A step is what follows the tag, in parts, as in test_same_bytes.py.
"""
import random
import re
import socket
import ssl
import struct
import subprocess
import types

import servers
from conftest import PASSWORD
from imapwire import Closed, NonSync, NonSync8, Sync, Sync8, Wire, is_tagged, quoted

# Templates: %M is a mailbox, %E one that exists, %N a name that may be free, %S a set of messages, %F flags, %f flags
# that are no keywords, %P a list pattern, %L a message as a literal, %B one with NUL bytes as a literal8, %W any text.
# Names and texts are atoms, quoted or literals.
#
# After these alone, and a clean end, the connection is as good as new. The store has no reason to refuse any of them.
PLAIN = [
    b"NOOP", b"NOOP", b"CHECK", b"CAPABILITY", b"NAMESPACE", b"SELECT %E", b"SELECT INBOX", b"EXAMINE %E",
    b"EXAMINE INBOX", b"IDLE", b"EXPUNGE", b"UID EXPUNGE %S", b'LIST "" %P', b'LIST "" ""', b'LSUB "" %P',
    b"STATUS %E (MESSAGES UIDNEXT UNSEEN RECENT)", b"STATUS %E (SIZE)", b"FETCH 1:* (UID FLAGS ENVELOPE)",
    b"UID FETCH %S BODY[]", b"UID FETCH %S BODY.PEEK[]<3.20>", b"UID FETCH %S FULL",
    b"UID FETCH %S (FLAGS BODYSTRUCTURE)", b"UID FETCH %S BODY.PEEK[HEADER.FIELDS (SUBJECT)]",
    b"UID FETCH %S BINARY.PEEK[]", b"UID STORE %S +FLAGS (%f)",
    b"UID STORE %S -FLAGS.SILENT (%f)", b"UID STORE %S FLAGS (%f)", b"UID STORE 1 +FLAGS (\\Deleted)",
    b"UID COPY %S %E", b"UID MOVE %S %E", b"SEARCH ALL", b"SEARCH SUBJECT %W", b"SEARCH CHARSET UTF-8 BODY %W",
    b"UID SEARCH UNSEEN", b"SEARCH $", b"SEARCH RETURN (MIN MAX COUNT ALL) SEEN", b"SORT (REVERSE SIZE) UTF-8 ALL",
    b"UID SORT (SUBJECT) UTF-8 ALL", b"THREAD REFERENCES UTF-8 ALL", b"UID THREAD ORDEREDSUBJECT US-ASCII ALL",
    b"APPEND %E %L", b"APPEND INBOX (%F) %L", b'APPEND %E (%F) "01-Jan-2024 12:00:00 +0000" %L', b"APPEND INBOX %B",
    b"SUBSCRIBE %E", b"UNSUBSCRIBE %E",
]
# Those of them that need no mailbox to be selected, for after the last of these.
LEAVING = [b"CLOSE", b"UNSELECT"]
UNSELECTED = [b"NOOP", b"CAPABILITY", b'LIST "" %P', b"STATUS %E (MESSAGES)", b"APPEND %E (%F) %L", b"SUBSCRIBE %E"]
# These the store may refuse, and whether the connection may be used again after them is left open.
OTHER = [
    b"SELECT %M", b"EXAMINE %M", b"STATUS %M (MESSAGES)", b"CLOSE", b"UNSELECT", b"FETCH %S BODY[]", b"FETCH %S FULL",
    b"STORE %S +FLAGS (%F)", b"UID STORE %S FLAGS.SILENT (%F)", b"COPY %S %M", b"UID COPY %S %M", b"MOVE %S %M",
    b"APPEND %M %L", b"CREATE %N", b"DELETE %N", b"RENAME %M %N", b"SUBSCRIBE %M", b"UNSUBSCRIBE %M",
    b"RENAME missing New/deep", b"STORE 1:* +FLAGS ($Forwarded)", b"UID STORE 1:* FLAGS (ModSeq)",
    b'LIST (SUBSCRIBED) "" %P RETURN (CHILDREN)', b'LIST "" (%P "A*") RETURN (SUBSCRIBED STATUS (MESSAGES UNSEEN))',
    b'LIST (SUBSCRIBED RECURSIVEMATCH) "" "*"', b'LIST "" %P RETURN (SPECIAL-USE)',
    b"FETCH %S (UID SNIPPET PREVIEW SAVEDATE)", b"GETQUOTAROOT %M", b'GETQUOTA "User quota"',
    b'SETQUOTA "User quota" (STORAGE 5)', b"GETACL %M", b"MYRIGHTS %M", b"LISTRIGHTS %M anyone",
    b"SETACL Archive anyone lr", b"DELETEACL Archive anyone", b"GETMETADATA %M (/private/comment /shared/comment)",
    b"SETMETADATA %M (/private/comment %W)", b'APPEND INBOX CATENATE (TEXT %L URL "/INBOX/;UID=1")',
    b"APPEND INBOX %L () %L", b"STARTTLS", b"COMPRESS DEFLATE", b"COMPRESS %W", b"LOGIN a b", b"AUTHENTICATE PLAIN",
    b"UNAUTHENTICATE", b"UID NONSENSE", b"", b" ", b"FETCH", b"SELECT", b"SEARCH (", b"NOOP extra",
    b"STATUS %M (NONSENSE)", b"LOGOUT extra",
]
# These may leave no connection behind that is used again.
TAINTING = [
    b"ENABLE CONDSTORE", b"ENABLE QRESYNC", b"ENABLE CONDSTORE QRESYNC UTF8=ACCEPT X-NONSENSE", b"ENABLE QRESYNC",
    b"SELECT INBOX (CONDSTORE)", b"EXAMINE %M (CONDSTORE)", b"SELECT INBOX (QRESYNC (1 1 1:8))",
    b"FETCH %S (FLAGS MODSEQ)", b"UID FETCH 1:* MODSEQ", b"STATUS %M (MESSAGES HIGHESTMODSEQ)",
    b"STORE %S (UNCHANGEDSINCE 1) +FLAGS (%F)", b"UID STORE 1 (UNCHANGEDSINCE 99999) FLAGS (%F)",
    b"FETCH %S (FLAGS) (CHANGEDSINCE 1)", b"UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1 VANISHED)", b"SEARCH MODSEQ 1",
    b"SORT (SIZE) UTF-8 MODSEQ 1", b"SEARCH KEYWORD $Forwarded", b"UID SEARCH UNKEYWORD sought",
    b"SORT (SIZE) UTF-8 KEYWORD sought", b"UID STORE %S +FLAGS (2024)", b"STORE %S FLAGS ($)", b'LIST "" "*" RETURN (STATUS (HIGHESTMODSEQ))',
    b"SEARCH RETURN (SAVE) ALL", b"UID SEARCH RETURN (SAVE) SEEN", b"SEARCH RETURN (SAVE COUNT) UNSEEN",
    b"SEARCH RETURN (UPDATE COUNT) ALL", b"SORT RETURN (CONTEXT ALL) (SIZE) UTF-8 ALL", b'CANCELUPDATE "a"',
    b"NOTIFY SET (SELECTED (MessageNew (FLAGS) MessageExpunge FlagChange)) (PERSONAL (MailboxName MessageNew "
    b"MessageExpunge))", b"NOTIFY SET STATUS (PERSONAL (MessageNew (UID) MessageExpunge MailboxName))",
    b"NOTIFY SET (SELECTED-DELAYED (MessageNew MessageExpunge)) (INBOXES (MessageNew MessageExpunge))", b"NOTIFY NONE",
    b"LANGUAGE", b"LANGUAGE DE", b"ID NIL", b'ID ("name" %W)', b"ID nonsense",
    b"NONSENSE", b"X-COMMAND %L", b"X-COMMAND %W (%F) %W", b"GENURLAUTH x", b"COMPARATOR", b"RESETKEY",
]
MAILBOXES = [b"INBOX", b"INBOX", b"inbox", b"Archive", b"Archive", b"Archive/2024", b"a b", b"Other", b"missing"]
EXISTING = [b"INBOX", b"INBOX", b"inbox", b"Archive", b"Other"]
FREE_NAMES = [b"New", b"New/deep", b"a b", b"Archive/2024", b"Entw&APw-rfe", b"lit {3}", b"HIGHESTMODSEQ"]
SETS = [b"1", b"1:*", b"2:3", b"*", b"1,3", b"99", b"1:2"]
FLAGS = [b"\\Seen", b"\\Flagged", b"\\Answered \\Draft", b"$Forwarded", b"\\Deleted", b"", b"ModSeq"]
SYSTEM_FLAGS = [b"\\Seen", b"\\Flagged", b"\\Answered \\Draft", b"\\Deleted", b""]
PATTERNS = [b'"*"', b"%", b"INBOX", b"Arch*", b'"Archive/%"', b'"no such"']
WORDS = [b"one", b"* BYE", b"{3}", b"MODSEQ", b"x", b"t1 OK done", b""]
MAIL = [b"Subject: one\r\n\r\nbody\r\n", b"Subject: two\r\n\r\nt1 LOGOUT\r\n* BYE {5}\r\n",
        b"a: b\r\n\r\n" + b"x" * 3000,
        b"Subject: ENABLE CONDSTORE\r\n\r\n) {3+}\r\nSELECT INBOX (CONDSTORE)\r\n", b"s: t\r\n\r\nDONE\r\n"]
# Words that are no better in the name of a mailbox: who looks for them need not know where they stand.
STICKY = re.compile(rb"MODSEQ|CONDSTORE|QRESYNC|CHANGEDSINCE|VANISHED|SAVE|UPDATE|CONTEXT|UTF8|KEYWORD", re.IGNORECASE)
# For commands that nobody waits for: they leave nothing at the store that could show up later.
HARMLESS = [b"NOOP", b"FETCH 1:* (FLAGS BODY.PEEK[])", b'LIST "" "*"', b"SEARCH ALL", b"STATUS INBOX (MESSAGES)"]


def literal_or_text(source, text):
    """The text as an atom if it can be one, quoted, or as a literal of either kind."""
    forms = [[quoted(text)], [quoted(text)], [Sync(text)], [NonSync(text)]]
    if re.fullmatch(rb"[A-Za-z0-9&/-]+", text):
        forms += [[text]] * 4
    return source.choice(forms)


PLACEHOLDERS = {
    b"%M": lambda source: literal_or_text(source, source.choice(MAILBOXES)),
    b"%E": lambda source: literal_or_text(source, source.choice(EXISTING)),
    b"%N": lambda source: literal_or_text(source, source.choice(FREE_NAMES)),
    b"%W": lambda source: literal_or_text(source, source.choice(WORDS)),
    b"%S": lambda source: [source.choice(SETS)],
    b"%F": lambda source: [source.choice(FLAGS)],
    b"%f": lambda source: [source.choice(SYSTEM_FLAGS)],
    b"%P": lambda source: [source.choice(PATTERNS)],
    b"%L": lambda source: [source.choice((Sync, NonSync))(source.choice(MAIL))],
    b"%B": lambda source: [source.choice((Sync8, NonSync8))(b"a: b\r\n\r\nnul \0 \0 {3}\r\n")],
}


def mixed_case(source, text):
    return bytes(source.choice((bytes([octet]).lower(), bytes([octet]).upper()))[0] for octet in text)


def step_of(source, template):
    parts = []
    for piece in re.split(rb"(%[A-Zf])", template):
        parts += PLACEHOLDERS[piece](source) if piece in PLACEHOLDERS else [piece]
    if source.random() < 0.15 and isinstance(parts[0], bytes):
        parts[0] = mixed_case(source, parts[0])
    return tuple(part for part in parts if part != b"")


def with_odd_spaces(source, step):
    """Blanks where the grammar has none. What a store makes of them is its own affair."""
    first, *rest = step
    return (source.choice([b" " + first, first.replace(b" ", b"  ", 1), first + b" "]), *rest)


def choose_plain(source):
    chosen = [source.choice([b"SELECT INBOX", b"SELECT INBOX", b"EXAMINE INBOX", b"EXAMINE INBOX", b"SELECT %E"])]
    chosen += [source.choice(PLAIN) for _ in range(source.randint(0, 8))]
    if source.random() < 0.3:
        chosen += [source.choice(LEAVING), *[source.choice(UNSELECTED) for _ in range(source.randint(0, 3))]]
    return chosen if source.random() < 0.95 else []


def choose_any(source):
    return [source.choice(PLAIN + 2 * TAINTING + 2 * OTHER) for _ in range(source.randint(1, 10))]


def make_session(source):
    """
    One session as data: `steps`; `end`, the name of one of ENDS; `octets`, what that end needs. `is_plain`: when it is
    over, the connection may be kept, if nothing was refused; `is_dirty`: it must not be.
    """
    kind = source.choices(["plain", "one", "any"], [45, 35, 20])[0]
    chosen = choose_any(source) if kind == "any" else choose_plain(source)
    if kind == "one":  # that it is this one that shows is seen only if nothing else does
        chosen.insert(source.randint(0, len(chosen)), source.choice(TAINTING + OTHER))
    steps = [step_of(source, template) for template in chosen]
    is_dirty = any(template in TAINTING for template in chosen)
    if kind == "any" and source.random() < 0.2:
        odd = source.randrange(len(steps))
        if steps[odd] and isinstance(steps[odd][0], bytes):
            steps[odd] = with_odd_spaces(source, steps[odd])
            is_dirty = False
    any_end = kind == "any" or (kind == "one" and source.random() < 0.3)
    end = source.choices(list(ENDS), WEIGHTS)[0] if any_end else source.choices(PLAIN_ENDS, PLAIN_WEIGHTS)[0]
    octets = cut_command(source) if end in CUT_ENDS else harmless_octets(source)
    tag_form = source.choice([b"t%d", b"t%d", b"3.%d", b"A-%d", b"%d", b"SAVED%d"])
    is_plain = kind == "plain" and not (STICKY.search(octets_of_all(steps)) or any(map(has_unconfirmed, steps)))
    return types.SimpleNamespace(listener=source.choice(["plain", "plain", "tls"]), tag_form=tag_form, steps=steps,
                                 end=end, octets=octets, is_plain=is_plain,
                                 is_dirty=is_dirty or end in DIRTY_ENDS)


def has_unconfirmed(step):
    """Whether a literal goes without the store's leave, other than mail."""
    return any(isinstance(part, NonSync) for part in step) and not step[0].strip().upper().startswith(b"APPEND")


def octets_of(tag, step):
    """A step without waiting for anything: all literals are non-synchronising, and IDLE is ended at once."""
    data = tag + b" "
    for part in step:
        if isinstance(part, Sync):
            kind = NonSync8 if isinstance(part, (Sync8, NonSync8)) else NonSync
            part = kind.header % len(part.octets) + part.octets
        data += part
    return data + b"\r\n" + (b"DONE\r\n" if is_idle(step) else b"")


def octets_of_all(steps):
    return b"".join(octets_of(b"q%d" % number, step) for number, step in enumerate(steps))


def harmless_octets(source):
    return octets_of_all([step_of(source, source.choice(HARMLESS)) for _ in range(source.randint(1, 12))])


def cut_command(source):
    """A command that is not finished: at least one octet of it, and at least one is missing."""
    templates = [template for template in PLAIN + TAINTING + OTHER if template != b"IDLE"]
    whole = octets_of(b"cut", step_of(source, source.choice(templates)))
    return whole[:source.randint(1, len(whole) - 1)]


def is_idle(step):
    return len(step) == 1 and step[0].strip().upper() == b"IDLE"


def play_step(wire, step):
    if not is_idle(step):
        return wire.command(*step)
    tag = wire.next_tag()
    wire.send(tag + b" " + step[0] + b"\r\n")
    heard = wire.read_until(lambda response: response.startswith(b"+") or is_tagged(response, tag))
    if not is_tagged(wire.last_response, tag):
        wire.send(b"DONE\r\n")
        heard += wire.read_tagged(tag)
    return heard


# How a client leaves: functions of the connection and the session. Each closes the connection.

def reset(wire):
    """Closes with RST."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


def logout(wire, _):
    wire.send(b"out LOGOUT\r\n")
    wire.read_to_end()
    wire.close()


def logout_in_capitals_and_not(wire, _):
    wire.send(b"out LoGouT\r\n")
    wire.read_to_end()
    wire.close()


def close(wire, _):
    wire.close()


def half_close(wire, _):
    """Sends no more, and hears all that there is."""
    wire.socket.shutdown(socket.SHUT_WR)
    wire.read_to_end()
    wire.close()


def pipelined_logout(wire, session):
    wire.send(session.octets + b"out LOGOUT\r\n")
    wire.read_to_end()
    wire.close()


def close_with_unread_answers(wire, session):
    wire.send(session.octets)
    wire.close()


def reset_with_unread_answers(wire, session):
    wire.send(session.octets)
    reset(wire)


def reset_at_rest(wire, _):
    reset(wire)


def cut(wire, session):
    wire.send(session.octets)
    wire.close()


def cut_and_reset(wire, session):
    wire.send(session.octets)
    reset(wire)


def half_a_literal(wire, _):
    wire.send(b"half APPEND INBOX {100}\r\n")
    if wire.read_response().startswith(b"+"):
        wire.send(b"Subject: half\r\n\r\n")
    wire.close()


def half_a_non_synchronizing_literal(wire, _):
    wire.send(b"half APPEND INBOX (\\Seen) {100+}\r\nSubject: half\r\n")
    wire.close()


def no_octet_of_a_literal(wire, _):
    wire.send(b"half APPEND INBOX {100}\r\n")
    wire.close()


def idle_not_ended(wire, _):
    wire.send(b"idle IDLE\r\n")
    wire.read_response()
    wire.close()


def idle_half_ended(wire, _):
    wire.send(b"idle IDLE\r\n")
    wire.read_response()
    wire.send(b"DON")
    wire.close()


def killed(wire, session):
    """The client's process is killed while it sends and receives."""
    wire.send(session.octets)
    wire.process.kill()
    wire.process.wait()
    wire.close()


def all_at_once(wire, session):
    """Instead of all else: login, all steps and LOGOUT in one piece."""
    wire.send(b"in LOGIN " + quoted(session.user) + b" " + quoted(PASSWORD) + b"\r\n" + octets_of_all(session.steps) +
              b"out LOGOUT\r\n")
    wire.read_to_end()
    wire.close()


ENDS = {logout: 20, logout_in_capitals_and_not: 4, close: 12, half_close: 4, pipelined_logout: 8,
        close_with_unread_answers: 6, reset_with_unread_answers: 4, reset_at_rest: 4, cut: 10, cut_and_reset: 3,
        half_a_literal: 4, half_a_non_synchronizing_literal: 3, no_octet_of_a_literal: 2, idle_not_ended: 5,
        idle_half_ended: 2, killed: 3, all_at_once: 6}
ENDS, WEIGHTS = {end.__name__: end for end in ENDS}, list(ENDS.values())
PLAIN_ENDS, PLAIN_WEIGHTS = ["logout", "logout_in_capitals_and_not", "close", "half_close"], [60, 8, 24, 8]
CUT_ENDS = ("cut", "cut_and_reset")
# The store is in the middle of something, for sure.
DIRTY_ENDS = (*CUT_ENDS, "half_a_literal", "half_a_non_synchronizing_literal", "no_octet_of_a_literal",
              "idle_half_ended")


class KillableWire(Wire):
    """A client whose socket belongs to a process of its own, for that to be killed: openssl s_client."""

    def __init__(self, port):
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(["openssl", "s_client", "-quiet", "-connect", f"{servers.HOST}:{port}"],
                                        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
        theirs.close()
        ours.settimeout(30)
        self.socket, self.cut, self.buffered, self.tag_number = ours, lambda data: [data], b"", 0
        self.greeting = self.read_response()


def play_session(proxy, user, session):
    """Plays it through the proxy. The store may end it early. Where something was refused, it is not plain."""
    session.user = user
    killable = session.end == "killed"
    wire = KillableWire(proxy.port["tls"]) if killable else proxy.wire(session.listener)
    wire.tag_form = session.tag_form
    end = ENDS[session.end]
    try:
        if end is not all_at_once:
            wire.login(user, PASSWORD)
            for step in session.steps:
                play_step(wire, step)
                if not re.match(rb"\S+ OK", wire.last_response, re.IGNORECASE):
                    session.is_plain = False
        end(wire, session)
    except (Closed, ConnectionError, ssl.SSLError):
        pass
    finally:
        wire.close()
        if killable:
            wire.process.kill()
            wire.process.wait()


def described(session):
    """The session as a person can play it again."""
    lines = [f"  by listener {session.listener}, ended by {session.end}, octets {session.octets!r:.2000}"]
    for step in session.steps:
        lines.append("  " + " ".join(f"{type(part).__name__}({part.octets!r:.300})" if isinstance(part, Sync)
                                     else repr(part)[1:] for part in step))
    return "\n".join(lines)


def seeded(seed, number):
    return random.Random(f"{seed}/{number}")
