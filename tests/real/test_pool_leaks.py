"""
Nothing of one session is left for the next one on the same connection to the store. Random sessions are played through
imapmux; after each, the same user's next session through imapmux and a fresh one directly with Dovecot answer the same
questions with the same bytes. Then: who gets a parked connection, and who must not.

IMAPMUX_LEAK_ROUNDS says how many rounds, IMAPMUX_LEAK_SEED repeats those of an earlier run.
"""
import base64
import collections
import concurrent.futures
import os
import random
import re
import subprocess
import time
import types

import pytest
import servers
from conftest import PASSWORD, SHARD_AUTHZID, SHARD_PLAIN, write_proxy_conf
from imapwire import NonSync, Sync, Wire, is_tagged, quoted
from leak_sessions import described, make_session, play_session, seeded
from pooling import PooledProxy, ProxyLog, StoreLog, log_out
from test_same_bytes import DATE, LOOKS_LIKE_IMAP, append

ROUNDS = int(os.environ.get("IMAPMUX_LEAK_ROUNDS", "100"))
SEED = int(os.environ.get("IMAPMUX_LEAK_SEED") or random.randrange(1000000))
ROUNDS_AT_ONCE = 4
NOTICED = [f"noticed{number:02}" for number in range(20)]
SETTLE_SECONDS = 10
MORE_SESSIONS = 0.15  # how often two sessions come before the questions, not one
# Of the rounds whose session was such that its connection can be kept, so many at least must have seen it again.
REUSED_SHARE = 0.8
TIMES = re.compile(rb" \(\d+\.\d{3} \+ \d+\.\d{3}( \+ \d+\.\d{3})? secs\)")


class Keeper(tuple):
    """A step of a third, direct connection, which changes things while both others look."""


LIST_STATUS = (b'LIST "" "*" RETURN (SUBSCRIBED STATUS (MESSAGES))',)
# What is left of a session would show in the answers to these. What switches something on comes last. Dovecot notes
# what LIST with STATUS has seen, for \Marked of everybody's next LIST: so the keeper asks first.
QUESTIONS = [
    Keeper(LIST_STATUS), Keeper(LIST_STATUS),
    (b"NOOP",), (b"FETCH 1 FLAGS",), (b"SEARCH $",), (b"CHECK",), (b"UNSELECT",),
    (b'LIST "" "*"',), (b'LSUB "" "*"',), (b"STATUS INBOX (MESSAGES UIDNEXT UNSEEN RECENT)",), (b"NAMESPACE",),
    LIST_STATUS,
    Keeper((b"CREATE Sudden",)), Keeper(append(b"Archive", LOOKS_LIKE_IMAP[0], NonSync)), (b"NOOP",), (b"NOOP",),
    Keeper(append(b"INBOX", LOOKS_LIKE_IMAP[1], NonSync)), Keeper(append(b"INBOX", LOOKS_LIKE_IMAP[2], NonSync)),
    Keeper((b"SELECT INBOX",)), (b"NOOP",),
    (b"EXAMINE INBOX",), (b"SEARCH $",), (b"UID SEARCH UID $",), (b"FETCH $ FLAGS",), (b"FETCH 1:* (UID FLAGS)",),
    Keeper((b"STORE * +FLAGS (\\Flagged $Sudden)",)), (b"NOOP",),
    Keeper(append(b"INBOX", LOOKS_LIKE_IMAP[0], NonSync, b"\\Seen")), (b"NOOP",),
    Keeper((b"STORE * +FLAGS.SILENT (\\Deleted)",)), Keeper((b"EXPUNGE",)), (b"NOOP",),
    Keeper((b"STORE 1:* -FLAGS ($Sudden)",)), (b"FETCH 1:* FLAGS",), (b"SEARCH ALL",),
    (b"UID SORT (ARRIVAL) UTF-8 ALL",), (b"SEARCH RETURN (COUNT) ALL",), Keeper((b"DELETE Sudden",)), (b"NOOP",),
    (b"STORE 1 +FLAGS (\\Seen)",),
    (b"EXAMINE Archive",), (b"SEARCH $",), (b"UNSELECT",), (b"CLOSE",), (b"NOOP",), (b"EXAMINE INBOX",), (b"NOOP",),
    (b"UID FETCH 1:* (FLAGS) (CHANGEDSINCE 1 VANISHED)",), (b"EXAMINE INBOX (QRESYNC (1 1))",), (b"ENABLE CONDSTORE",),
    (b"LOGOUT",),
]
PREPARED = [(b"CREATE Archive",), (b"CREATE Other",),
            *[append(b"INBOX", octets, NonSync) for octets in LOOKS_LIKE_IMAP[:3]],
            append(b"Archive", LOOKS_LIKE_IMAP[0], NonSync)]


