"""
Webmail: very many short sessions of few users. With the pool the store sees about one login for each user, without it
one for each session. IMAPMUX_WEBMAIL_SESSIONS says how many sessions; the figures are appended to the file that
IMAPMUX_FIGURES names.
"""
import concurrent.futures
import os
import statistics
import time

import pytest
import servers
from conftest import PASSWORD
from imapwire import NonSync, Wire
from pooling import PooledProxy, ProxyLog, StoreLog, is_sanitized, log_out
from test_same_bytes import message

SESSIONS = int(os.environ.get("IMAPMUX_WEBMAIL_SESSIONS", "400"))
USER_COUNT, MESSAGE_COUNT, ROUNDS = 20, 10, 5
# Each user's sessions come from two of these, so that a user has two sessions at once at the most: they may need two
# connections, and a third when a session begins before the last one's connection has been put aside.
CLIENT_COUNT, CLIENTS_OF_A_USER = 8, 2
GROUP_COUNT = CLIENT_COUNT // CLIENTS_OF_A_USER
LOGINS_OF_A_USER = 3
# Long enough for slow machines: nothing shall expire here.
POOLS = {"pool": "warm = 2  park_time = 10m  park_per_user = 2", "none": "warm = 0  park_time = 0s"}


def users_of(kind):
    """Each proxy has users of its own, for the store's log to tell them apart."""
    return [f"{kind}{number:02}" for number in range(USER_COUNT)]


def fill(store, user):
    """Puts the messages into the user's INBOX, directly."""
    with Wire(servers.HOST, store.port) as wire:
        wire.login(user, PASSWORD)
        parts = [part for number in range(MESSAGE_COUNT)
                 for part in (b" ", NonSync(message(f"number {number}", b"x" * 1000 + b"\r\n")))]
        assert b" OK " in wire.command(b"APPEND INBOX", *parts)


@pytest.fixture(scope="module")
def store(folder, certificate):
    passwords = {user: PASSWORD for kind in POOLS for user in users_of(kind)}
    with servers.Dovecot(folder / "webmail-store", users=passwords, certificate=certificate) as server:
        for user in passwords:
            fill(server, user)
        yield server


@pytest.fixture(scope="module")
def proxies(folder, certificate, store):
    running = {kind: PooledProxy(folder / f"webmail-{kind}", store=store, certificate=certificate,
                                 users=users_of(kind), pool=pool) for kind, pool in POOLS.items()}
    yield running
    for proxy in running.values():
        proxy.stop()


def one_session(proxy, user):
    """What webmail does to show a page of messages; how long it took, in ms."""
    start = time.monotonic()
    wire = proxy.wire()
    wire.login(user, PASSWORD)
    assert b"* %d EXISTS\r\n" % MESSAGE_COUNT in wire.command(b"SELECT INBOX")
    page = wire.command(b"FETCH 1:%d (UID FLAGS ENVELOPE BODY.PEEK[TEXT])" % MESSAGE_COUNT)
    assert page.count(b" FETCH (") == MESSAGE_COUNT
    assert b"\r\nout OK " in log_out(wire)
    return (time.monotonic() - start) * 1000


def client(proxy, kind, number, count):
    """One client after the other's users, round and round; the time of each session."""
    users = users_of(kind)[number % GROUP_COUNT::GROUP_COUNT]
    return [one_session(proxy, users[turn % len(users)]) for turn in range(count)]


def play(proxy, kind, count):
    """Sessions, shared among the clients; the time of each."""
    with concurrent.futures.ThreadPoolExecutor(CLIENT_COUNT) as clients:
        shares = [count // CLIENT_COUNT + (number < count % CLIENT_COUNT) for number in range(CLIENT_COUNT)]
        running = [clients.submit(client, proxy, kind, number, share) for number, share in enumerate(shares)]
        return [milliseconds for one in running for milliseconds in one.result()]


def shares_of_rounds():
    return [SESSIONS // ROUNDS + (number < SESSIONS % ROUNDS) for number in range(ROUNDS)]


def told(kind, times, logins):
    percentiles = statistics.quantiles(times, n=20)
    return (f"{kind}_median={statistics.median(times):.1f} {kind}_p95={percentiles[-1]:.1f} "
            f"{kind}_store_logins={logins}")


def test_webmail(store, proxies):
    """The two proxies take turns, so that what else the machine does meets both."""
    log = StoreLog(store)
    proxy_log = ProxyLog(proxies["pool"])
    servers.wait_for(lambda: log.logins(*users_of("pool"), *users_of("none")) == 2 * USER_COUNT,
                     "the logins that filled the mailboxes in Dovecot's log")
    times = {kind: [] for kind in POOLS}
    for share in shares_of_rounds():
        for kind, proxy in proxies.items():
            times[kind] += play(proxy, kind, share)

    def logins(kind):
        return log.logins(*users_of(kind)) - USER_COUNT  # less those that filled the mailboxes

    servers.wait_for(lambda: logins("none") >= SESSIONS, "a login of each session in Dovecot's log")
    servers.wait_for(lambda: len(proxy_log.leases(*users_of("pool"))) >= SESSIONS, "each session in imapmux's log")
    made = sum(lease != "parked" for lease in proxy_log.leases(*users_of("pool")))
    servers.wait_for(lambda: logins("pool") >= made, "a login of each connection that was made in Dovecot's log")
    line = (f"webmail_session_ms sessions={SESSIONS} users={USER_COUNT} "
            f"sanitized={int(is_sanitized(proxies['pool']))} " +
            " ".join(told(kind, times[kind], logins(kind)) for kind in POOLS))
    print("\n" + line)
    if os.environ.get("IMAPMUX_FIGURES"):
        with open(os.environ["IMAPMUX_FIGURES"], "a") as figures:
            figures.write(line + "\n")
    assert logins("none") == SESSIONS
    assert logins("pool") == made
    assert logins("pool") <= LOGINS_OF_A_USER * USER_COUNT
    log.close()
