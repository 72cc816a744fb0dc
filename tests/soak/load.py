"""
The load: what clients of several kinds do in one session. ROUTINES is the table. A routine gets an Actor, and says all
that goes wrong with Trouble; what it changes it enters in the ledger first.
"""
import contextlib
import random
import re
import threading
import time
import traceback

from client import Client, Trouble, fetched
from imapwire import NonSync, Sync, quoted
from letters import ID_HEADER, Letter, digest_of
from town import FOLDERS

FOLDER_LIMIT = 60  # messages in a folder; what is more is expunged by and by
UID_VALIDITY = re.compile(rb"\[UIDVALIDITY (\d+)\]")
ASK_IDS = b" (UID BODY.PEEK[HEADER.FIELDS (X-Soak)])"
PAUSE_SECONDS = 0.15  # on average, between two steps of a client
BACKED_UP_BYTES = 12_000_000
REST_SECONDS = 0.4  # and between two sessions


class Soak:
    """What all who take part share."""

    def __init__(self, town, ledger, judge, press):
        self.town, self.ledger, self.judge, self.press = town, ledger, judge, press
        self.stop = threading.Event()
        self.sessions = self.commands = 0
        self._counting = threading.Lock()

    def count(self, sessions=0, commands=0):
        with self._counting:
            self.sessions += sessions
            self.commands += commands


class Task(threading.Thread):
    """Somebody who does something, over and over, until the soak stops. Subclasses have `turn`."""

    def __init__(self, soak, name, seed):
        super().__init__(name=name, daemon=True)
        self.soak, self.source = soak, random.Random(f"{seed} {name}")

    def run(self):
        try:
            while not self.soak.stop.is_set():
                self.turn()
        except Exception:
            self.soak.judge.fail(f"{self.name} has failed:\n{traceback.format_exc()}")

    def turn(self):
        raise NotImplementedError

    def rest(self, seconds):
        """About so long, or until the soak stops."""
        self.soak.stop.wait(min(self.source.expovariate(1 / seconds), 3 * seconds))


class Actor(Task):
    """Plays one routine after the other, each time as somebody else."""

    def __init__(self, soak, name, seed):
        super().__init__(soak, name, seed)
        self.ticket = None

    def turn(self):
        routine, _, changes = self.source.choices(ROUTINES, [row[1] for row in ROUTINES])[0]
        person = self.source.choice(self.soak.town.people)
        if changes and not person.lock.acquire(blocking=False):
            return
        try:
            routine(self, person)
        except Trouble as trouble:
            self.soak.judge.hear_trouble(trouble, person.shard, f"{routine.__name__} of {person.name}")
        finally:
            if changes:
                person.lock.release()
        self.rest(REST_SECONDS)

    @contextlib.contextmanager
    def session(self, person):
        """A client that is logged in, and in the end logs out, or just closes. Some take in little at a time."""
        client = Client(self.soak.town, self.source.choice(("tls", "tls", "starttls", "plain")), ticket=self.ticket,
                        receive_buffer=self.source.choice((None, None, 4096)))
        with client:
            client.log_in(person.name, how=self.source.choice(("LOGIN", "PLAIN", "literals")))
            self.soak.count(sessions=1)
            yield client
            self.ticket = client.take_ticket()
            if self.source.random() < 0.7:
                client.log_out()

    def step(self, client, *parts):
        """A command after a moment of thought."""
        self.rest(PAUSE_SECONDS)
        self.soak.count(commands=1)
        return client.run(*parts)

    def ids(self, client, person, folder):
        """Id by UID of all messages in the selected folder. Complains of those that should not be there."""
        found = read_ids(self.step(client, b"UID FETCH 1:*" + ASK_IDS))
        for identity in found.values():
            complaint = self.soak.ledger.complaint(person.name, folder, identity)
            if complaint:
                raise Trouble("wrong", f"{identity} is in {folder}: {complaint}")
        if len(set(found.values())) < len(found):
            raise Trouble("wrong", f"two copies of one message in {folder} of {person.name}")
        return found

    def certain(self, client, person, folder):
        """The same, but only those of which is sure where they are."""
        return {uid: identity for uid, identity in self.ids(client, person, folder).items()
                if self.soak.ledger.is_certain(identity, folder)}

    def compare(self, octets):
        """A whole message that was fetched, with what was stored."""
        header = ID_HEADER.search(octets[:4096])
        identity = header.group(1).decode() if header else None
        if not self.soak.ledger.has_octets(identity, digest_of(octets)):
            raise Trouble("wrong", f"{identity} is fetched with other octets than it was stored with")

    def append(self, client, person, folder, count=1, kind=None):
        """One APPEND with so many messages; their ids."""
        letters = [self.soak.press.letter() for _ in range(count)]
        parts = []
        for letter in letters:
            flags = self.source.choice((b"", b"\\Seen", b"\\Flagged $Forwarded"))
            literal = kind or self.source.choice((Sync, NonSync))
            parts += [b" (" + flags + b") \"01-Jan-2024 12:00:00 +0000\" ", literal(letter.octets)]
        self.rest(PAUSE_SECONDS)
        with self.soak.ledger.appending(person.name, folder, letters):
            client.run(b"APPEND ", quoted(folder), *parts)
        self.soak.count(commands=1)
        return [letter.identity for letter in letters]