def direct(store, user):
    wire = Wire(servers.HOST, store.port)
    wire.login(user, PASSWORD)
    return wire


@pytest.fixture(scope="module")
def users():
    return [f"leak{number:05}" for number in range(ROUNDS)]


@pytest.fixture(scope="module")
def store(folder, users):
    with servers.Dovecot(folder / "leaks-store", users={user: PASSWORD for user in users + NOTICED}) as server:
        yield server


@pytest.fixture(scope="module")
def stage(folder, certificate, store, users):
    proxy = PooledProxy(folder / "leaks-proxy", store=store, certificate=certificate, users=users,
                        pool="warm = 2  park_time = 20s")
    store_log = StoreLog(store)
    yield types.SimpleNamespace(store=store, proxy=proxy, store_log=store_log, proxy_log=ProxyLog(proxy))
    store_log.close()
    proxy.stop()


def prepared_keeper(store, user):
    wire = direct(store, user)
    for step in PREPARED:
        wire.command(*step)
    return wire


def settled(stage, user):
    """Whether nothing is left at the store of this user's but the sessions of the keeper and the two that are asked."""
    try:
        return servers.wait_for(lambda: stage.store_log.live(user) == 3, "earlier sessions to end", SETTLE_SECONDS)
    except servers.ServerError:
        return False


def ask(keeper, through, reference):
    """Puts the questions to both. Returns the transcript up to the first difference, and whether there is one."""
    told = []
    for number, question in enumerate(QUESTIONS):
        if isinstance(question, Keeper):
            keeper.command(*question)
            told.append(f"  -- meanwhile: {question!r:.100}")
            continue
        answers = [TIMES.sub(b"", wire.command(*question, tag=b"p%d" % number)) for wire in (through, reference)]
        told.append(f"  {question[0].decode()}\n    through {answers[0]!r:.2000}\n    direct  {answers[1]!r:.2000}")
        if answers[0] != answers[1]:
            return told, True
    return told, False


def play_round(stage, user, seed, number):
    """Returns the session, the kind of the connection that came after it, and what is wrong, if anything."""
    source = seeded(seed, number)
    sessions = [make_session(source) for _ in range(2 if source.random() < MORE_SESSIONS else 1)]
    told, wrong = [], None
    with prepared_keeper(stage.store, user) as keeper:
        for count, session in enumerate(sessions, 1):
            play_session(stage.proxy, user, session)
            stage.proxy_log.wait_for_ends(user, count)
        with stage.proxy.wire(source.choice(["plain", "tls"])) as through, direct(stage.store, user) as reference:
            through.login(user, PASSWORD)
            lease = stage.proxy_log.wait_for_leases(user, len(sessions) + 1)[-1]
            has_settled = settled(stage, user)
            if len(sessions) == 1 and session.is_dirty and (lease == "parked" or not has_settled):
                wrong = "a connection was kept that may not be clean"
            else:
                told, differs = ask(keeper, through, reference)
                wrong = "answers differ" if differs else None
    if wrong:
        wrong = "\n".join([f"IMAPMUX_LEAK_SEED={seed} round {number}, {user}, lease={lease}: {wrong}",
                           *[f" session\n{described(one)}" for one in sessions], " questions", *told])
    return types.SimpleNamespace(sessions=sessions, lease=lease, wrong=wrong, has_settled=has_settled)


