"""
What disturbs the soak. DISTURBANCES is the table: a new kind is a row in it and the function that it names. A function
does its deed, and returns when all is as before; or, if some of it goes on by itself, it returns what to ask whether
that is over.
"""
import collections
import concurrent.futures
import contextlib
import socket
import threading
import time

import servers
import town as towns
from client import Client, Trouble
from imapwire import NonSync, quoted
from load import Task

BURST_CLIENTS = 200
AFTERMATH_SECONDS = 120
CUT_OFF_SECONDS = 30  # in which the proxy lets go of a client that has ended its half or talks nonsense

# Symptoms that users have of it, and events that imapmux logs.
OF_STORE = {"cut", "bye", "no", "unavailable", "store is down", "store is back"}
OF_REDIS = {"unavailable", "redis connection lost", "redis not connected", "proxy not confirmed"}
OF_EMPTY_REDIS = OF_REDIS | {"no route", "proxy forgotten"}
OF_LDAP = {"unavailable", "ldap connect failed", "ldap connection lost", "ldap server is down", "ldap server is back"}
NOTHING = set()

Row = collections.namedtuple("Row", "name lane play target excuses")


class Lane(Task):
    """
    Plays the rows of one lane at random moments, one at a time: each once in random order, then again. `gap_seconds`
    lie between two of them on average. It begins no more of them at `ends_at`.
    """

    def __init__(self, soak, lane, gap_seconds, ends_at, seed):
        super().__init__(soak, f"disturbances of {lane}", seed)
        self.rows = [row for row in DISTURBANCES if row.lane == lane]
        self.gap_seconds, self.ends_at = gap_seconds, ends_at
        self.bag = []

    def turn(self):
        self.bag = self.bag or self.source.sample(self.rows, len(self.rows))
        self.rest(self.gap_seconds)
        if time.monotonic() > self.ends_at:
            self.soak.stop.wait()
        else:
            play(self.soak, self.bag.pop(), self.source)


def play(soak, row, source):
    """One disturbance, of or by one of those that it may hit. What has a `shard` disturbs nobody else's users."""
    target = source.choice(row.target(soak.town))
    shard = getattr(target, "shard", None)
    window = soak.judge.begin(row.name, row.excuses, shard)
    is_over = None
    try:
        is_over = row.play(soak, source, target)
    except Trouble as trouble:
        soak.judge.hear_trouble(trouble, shard, row.name)
    finally:
        if is_over:
            threading.Thread(target=end_when, args=(soak.judge, window, is_over), daemon=True).start()
        else:
            soak.judge.end(window)


def end_when(judge, window, is_over):
    """Ends the time in which the disturbance is an excuse when all that it has set going is over."""
    try:
        servers.wait_for(is_over, f"{window.name} to be over", AFTERMATH_SECONDS)
    except servers.ServerError as problem:
        judge.fail(str(problem))
    judge.end(window)


# Stores and look-ups


def for_a_while(source, least, most):
    time.sleep(source.uniform(least, most))


def all_stores_are_up(soak):
    """For the proxy, too: one that goes up and down must answer for a while until it is taken for well."""
    return soak.town.proxy.metrics()["imapmux_stores_down"] == 0


def restart_store(soak, source, store):
    """Sessions at rest live on, with their processes, for half a minute."""
    old = towns.children_of(store.process.pid)
    store.stop()
    for_a_while(source, 0, 3)
    store.start()
    return lambda: not any(map(towns.is_running, old)) and all_stores_are_up(soak)


def kill_store(soak, source, store):
    towns.kill(store)
    for_a_while(source, 0, 3)
    store.start()
    return lambda: all_stores_are_up(soak)


def kill_some_of_store(_, source, store):
    towns.kill_some(store, source.choice(("imap", "imap", "imap-login")), source.randint(1, 5), source)


def kill_redis(_, source, town):
    towns.kill(town.redis)
    for_a_while(source, 0, 4)
    town.redis.start()
    for_a_while(source, 0, 0.5)
    town.import_routes()


def freeze_redis(_, source, town):
    town.redis.pause()
    for_a_while(source, 1, 4)
    town.redis.resume()


def freeze_ldap(_, source, town):
    town.slapd.pause()
    for_a_while(source, 1, 7)
    town.slapd.resume()


def kill_ldap(_, source, town):
    towns.kill(town.slapd)
    for_a_while(source, 0, 4)
    town.slapd.start()


# Clients


def burst(soak, source, town):
    """Very many log in at once; all must get in."""
    with concurrent.futures.ThreadPoolExecutor(BURST_CLIENTS) as clients:
        visits = [clients.submit(short_visit, soak, town.crowd[number % len(town.crowd)],
                                 source.choice(("tls", "starttls"))) for number in range(BURST_CLIENTS)]
    for visit in visits:
        visit.result()


def short_visit(soak, person, listener):
    try:
        with visitor(soak, person, listener) as client:
            client.select("INBOX")
            client.log_out()
    except Trouble as trouble:
        soak.judge.hear_trouble(trouble, person.shard, "one of a burst")


