"""
Clients that work all the time and come back whenever they are told BYE, and what they have seen: which messages the
server has promised to keep, on which store they were, what logins were refused with.
"""
import random
import re
import threading
import time

import servers
from imapwire import Closed, Sync, Wire, quoted

PASSWORD = "secret"
PAUSE_SECONDS = 0.2  # before a client comes back: far less than people's programs take
STORE = re.compile(rb" X(BLUE|GREEN)\b")
REFUSAL = re.compile(rb"in NO (\[\w+\])")
MESSAGE = "X-Number: {number}\r\nSubject: message {number}\r\n\r\nAll of it.\r\n"


class Stay:
    """One session: its store, when it was there for the first time for sure, and when for the last."""

    def __init__(self, user, store, since):
        self.user, self.store, self.first, self.last = user, store, since, since


class Client(threading.Thread):
    """
    One program of one user, that appends messages with numbers of its own, fetches and idles. `ports` are proxies, any of
    which it may connect to.
    """

    def __init__(self, user, name, ports, over):
        super().__init__(daemon=True)
        self.user, self.label, self.ports, self.over = user, name, ports, over
        self.random = random.Random(f"{user} {name}")
        self.kept, self.uncertain = [], set()  # numbers: acknowledged, and those sent without an answer
        self.stays, self.refusals, self.byes, self.faults = [], [], [], []
        self.sent = 0

    def run(self):
        while not self.over.is_set():
            try:
                self.visit()
            except (Closed, OSError) as end:
                bye = getattr(end, "received", b"")
                if b"* BYE " in bye:
                    self.byes.append(bye)
            except Exception as fault:  # what is no end of a connection is the server's fault
                self.faults.append(f"{self.user} {self.label}: {fault!r}")
                return
            self.over.wait(PAUSE_SECONDS * self.random.random())

    def visit(self):
        with Wire(servers.HOST, self.random.choice(self.ports), timeout=120) as wire:
            stay = self.log_in(wire)
            if stay:
                self.stays.append(stay)
                self.work(wire, stay)

    def log_in(self, wire):
        answer = wire.command(b"LOGIN " + quoted(self.user) + b" " + quoted(PASSWORD), tag=b"in")
        refusal = REFUSAL.search(answer)
        if refusal:
            self.refusals.append(refusal.group(1).decode())
            return None
        store = STORE.search(answer)
        if not store:
            raise AssertionError(f"a login is answered with {answer[-300:]!r}")
        return Stay(self.user, store.group(1).decode().lower(), time.monotonic())

    def ask(self, wire, stay, *parts):
        """A command that must succeed. Whoever answers OK to it was there when it was sent."""
        sent = time.monotonic()
        answer = wire.command(*parts)
        if b" OK " not in wire.last_response:
            raise AssertionError(f"{parts[0]} is answered with {wire.last_response!r}")
        stay.last = sent
        return answer

    def work(self, wire, stay):
        self.ask(wire, stay, b"SELECT INBOX")
        while not self.over.is_set():
            self.random.choice((self.append, self.append, self.fetch, self.idle))(wire, stay)
        wire.command(b"LOGOUT")

    def append(self, wire, stay):
        number = f"{self.user}-{self.label}-{self.sent}"
        self.sent += 1
        self.uncertain.add(number)
        self.ask(wire, stay, b"APPEND INBOX ", Sync(MESSAGE.format(number=number).encode()))
        self.uncertain.remove(number)
        self.kept.append(number)

    def fetch(self, wire, stay):
        self.ask(wire, stay, b"FETCH * (UID BODY.PEEK[])" if self.kept else b"NOOP")

    def idle(self, wire, stay):
        tag, sent = wire.next_tag(), time.monotonic()
        wire.send(tag + b" IDLE\r\n")
        wire.read_until(lambda response: response[:1] == b"+")
        self.over.wait(self.random.random() / 2)
        wire.send(b"DONE\r\n")
        wire.read_tagged(tag)
        stay.last = sent


def numbers_at(store, user):
    """The numbers of all messages that a store has for a user, asked for without any proxy."""
    with Wire(servers.HOST, store.port, timeout=60) as wire:
        wire.login(user, PASSWORD)
        wire.command(b"SELECT INBOX")
        answer = wire.command(b"FETCH 1:* BODY.PEEK[HEADER.FIELDS (X-Number)]")
        return [number.decode() for number in re.findall(rb"X-Number: (\S+)", answer)]


def overlap(stays):
    """Whether a user was on one store for sure after she had been on the other for sure, and before, too."""
    blue = [stay.last for stay in stays if stay.store == "blue"]
    green = [stay.first for stay in stays if stay.store == "green"]
    return max(blue) - min(green) if blue and green and max(blue) > min(green) else None