def test_state_never_leaks(stage, users):
    print(f"\nIMAPMUX_LEAK_SEED={SEED} IMAPMUX_LEAK_ROUNDS={ROUNDS}")
    with concurrent.futures.ThreadPoolExecutor(ROUNDS_AT_ONCE) as pool:
        running = [pool.submit(play_round, stage, user, SEED, number) for number, user in enumerate(users)]
        rounds = []
        for one in concurrent.futures.as_completed(running):
            rounds.append(one.result())
            if rounds[-1].wrong:
                pool.shutdown(cancel_futures=True)
                pytest.fail(rounds[-1].wrong, pytrace=False)
    print(f"connections: {dict(collections.Counter(one.lease for one in rounds))}")
    plain = [one for one in rounds if all(session.is_plain for session in one.sessions)]
    lost = [one for one in plain if one.lease != "parked"]
    print(f"{len(plain)} rounds with plain sessions, {len(plain) - len(lost)} of them on the same connection again")
    assert len(plain) >= ROUNDS // 8
    assert len(lost) <= (1 - REUSED_SHARE) * len(plain), "\n".join(
        f"lease={one.lease}\n{described(one.sessions[-1])}" for one in lost[:5])
    # A session that begins before the last one's connection is put aside gets another one: the first stays parked.
    assert sum(not one.has_settled for one in rounds) <= 1 + ROUNDS // 50


# What is left at Dovecot by these would show: else the test above proves nothing.
LEFT_BEHIND = [b"ENABLE CONDSTORE", b"ENABLE QRESYNC", b"SELECT INBOX (CONDSTORE)", b"FETCH 1 (FLAGS MODSEQ)",
               b"STATUS INBOX (HIGHESTMODSEQ)", b"STATUS missing (HIGHESTMODSEQ)", b"FETCH 1 (FLAGS) (CHANGEDSINCE 1)",
               b"STORE 1 (UNCHANGEDSINCE 99) +FLAGS (\\Seen)", b"SEARCH MODSEQ 1",
               b"NOTIFY SET STATUS (PERSONAL (MessageNew MessageExpunge))",
               b"NOTIFY SET (SELECTED (MessageNew MessageExpunge FlagChange)) (PERSONAL (MailboxName))"]


@pytest.mark.parametrize("command", LEFT_BEHIND, ids=[row.decode() for row in LEFT_BEHIND])
def test_the_questions_notice_what_is_left(store, command):
    user = f"noticed{LEFT_BEHIND.index(command):02}"
    with prepared_keeper(store, user) as keeper, direct(store, user) as used, direct(store, user) as reference:
        used.command(b"SELECT INBOX")
        assert b" OK " in used.command(command)
        used.command(b"UNSELECT")
        assert ask(keeper, used, reference)[1]


# Who gets a parked connection

PEOPLE = ("ann", "ann2", "bob", "ann-at-store")
POOL = 'pool { warm = 0  park_time = 5m  park_per_user = 10 }\nmetrics { file = "metrics.prom"  interval = 100ms }\n'


@pytest.fixture(scope="module")
def stores(folder, certificate):
    """Two Dovecots, for the shards blue and green."""
    users = {user: PASSWORD for user in PEOPLE}
    with servers.Dovecot(folder / "parking-blue", users=users, certificate=certificate) as blue, \
            servers.Dovecot(folder / "parking-green", users=users, certificate=certificate) as green:
        yield {"blue": blue, "green": green}


