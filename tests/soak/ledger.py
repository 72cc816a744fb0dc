"""
The ledger: for each message, how many copies of it there must and may be, in each folder and in all. Commands are
entered before they are sent, for from then on anything may have happened; their OK makes sure of it. A command that
stays without an answer stays uncertain for ever: whoever wants to try again takes a new message.
"""
import collections
import threading

from client import Trouble


class Bounds:
    """At least, at most."""

    __slots__ = ("least", "most")

    def __init__(self):
        self.least = self.most = 0

    def allow(self, count):
        return self.least <= count <= self.most

    def __str__(self):
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


class Fate:
    """Where the copies of one message are."""

    def __init__(self, user, digest):
        self.user, self.digest = user, digest
        self.folders = collections.defaultdict(Bounds)
        self.all = Bounds()


class Change:
    """
    One command, as a context manager around it. `begun` and `done` are what it does to bounds, as (bounds, least,
    most): before it is sent, and when its OK has come. If it can be `undone`, NO means that nothing has happened.
    """

    def __init__(self, ledger, begun, done, undone=False):
        self.ledger, self.begun, self.done, self.undone = ledger, begun, done, undone

    def begin(self):
        self.ledger.apply(self.begun)

    def finish(self):
        self.ledger.apply(self.done)

    def __enter__(self):
        self.begin()

    def __exit__(self, kind, problem, trace):
        if kind is None:
            self.finish()
        elif self.undone and isinstance(problem, Trouble) and problem.symptom == "no":
            self.ledger.apply([(bounds, -least, -most) for bounds, least, most in self.begun])


class Ledger:
    """Folders are those of one user: names alone, everywhere beside the user's."""

    def __init__(self):
        self.lock = threading.Lock()
        self.fates = {}
        self.entered = 0

    def apply(self, steps):
        with self.lock:
            for bounds, least, most in steps:
                bounds.least += least
                bounds.most += most

    # Commands

    def appending(self, user, folder, letters):
        fates = [Fate(user, letter.digest) for letter in letters]
        with self.lock:
            self.fates.update((letter.identity, fate) for letter, fate in zip(letters, fates))
            self.entered += len(letters)
        return self._adding(fates, folder, undone=True)

    def copying(self, identities, to):
        return self._adding(self._of(identities), to)

    def _adding(self, fates, folder, undone=False):
        places = [bounds for fate in fates for bounds in (fate.folders[folder], fate.all)]
        return Change(self, [(place, 0, 1) for place in places], [(place, 1, 0) for place in places], undone)

    def moving(self, identities, folder, to):
        """Without an answer a message may be in either folder, or, if the store died meanwhile, in both."""
        begun, done = [], []
        for fate in self._of(identities):
            begun += [(fate.folders[folder], -1, 0), (fate.folders[to], 0, 1), (fate.all, 0, 1)]
            done += [(fate.folders[folder], 0, -1), (fate.folders[to], 1, 0), (fate.all, 0, -1)]
        return Change(self, begun, done)

    def expunging(self, identities, folder):
        places = [bounds for fate in self._of(identities) for bounds in (fate.folders[folder], fate.all)]
        return Change(self, [(place, -1, 0) for place in places], [(place, 0, -1) for place in places])

    def deleting(self, user, folder):
        begun, done = [], []
        for fate in self._in(user, folder):
            here = fate.folders[folder]
            begun += [(bounds, -here.least, 0) for bounds in (here, fate.all)]
            done += [(bounds, 0, -here.most) for bounds in (here, fate.all)]
        return Change(self, begun, done)

    def renaming(self, user, folder, to):
        begun, done = [], []
        for fate in self._in(user, folder):
            here, there = fate.folders[folder], fate.folders[to]
            begun += [(here, -here.least, 0), (there, 0, here.most)]
            done += [(here, 0, -here.most), (there, here.least, 0)]
        return Change(self, begun, done)

    def _of(self, identities):
        with self.lock:
            return [self.fates[identity] for identity in identities]

    def _in(self, user, folder):
        with self.lock:
            return [fate for fate in self.fates.values() if fate.user == user and folder in fate.folders]

    # Questions

    def is_certain(self, identity, folder):
        """Whether there is one copy in this folder, and no other copy of it is on its way there or from there."""
        with self.lock:
            here = self.fates[identity].folders[folder]
            return here.least == here.most == 1

    def is_absent(self, identity, folder):
        """Whether no copy of it can be in this folder."""
        with self.lock:
            fate = self.fates[identity]
            return folder not in fate.folders or fate.folders[folder].most == 0

    def count(self):
        """Messages of which there are copies for sure, and those of which nobody knows how many there are."""
        with self.lock:
            sure = sum(1 for fate in self.fates.values() if fate.all.least > 0)
            return sure, sum(1 for fate in self.fates.values() if fate.all.least != fate.all.most)

    def complaint(self, user, folder, identity):
        """What is wrong with a message of this id being there now, if anything is."""
        with self.lock:
            fate = self.fates.get(identity)
            if fate is None:
                return "nobody has stored it"
            if fate.user != user:
                return f"it belongs to {fate.user}"
            return None if folder not in fate.folders or fate.folders[folder].most > 0 else "it should be gone"

    def has_octets(self, identity, octets_digest):
        with self.lock:
            fate = self.fates.get(identity)
            return fate is not None and fate.digest == octets_digest

    def compare(self, user, found):
        """Complaints about all mail of this user; `found` has a Counter of folders for each id."""
        complaints = []
        with self.lock:
            mine = {identity: fate for identity, fate in self.fates.items() if fate.user == user}
        for identity in sorted(set(mine) | set(found)):
            copies = found.get(identity, collections.Counter())
            if identity not in mine:
                complaints.append(f"{identity} is in {dict(copies)}, but nobody has stored it")
                continue
            fate = mine[identity]
            if not fate.all.allow(copies.total()):
                complaints.append(f"{identity} is there {copies.total()} times, not {fate.all}: {dict(copies)}")
            complaints += [f"{identity} is in {folder} {copies[folder]} times, not {fate.folders[folder]}"
                           for folder in set(fate.folders) | set(copies)
                           if not fate.folders[folder].allow(copies[folder])]
        return complaints
