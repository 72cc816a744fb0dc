"""
IDLE: in each watched mailbox several clients wait for mail, and a postman brings it. He brings the next message only
when all have heard of the last one: so a notification that is lost is not made good by a later one.
"""
import statistics
import time

import servers
from client import EXISTS, Client, Trouble
from load import ASK_IDS, Actor, Task, expunge, read_ids
from town import DRAIN_SECONDS

NOTIFY_SECONDS = 10  # in which a client must have heard of a new message, on a busy machine
KEPT_MESSAGES = 25
IDLE_SECONDS = 30  # before a client leaves IDLE and enters it again
POSTMAN_SECONDS = 1.0  # between two messages, on average


class Watcher(Task):
    """A client in IDLE that fetches the id of what it is told of. `visit` counts its sessions; 0 while it has none."""

    def __init__(self, soak, person, number, seed):
        super().__init__(soak, f"watcher {number} of {person.name}", seed)
        self.person, self.number = person, number
        self.visit = self.visits = 0
        self.heard = {}  # id: when
        self.count = self.last_uid = 0

    def turn(self):
        try:
            with Client(self.soak.town, ("tls", "starttls", "plain")[self.number % 3]) as client:
                client.log_in(self.person.name)
                self.soak.count(sessions=1)
                self.watch(client)
                client.log_out()
        except Trouble as trouble:
            self.soak.judge.hear_trouble(trouble, self.person.shard, self.name)
        finally:
            self.visit = 0
        self.rest(0.5)

    def watch(self, client):
        self.count = client.select("INBOX")
        self.fetch_news(client)
        self.visits += 1
        self.visit = self.visits
        while not self.soak.stop.is_set():
            if self.idle(client):
                self.fetch_news(client)

    def idle(self, client):
        """Stays in IDLE until there is news (true), or for a while."""
        with client.troubles():
            tag, client.responses = client.next_tag(), []
            client.send(tag + b" IDLE\r\n")
            client.read_until(lambda response: response.startswith(b"+"))
            self.wait_for_news(client, time.monotonic() + IDLE_SECONDS * self.source.random())
            client.send(b"DONE\r\n")
            client.read_tagged(tag)
        return self.look_at(client.responses)

    def wait_for_news(self, client, ends_at):
        while time.monotonic() < ends_at and not self.soak.stop.is_set():
            if any(EXISTS.fullmatch(response) for response in client.responses):
                return
            client.well_at = time.monotonic()
            client.poll(0.5)

    def look_at(self, responses):
        """Keeps count of the messages; whether there are new ones."""
        before = self.count
        for response in responses:
            exists = EXISTS.fullmatch(response)
            if response.endswith(b" EXPUNGE\r\n"):
                self.count, before = self.count - 1, before - 1
            elif exists and int(exists.group(1)) < self.count:
                raise Trouble("wrong", f"{self.count} messages become {exists.group(1)} without EXPUNGE")
            elif exists:
                self.count = int(exists.group(1))
        return self.count > before

    def fetch_news(self, client):
        while self.count:
            responses = client.run(b"UID FETCH %d:*" % (self.last_uid + 1) + ASK_IDS)
            now = time.monotonic()
            self.soak.count(commands=1)
            for uid, identity in read_ids(responses).items():
                self.last_uid = max(self.last_uid, uid)
                self.heard.setdefault(identity, now)
            if not self.look_at(responses):
                return


class Postman(Actor):
    """Brings mail, through the proxy or by the store's back door, and sees that all who watch hear of it."""

    def __init__(self, soak, person, watchers, seed):
        super().__init__(soak, f"postman of {person.name}", seed)
        self.person, self.watchers = person, watchers
        self.delays = []

    def turn(self):
        back_door = self.soak.town.stores[self.person.shard].port if self.source.random() < 0.3 else None
        try:
            with Client(self.soak.town, "plain" if back_door else "tls", port=back_door) as client:
                client.log_in(self.person.name)
                for _ in range(8):
                    if not self.soak.stop.is_set():
                        self.bring(client)
                self.clear(client)
                client.log_out()
        except Trouble as trouble:
            self.soak.judge.hear_trouble(trouble, self.person.shard, self.name)
        self.rest(POSTMAN_SECONDS)

    def bring(self, client):
        """One message; returns when all who were there before it have heard of it, or have left."""
        self.rest(POSTMAN_SECONDS)
        waiting = {watcher: watcher.visit for watcher in self.watchers if watcher.visit}
        identity = self.append(client, self.person, "INBOX")[0]
        brought_at = time.monotonic()
        while waiting and time.monotonic() - brought_at < NOTIFY_SECONDS + DRAIN_SECONDS:
            time.sleep(servers.POLL_SECONDS)
            for watcher, visit in list(waiting.items()):
                if identity in watcher.heard:
                    self.delays.append(max(0, watcher.heard[identity] - brought_at))
                if identity in watcher.heard or watcher.visit != visit:
                    del waiting[watcher]
        for watcher in self.watchers:
            watcher.heard.clear()
        if waiting and not self.soak.stop.is_set():
            names = [watcher.name for watcher in waiting]
            self.soak.judge.fail(f"{names} in IDLE on {self.person.shard} have not heard of {identity}")

    def clear(self, client):
        """Expunges the oldest messages, for those in IDLE to hear of that, too."""
        client.select("INBOX")
        there = self.certain(client, self.person, "INBOX")
        surplus = sorted(there)[:max(0, len(there) - KEPT_MESSAGES)]
        if surplus:
            expunge(self, client, "INBOX", {uid: there[uid] for uid in surplus})
        client.run(b"UNSELECT")


def figures(postmen):
    """How many were told, and how long that took in ms: median, most."""
    delays = [1000 * delay for postman in postmen for delay in postman.delays]
    return len(delays), statistics.median(delays or [0]), max(delays or [0])