class Site:
    """imapmux with a pool that is empty at first, a directory, Redis and two stores. `shard` is a shard's section."""

    def __init__(self, folder, certificate, slapd, redis, stores, shard):
        self.folder, self.slapd, self.redis, self.stores = folder, slapd, redis, stores
        folder.mkdir()
        master_file = folder / "master.password"
        master_file.write_text(servers.MASTER_PASSWORD)
        master_file.chmod(0o600)
        shards = "".join(shard.format(name=name, port=store.port, chain=certificate[0], master=servers.MASTER_USER,
                                      master_file=master_file) for name, store in stores.items())
        text, self.ports = write_proxy_conf(*certificate, slapd.uri, redis.address, POOL + shards)
        for user in PEOPLE:
            redis.call("DEL", f"imapmux:user:{{{user}}}")
        redis.route({user: "blue" for user in PEOPLE})
        self.logs = {name: StoreLog(store) for name, store in stores.items()}
        self.logins_before = {name: self.logins(name) for name in stores}
        self.proxy = servers.Imapmux(folder / "imapmux", configuration=text, ports=list(self.ports.values()))
        self.proxy_log = ProxyLog(self.proxy)

    def logins(self, shard):
        return self.logs[shard].logins(*PEOPLE)

    def logins_made(self, shard="blue"):
        """What the store has logged of this site's logins. Later ones may be missing yet."""
        return self.logins(shard) - self.logins_before[shard]

    def live(self, shard, user="ann"):
        return self.logs[shard].live(user)

    def wire(self):
        return Wire(servers.HOST, self.ports["plain"])

    def session(self, user="ann", password=PASSWORD, client_id=None):
        """A session that has begun: its connection, and how it got the one to the store."""
        before = len(self.proxy_log.leases(user.lower()))
        wire = self.wire()
        if client_id:
            assert b" OK " in wire.command(b"ID " + client_id)
        wire.login(user, password)
        return wire, self.proxy_log.wait_for_leases(user.lower(), before + 1)[-1]

    def visit(self, *args, **options):
        """A session that selects INBOX and logs out; how it got its connection."""
        wire, lease = self.session(*args, **options)
        assert b" OK " in wire.command(b"SELECT INBOX")
        assert b"out OK " in log_out(wire)
        return lease

    def wait_for_parked(self, count):
        """Until there are so many parked connections, by figures that were written after this was called."""
        path, called = self.folder / "imapmux/metrics.prom", time.time_ns()
        line = f"\nimapmux_backends_parked {count}\n"
        servers.wait_for(lambda: path.exists() and path.stat().st_mtime_ns > called and line in path.read_text(),
                         f"{count} parked connections", 10)

    def close(self):
        for log in self.logs.values():
            log.close()
        self.proxy.stop()


@pytest.fixture(scope="module")
def parking_slapd(folder):
    with servers.Slapd(folder / "parking-slapd", users={user: PASSWORD for user in PEOPLE}) as server:
        yield server


@pytest.fixture(params=[SHARD_AUTHZID], ids=["authzid"])
def site(request, folder, certificate, parking_slapd, redis, stores):
    """A test that says so gets shards of another kind: parametrize("site", [SHARD_PLAIN], indirect=True)."""
    name = re.sub(r"\W", "-", request.node.name)
    site = Site(folder / f"parking-{name}", certificate, parking_slapd, redis, stores, request.param)
    yield site
    site.close()


both_logins = pytest.mark.parametrize("site", [SHARD_PLAIN, SHARD_AUTHZID], ids=["password", "authzid"], indirect=True)


def refused(site, user, password):
    """The answer to a login, on a connection of its own."""
    with site.wire() as wire:
        return wire.command(b"LOGIN " + quoted(user) + b" " + quoted(password), tag=b"x")


@both_logins
def test_parked_for_the_same_user(site):
    """However the user tells the name and password."""
    assert site.visit() == "new"
    site.wait_for_parked(1)
    assert site.visit() == "parked"
    site.wait_for_parked(1)
    assert site.visit("ANN") == "parked"
    site.wait_for_parked(1)
    with site.wire() as wire:
        secret = base64.b64encode(b"\0ann\0" + PASSWORD.encode())
        assert is_tagged(wire.command(b"AUTHENTICATE PLAIN " + secret, tag=b"x").splitlines()[-1], b"x OK")
        assert site.proxy_log.wait_for_leases("ann", 4)[-1] == "parked"
    site.wait_for_parked(1)
    assert site.logins_made() == 1