def read_ids(responses):
    """Id by UID."""
    found = {}
    for uid, octets in fetched(responses):
        header = ID_HEADER.match(octets)
        if not header:
            raise Trouble("wrong", f"UID {uid} has no id, but {octets[:200]!r}")
        found[uid] = header.group(1).decode()
    return found


def uid_set(uids):
    return b",".join(b"%d" % uid for uid in sorted(uids))


# Routines


def webmail(actor, person):
    """Some short sessions, as of somebody who clicks."""
    folder = actor.source.choice(FOLDERS)
    for _ in range(actor.source.randint(1, 3)):
        with actor.session(person) as client:
            actor.step(client, b'LIST "" "*"')
            client.run_all([(b"STATUS ", quoted(name), b" (MESSAGES UNSEEN UIDNEXT)") for name in FOLDERS])
            count = client.select(folder)
            if not count:
                continue
            actor.step(client, b"FETCH %d:* (UID FLAGS ENVELOPE RFC822.SIZE BODYSTRUCTURE)" % max(1, count - 9))
            for uid, octets in fetched(actor.step(client, b"FETCH %d (UID BODY.PEEK[])" % count)):
                actor.compare(octets)
                actor.step(client, b"UID STORE %d +FLAGS (\\Seen)" % uid)
            client.run_all([(b"NOOP",), (b"UNSELECT",)])


def offline(actor, person):
    """Fetches what is new in each folder, whole or part by part."""
    with actor.session(person) as client:
        for folder in FOLDERS:
            count = client.select(folder)
            validity = UID_VALIDITY.search(b"".join(client.responses)).group(1)
            known, last = person.synced.get(folder, (validity, 0))
            if known != validity:
                raise Trouble("wrong", f"UIDVALIDITY of {folder} was {known}, is {validity}")
            news = read_ids(actor.step(client, b"UID FETCH %d:*" % (last + 1) + ASK_IDS)) if count else {}
            for uid in sorted(uid for uid in news if uid > last)[:15]:
                fetch_one(actor, client, uid, news[uid])
                person.synced[folder] = (validity, uid)


def fetch_one(actor, client, uid, identity):
    letter = Letter(identity) if actor.source.random() < 0.3 else None
    if letter and letter.attachment:
        fetch_attachment(actor, client, uid, letter)
    else:
        for _, octets in fetched(actor.step(client, b"UID FETCH %d (UID FLAGS BODY.PEEK[])" % uid)):
            actor.compare(octets)