@contextlib.contextmanager
def visitor(soak, person, listener="tls"):
    """A client that is logged in."""
    with Client(soak.town, listener) as client:
        client.log_in(person.name)
        soak.count(sessions=1)
        yield client


def reset_in_command(soak, source, person):
    with visitor(soak, person) as client:
        client.select("INBOX")
        with client.troubles():
            client.send(source.choice((b"s9 UID FETCH 1:", b"s9 NOOP", b"s9 IDLE\r\n", b"s9 LIST \"\" \"*\"\r\n")))
        client.reset()


def reset_in_literal(soak, source, person):
    """What was not sent whole must not be stored: its id is in no ledger."""
    letter = soak.press.letter()
    with visitor(soak, person) as client:
        command = b"s9 APPEND INBOX " + NonSync.header % len(letter.octets) + letter.octets
        with client.troubles():
            client.send(command[:len(command) - source.randint(1, len(letter.octets) - 1)])
        client.reset()


def reset_behind_append(soak, source, person):
    """Whether it is stored is left open."""
    letter = soak.press.letter()
    with visitor(soak, person) as client, client.troubles():
        soak.ledger.appending(person.name, "INBOX", [letter]).begin()
        client.send(b"s9 APPEND INBOX " + NonSync.header % len(letter.octets) + letter.octets + b"\r\n")
        client.reset()


def reset_while_told(soak, source, person):
    """Asks for much, reads little."""
    with visitor(soak, person) as client:
        if client.select(source.choice(towns.FOLDERS)):
            with client.troubles():
                client.send(b"s9 FETCH 1:* BODY.PEEK[]\r\n")
                client.socket.recv(1000)
        client.reset()


def end_half(soak, _, person):
    """Sends commands, and the end of its stream behind them: the end comes, and before it, mostly, the answers."""
    letter = soak.press.letter()
    with visitor(soak, person, "plain") as client, client.troubles():
        change = soak.ledger.appending(person.name, "INBOX", [letter])
        change.begin()
        client.send(b"s8 NOOP\r\ns9 APPEND INBOX " + NonSync.header % len(letter.octets) + letter.octets + b"\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        client.socket.settimeout(CUT_OFF_SECONDS)
        if b"\r\ns9 OK " in client.read_to_end():
            change.finish()


def guess_password(soak, _, person):
    """Wrong names and passwords are refused as such; the right ones are taken on the same connection."""
    with Client(soak.town) as client:
        for name, password in ((person.name, "wrong"), ("nobody", "wrong"), (person.name, "wrong again")):
            try:
                client.log_in(name, password)
                soak.judge.fail(f"{name} got in with the password {password!r}")
            except Trouble as trouble:
                if trouble.symptom != "denied":
                    raise
        client.log_in(person.name)
        client.log_out()


def talk_nonsense(soak, source, town):
    """What is no IMAP, and no TLS, is shown the door."""
    listener = source.choice(("tls", "starttls", "plain"))
    with socket.create_connection((servers.HOST, town.ports[listener]), timeout=CUT_OFF_SECONDS) as stranger:
        town.count_connection()
        try:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10 + source.randbytes(20_000) + b"\r\n" * 99)
            while stranger.recv(65536):
                pass
        except TimeoutError:
            soak.judge.fail(f"nonsense on {listener} is not cut off within {CUT_OFF_SECONDS} s")
        except OSError:
            pass  # cut off


def leave_early(soak, source, person):
    """Connects, and goes while it is logged in or before."""
    with Client(soak.town, "plain") as client:
        if source.random() < 0.7:
            client.send(b"s9 LOGIN " + quoted(person.name) + b" " + quoted(towns.PASSWORD) + b"\r\n")
        client.reset()


# Who may be hit


def a_store(town):
    return list(town.stores.values())


def a_person(town):
    return town.people


def the_town(town):
    return [town]


BURST = Row("burst of logins", "servers", burst, the_town, NOTHING)
# Each row: in which lane what is done to whom, and what may follow from it.
DISTURBANCES = [
    Row("store restarted", "servers", restart_store, a_store, OF_STORE),
    Row("store killed", "servers", kill_store, a_store, OF_STORE),
    Row("processes of a store killed", "servers", kill_some_of_store, a_store, OF_STORE),
    Row("Redis killed", "servers", kill_redis, the_town, OF_EMPTY_REDIS),
    Row("Redis frozen", "servers", freeze_redis, the_town, OF_REDIS),
    Row("LDAP killed", "servers", kill_ldap, the_town, OF_LDAP),
    Row("LDAP frozen", "servers", freeze_ldap, the_town, OF_LDAP),
    BURST,
    Row("reset in a command", "clients", reset_in_command, a_person, NOTHING),
    Row("reset in a literal", "clients", reset_in_literal, a_person, NOTHING),
    Row("reset behind APPEND", "clients", reset_behind_append, a_person, NOTHING),
    Row("reset while told", "clients", reset_while_told, a_person, NOTHING),
    Row("half close", "clients", end_half, a_person, NOTHING),
    Row("wrong passwords", "clients", guess_password, a_person, NOTHING),
    Row("nonsense", "clients", talk_nonsense, the_town, NOTHING),
    Row("client leaves at login", "clients", leave_early, a_person, NOTHING),
]