def test_not_parked_twice(site):
    """Who has two sessions at once has two connections, and later either."""
    first, lease = site.session()
    assert lease == "new"
    second, lease = site.session()
    assert lease == "new"
    for wire in (first, second):
        log_out(wire)
    site.wait_for_parked(2)
    first, lease = site.session()
    assert lease == "parked"
    second, lease = site.session()
    assert lease == "parked"
    third, lease = site.session()
    assert lease == "new"
    for wire in (first, second, third):
        log_out(wire)
    site.wait_for_parked(3)


@both_logins
@pytest.mark.parametrize("password", ["wrong", "", PASSWORD + " ", PASSWORD.upper()])
def test_wrong_password(site, password):
    assert site.visit() == "new"
    site.wait_for_parked(1)
    assert refused(site, "ann", password).startswith(b"x NO [AUTHENTICATIONFAILED] ")
    with site.wire() as wire:
        secret = base64.b64encode(b"\0ann\0" + password.encode())
        answer = wire.command(b"AUTHENTICATE PLAIN " + secret, tag=b"x")
        assert answer.startswith(b"x NO [AUTHENTICATIONFAILED] ")
        # On the same connection of the client, at last the right one.
        wire.login("ann", PASSWORD)
        assert site.proxy_log.wait_for_leases("ann", 2)[-1] == "parked"
    site.wait_for_parked(1)
    assert site.logins_made() == 1


@both_logins
def test_other_user(site):
    with direct(site.stores["blue"], "ann") as wire:
        wire.command(b"CREATE OfAnn")
    site.visit("ann")
    site.wait_for_parked(1)
    for other in ("bob", "ann2"):
        wire, lease = site.session(other)
        assert lease == "new"
        assert b"OfAnn" not in wire.command(b'LIST "" "*"')
        log_out(wire)
    site.wait_for_parked(3)
    wire, lease = site.session("ann")
    assert lease == "parked"
    assert b"OfAnn" in wire.command(b'LIST "" "*"')
    log_out(wire)


def test_other_client_id(site):
    """A store may treat clients by what they say they are."""
    ids = [b'("name" "webmail")', b'("name" "other")', b'("name" "webmail" "version" "2")', b"NIL", None]
    leases = [site.visit(client_id=client_id) for client_id in ids[:3]]
    assert leases == ["new"] * 3
    site.wait_for_parked(3)
    assert site.visit() == "new"
    site.wait_for_parked(4)
    for client_id in ids[:3] + [None]:
        assert site.visit(client_id=client_id) == "parked"
        site.wait_for_parked(4)
    servers.wait_for(lambda: site.logins_made() == 4, "four logins in Dovecot's log")


def set_password(slapd, user, password):
    subprocess.run(["ldappasswd", "-x", "-H", slapd.uri, "-D", f"cn=admin,{servers.LDAP_BASE}", "-w", "admin-secret",
                    "-s", password, f"uid={user},ou=people,{servers.LDAP_BASE}"], check=True, capture_output=True)


def test_changed_password(site):
    """The old one opens nothing any more; what was parked under it is dropped at the first login with the new one."""
    assert site.visit() == "new"
    site.wait_for_parked(1)
    set_password(site.slapd, "ann", "changed")
    try:
        assert refused(site, "ann", PASSWORD).startswith(b"x NO [AUTHENTICATIONFAILED] ")
        wire, lease = site.session(password="changed")
        assert lease == "new"
        site.wait_for_parked(0)
        servers.wait_for(lambda: site.live("blue") == 1, "the old connection to be closed")
        log_out(wire)
        site.wait_for_parked(1)
        assert refused(site, "ann", PASSWORD).startswith(b"x NO [AUTHENTICATIONFAILED] ")
        assert site.visit(password="changed") == "parked"
    finally:
        set_password(site.slapd, "ann", PASSWORD)
    site.wait_for_parked(1)
    assert site.visit() == "new"
    site.wait_for_parked(1)