def fetch_attachment(actor, client, uid, letter):
    """The second part, piece by piece."""
    size = max(len(letter.attachment) // 5, 1000)
    for start in range(0, len(letter.attachment), size):
        answer = actor.step(client, b"UID FETCH %d (UID BODY.PEEK[2]<%d.%d>)" % (uid, start, size))
        for _, octets in fetched(answer):
            if octets != letter.attachment[start:start + size]:
                raise Trouble("wrong", f"{letter.identity}: its attachment is another one from {start} on")


def back_up(actor, person):
    """Asks for more than all buffers hold, and takes its time to read: then imapmux must make the store wait."""
    folder = actor.source.choice(FOLDERS)
    with actor.session(person) as client:
        told = b"".join(actor.step(client, b"STATUS ", quoted(folder), b" (SIZE)"))
        size = int(re.search(rb"SIZE (\d+)", told).group(1))
        if client.select(folder) and size:
            everything = [(b"FETCH 1:* (UID BODY.PEEK[])",)] * min(100, BACKED_UP_BYTES // size + 1)
            for _, octets in fetched(client.run_all(everything, before_reading=lambda: actor.rest(1))):
                actor.compare(octets)


def write(actor, person):
    """Stores mail, one by one or several in one command."""
    with actor.session(person) as client:
        for _ in range(actor.source.randint(1, 4)):
            actor.append(client, person, actor.source.choice(FOLDERS), actor.source.choice((1, 1, 1, 3)))


def organise(actor, person):
    """Searches, flags, copies, moves and expunges in one folder."""
    folder = actor.source.choice(FOLDERS)
    with actor.session(person) as client:
        client.select(folder)
        there = actor.certain(client, person, folder)
        for task in actor.source.sample((search, flag, copy, move), 3):
            if there:
                task(actor, client, folder, there)
        surplus = sorted(there)[:max(0, len(there) - FOLDER_LIMIT)]
        if surplus:
            expunge(actor, client, folder, {uid: there.pop(uid) for uid in surplus})


def search(actor, client, _, there):
    uid = actor.source.choice(sorted(there))
    answer = b"".join(actor.step(client, b"UID SEARCH HEADER X-Soak ", quoted(there[uid])))
    if b"* SEARCH %d\r\n" % uid not in answer:
        raise Trouble("wrong", f"search for {there[uid]}, which has UID {uid}: {answer!r}")


def flag(actor, client, _, there):
    uids = actor.source.sample(sorted(there), min(3, len(there)))
    keyword = actor.source.choice((b"$Label1", b"$Label2", b"\\Answered"))
    actor.step(client, b"UID STORE " + uid_set(uids) + b" +FLAGS.SILENT (" + keyword + b")")
    answer = actor.step(client, b"UID FETCH " + uid_set(uids) + b" (UID FLAGS)")
    flagged = [line for line in answer if b" FETCH (" in line and keyword in line]
    if len(flagged) < len(uids):
        raise Trouble("wrong", f"{keyword!r} was set for {uids}, now: {answer}")
    actor.step(client, b"UID STORE " + uid_set(uids) + b" -FLAGS (" + keyword + b")")


def copy(actor, client, folder, there):
    to, uids = elsewhere(actor, folder, there)
    if uids:
        with actor.soak.ledger.copying([there[uid] for uid in uids], to):
            actor.step(client, b"UID COPY " + uid_set(uids) + b" ", quoted(to))


def move(actor, client, folder, there):
    to, uids = elsewhere(actor, folder, there)
    if uids:
        with actor.soak.ledger.moving([there.pop(uid) for uid in uids], folder, to):
            actor.step(client, b"UID MOVE " + uid_set(uids) + b" ", quoted(to))


def elsewhere(actor, folder, there):
    """Another folder, and some messages of which there is no copy in it: none shall be in one folder twice."""
    to = actor.source.choice([other for other in FOLDERS if other != folder])
    free = [uid for uid in sorted(there) if actor.soak.ledger.is_absent(there[uid], to)]
    return to, actor.source.sample(free, min(3, len(free)))


def expunge(actor, client, folder, doomed):
    uids = uid_set(doomed)
    actor.step(client, b"UID STORE " + uids + b" +FLAGS.SILENT (\\Deleted)")
    with actor.soak.ledger.expunging(doomed.values(), folder):
        actor.step(client, b"UID EXPUNGE " + uids)


def rearrange(actor, person):
    """The life of a folder: created, subscribed, filled, renamed, read, deleted."""
    ledger = actor.soak.ledger
    first, second = (f"Projects/{actor.soak.press.letter().identity}{end}" for end in (" (new)", ""))
    with actor.session(person) as client:
        actor.step(client, b"CREATE ", quoted(first))
        for _ in range(actor.source.randint(0, 2)):
            actor.append(client, person, first)
        with ledger.renaming(person.name, first, second):
            actor.step(client, b"RENAME ", quoted(first), b" ", quoted(second))
        actor.step(client, b"SUBSCRIBE ", Sync(second.encode()))
        if second.encode() not in b"".join(actor.step(client, b'LSUB "" "*"')):
            raise Trouble("wrong", f"{second} was subscribed, but LSUB does not tell")
        if client.select(second):
            move(actor, client, second, actor.certain(client, person, second))
        actor.step(client, b"UNSUBSCRIBE ", NonSync(second.encode()))
        actor.step(client, b"UNSELECT")
        with ledger.deleting(person.name, second):
            actor.step(client, b"DELETE ", quoted(second))


# (who, how often, whether the folders' mail is changed: then under the person's lock)
ROUTINES = [
    (webmail, 30, False),
    (offline, 20, False),
    (back_up, 5, False),
    (write, 25, False),
    (organise, 25, True),
    (rearrange, 8, True),
]


def furnish(soak):
    """
    The folders of all, through the proxy, before the soak begins: INBOX as well, for Dovecot creates it with its first
    SELECT, and panics now and then if two of them come at once.
    """
    for person in soak.town.residents.values():
        with Client(soak.town) as client:
            client.log_in(person.name)
            client.select("INBOX")
            for folder in FOLDERS[1:] if person in soak.town.people else ():
                client.run(b"CREATE ", quoted(folder))
                client.run(b"SUBSCRIBE ", quoted(folder))
            client.log_out()


def wait_for_all(tasks, seconds):
    """Names of those that have not ended within this time."""
    deadline = time.monotonic() + seconds
    for task in tasks:
        task.join(max(0, deadline - time.monotonic()))
    return [task.name for task in tasks if task.is_alive()]
