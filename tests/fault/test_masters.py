"""
Master users in a crowd: each login goes to the worker of whoever logs in, and from there to that of the user it is for.
Whatever else happens on the way, nobody gets another one's mailbox, and nobody is left behind.
"""
import base64
import concurrent.futures
import contextlib
import os
import random
import threading

import pytest

import servers
from crowd import wait_for_metrics
from imapwire import Closed, last_line_start
from stage import CAPABILITIES, PASSWORD, Gone, Store, reset, shard

ROUNDS = int(os.environ.get("IMAPMUX_MASTER_ROUNDS", "25"))
CLIENTS = 8
MASTERS = [f"master{number}" for number in range(4)]
USERS = [f"user{number}" for number in range(24)]
SOURCES = """
auth { sources = {passwd} master_users = {%s} }
passwd { file = "passwd" }
route { sources = {file} file = "routes" }
""" % ", ".join(MASTERS)
SECRET = "the store's master"
KEEPS = CAPABILITIES + b" UNSELECT"


def user_of(command):
    """For whom a login is, as a store sees it: by the store's master user, or by the user's own password."""
    assert command.startswith(b"L AUTHENTICATE PLAIN "), command
    authzid, name, password = base64.b64decode(command.split()[-1]).split(b"\0")
    if authzid:
        assert (name, password) == (b"top", SECRET.encode()), command
        return authzid
    assert password == PASSWORD.encode(), command
    return name


def tells_who(peer):
    """A store whose answers say whose mailbox it is."""
    peer.socket.settimeout(None)
    peer.greet(KEEPS)
    user = user_of(peer.until_login())
    peer.send(b"L OK [CAPABILITY %s] Logged in\r\n" % KEEPS)
    while True:
        tag, name = peer.command().split()[:2]
        if name.upper() == b"LOGOUT":
            peer.send(b"* BYE bye\r\n")
        peer.send(tag + b" OK it is " + user + b"\r\n")
        if name.upper() == b"LOGOUT":
            raise Gone


@pytest.fixture(scope="module")
def store():
    with Store(tells_who) as running:
        yield running
        running.check()


@pytest.fixture
def proxy(start, store, folder):
    (folder / "master-secret").write_text(SECRET)
    more = f'passwordless_login = master_authzid master_user = "top" master_password_file = "{folder}/master-secret"'
    return start(shard("store", store.port, more=more), users=USERS + MASTERS, workers=4, sources=SOURCES,
                 pool="warm = 2 park_time = 10m park_per_user = 2")


def login_of(choice):
    """Somebody logs in: as itself, or as another. The command, and whose mailbox it must be."""
    user = choice.choice(USERS + MASTERS)
    master = choice.choice([None, *MASTERS])
    message = f"{user}\0{master or user}\0{PASSWORD}"
    return b"in AUTHENTICATE PLAIN " + base64.b64encode(message.encode()) + b"\r\n", user.encode()


def session(proxy, choice):
    command, user = login_of(choice)
    with proxy.wire(choice.choice(["plain", "tls"])) as wire:
        wire.send(command)
        answer = wire.read_tagged(b"in")
        assert last_line_start(answer).startswith(b"in OK "), answer
        assert wire.command(b"NOOP").endswith(b" OK it is " + user + b"\r\n")
        wire.send(b"out LOGOUT\r\n")
        assert b"out OK " in wire.read_to_end()


def broken_session(proxy, choice):
    """Ends at any moment, by any side of it."""
    command, user = login_of(choice)
    cut = choice.randrange(len(command) + 20)
    wire = proxy.wire(choice.choice(["plain", "tls"]))
    with contextlib.suppress(Closed, OSError):
        wire.send(command[:cut])
        if cut > len(command) + 10:
            assert b" OK " in wire.read_tagged(b"in")
            assert wire.command(b"NOOP").endswith(user + b"\r\n")
    if choice.random() < 0.5:
        reset(wire.socket)
    wire.close()


def in_parallel(function, proxy):
    """Each client with chances of its own, the same each time."""
    def client(number):
        choice = random.Random(number)
        for _ in range(ROUNDS):
            function(proxy, choice)
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        for running in [clients.submit(client, number) for number in range(CLIENTS)]:
            running.result()


def test_everybody_gets_the_right_mailbox(proxy):
    in_parallel(session, proxy)
    assert proxy.metrics()["imapmux_handovers_total"] > CLIENTS * ROUNDS  # some move once, some not at all
    leases = [line["lease"] for line in proxy.events("login ok")]
    assert "parked" in leases and "warm" in leases


def test_nobody_is_left_behind(proxy):
    in_parallel(broken_session, proxy)
    session(proxy, random.Random(1))
    servers.wait_for(lambda: len(proxy.events("session end")) == CLIENTS * ROUNDS + 1, "all sessions to end")
    wait_for_metrics(proxy, leases_waiting=0, logins_in_flight=0)


def test_stopped_in_the_middle(proxy):
    """Sessions that are between two workers hear of the stop, too."""
    stopped, begun = threading.Event(), threading.Semaphore(0)

    def client(number):
        choice, count = random.Random(number), 0
        while not stopped.is_set():
            with contextlib.suppress(Closed, OSError, AssertionError):
                session(proxy, choice)
                count += 1
                begun.release()
        return count
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        running = [clients.submit(client, number) for number in range(CLIENTS)]
        for _ in range(CLIENTS):
            assert begun.acquire(timeout=30)
        try:
            assert proxy.stop() == 0
        finally:
            stopped.set()
        assert sum(one.result() for one in running) >= CLIENTS