@both_logins
def test_changed_route(site):
    """The user lives on another store now: what is parked on the old one is dropped."""
    assert site.visit() == "new"
    site.wait_for_parked(1)
    for shard, old in (("green", "blue"), ("blue", "green")):
        site.redis.route({"ann": shard})
        wire, lease = site.session()
        assert lease == "new"
        assert site.proxy.events("login ok")[-1]["shard"] == shard
        site.wait_for_parked(0)
        servers.wait_for(lambda: (site.live(old), site.live(shard)) == (0, 1), "the connection to move")
        log_out(wire)
        site.wait_for_parked(1)
    assert site.visit() == "parked"


def test_changed_name_at_the_store(site):
    assert site.visit() == "new"
    site.wait_for_parked(1)
    site.redis.call("HSET", "imapmux:user:{ann}", "backend_user", "ann-at-store")
    wire, lease = site.session()
    assert lease == "new"
    servers.wait_for(lambda: (site.live("blue", "ann"), site.live("blue", "ann-at-store")) == (0, 1),
                     "the connection under the old name to be closed")
    log_out(wire)
    site.wait_for_parked(1)
    assert site.visit() == "parked"


def test_disabled_user(site):
    """Is let in no more, and keeps no connection."""
    for wire in [site.session()[0] for _ in range(2)]:
        log_out(wire)
    site.visit("bob")
    site.wait_for_parked(3)
    site.redis.call("HSET", "imapmux:user:{ann}", "state", "disabled")
    assert refused(site, "ann", PASSWORD).startswith(b"x NO [CONTACTADMIN] ")
    site.wait_for_parked(1)
    servers.wait_for(lambda: site.live("blue") == 0, "the connections of the disabled user to be closed")
    site.redis.call("HSET", "imapmux:user:{ann}", "state", "active")
    assert site.visit() == "new"
    assert site.visit("bob") == "parked"


# A connection that is used again does all that a new one does

@pytest.fixture(params=["plain", "tls"])
def again(request, site):
    """A session of ann's on a connection that was used before."""
    site.visit()
    site.wait_for_parked(1)
    wire = Wire(servers.HOST, site.ports[request.param], tls="implicit" if request.param == "tls" else None)
    wire.login("ann", PASSWORD)
    assert site.proxy_log.wait_for_leases("ann", 2)[-1] == "parked"
    yield wire
    wire.close()


def test_idle_again(site, again):
    with direct(site.stores["blue"], "ann") as actor:
        again.command(b"SELECT INBOX")
        again.send(b"idle IDLE\r\n")
        assert again.read_response().startswith(b"+")
        actor.command(*append(b"INBOX", LOOKS_LIKE_IMAP[0], NonSync))
        assert b" EXISTS" in again.read_until(lambda response: b" EXISTS" in response)
        again.send(b"DONE\r\n")
        assert is_tagged(again.read_tagged(b"idle").splitlines()[-1], b"idle OK")


@pytest.mark.parametrize("kind", [Sync, NonSync])
def test_large_append_and_partial_fetch_again(again, kind):
    count = (5 << 20) // 16
    body = b"%09d {10}\r\n" * count % tuple(range(count))
    assert len(body) == 5 << 20
    answer = again.command(b"APPEND INBOX " + DATE + b" ", kind(body), tag=b"x")
    assert is_tagged(answer.splitlines()[-1], b"x OK")
    again.command(b"SELECT INBOX")
    for offset, size in ((0, 100), (12345, 4096), (1 << 20, 1 << 20), (len(body) - 10, 100)):
        piece = body[offset:offset + size]
        fetched = again.command(b"FETCH * BODY.PEEK[]<%d.%d>" % (offset, size))
        assert b"BODY[]<%d> {%d}\r\n%s)\r\n" % (offset, len(piece), piece) in fetched
    assert body in again.command(b"FETCH * BODY.PEEK[]")
