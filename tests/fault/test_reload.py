"""
Another configuration for a running process: each kind of change counts for the next login, sessions notice nothing, and
a file that is not good leaves all as it was.
"""
import contextlib
import errno
import json
import re
import signal
import socket
import subprocess
import threading

import pytest

import servers
from crowd import wait_for_metrics
from host import Host
from imapwire import Wire
from stage import FILES, PASSWORD, Proxy, Store, good, password_line, shard
from test_admin import FAILED, ctl, done
from test_no_memory import NEVER, Control, Starving, shim  # noqa: F401

ADMIN = 'admin { socket = "admin.sock" }\n'
QUICK = "connect_timeout = 20s login_timeout = 20s drain_time = 200ms"


def named(name):
    """The script of a store that says its name."""
    def script(peer):
        peer.greet()
        peer.until_login()
        peer.send(b"L OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID IDLE AUTH=PLAIN] " + name + b"\r\n")
        peer.serve()
    return script


@pytest.fixture(scope="module")
def stores():
    with Store(named(b"first")) as first, Store(named(b"second")) as second:
        yield first, second
        first.check()
        second.check()


@pytest.fixture
def begin(start, stores):
    running = []

    def begin_one(more="", shards=None, **options):
        text = shard("store", stores[0].port, more=QUICK) if shards is None else shards
        options = {"workers": 2, "pool": "warm = 1 park_time = 1m", **options}
        running.append(start(text, more=ADMIN + more, **options))
        return running[-1]

    yield begin_one
    for proxy in running:
        proxy.stop()


def path_of(proxy):
    return proxy.folder / "proxy.conf"


class Linked(Proxy):
    """Its proxy.conf is a symbolic link."""

    def prepare(self, **options):
        super().prepare(**options)
        path_of(self).rename(self.folder / "first.conf")
        path_of(self).symlink_to("first.conf")


def change(proxy, *replacements, more=""):
    """Writes another proxy.conf: each of the pairs (old, new) must be in it."""
    text = path_of(proxy).read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    path_of(proxy).write_text(text + more)


def reloaded(proxy, *replacements, more=""):
    change(proxy, *replacements, more=more)
    return json.loads(done(proxy, "reload", "--json"))


def refused(proxy, *replacements, more=""):
    """The same with one that is not good: what is said. The old file is back afterwards."""
    before = path_of(proxy).read_text()
    change(proxy, *replacements, more=more)
    result = ctl(proxy, "reload")
    assert result.returncode == FAILED, result
    path_of(proxy).write_text(before)
    return result.stderr


def login_text(proxy, user="alice", listener="plain", password=PASSWORD):
    """The answer to a login, with what the store says."""
    with proxy.wire(listener) as wire:
        return wire.command(f"LOGIN {user} {password}".encode())


def all_have_left(proxy):
    wait_for_metrics(proxy, **{'sessions{phase="relay"}': 0})


EVERYBODY = 'trusted = {"127.0.0.0/8", "10.0.0.0/8"}'
LOGIN = 'login { greeting = "another one." }\n'


def test_what_has_changed_is_told_and_counts(begin):
    proxy = begin()
    assert reloaded(proxy, more=LOGIN) == {"changed": ["login greeting"], "needs_restart": []}
    with proxy.wire() as wire:
        assert b"another one." in wire.greeting
    assert proxy.events("reloaded")[-1]["changed"] == "login greeting"
    assert reloaded(proxy) == {"changed": [], "needs_restart": []}


def test_what_needs_a_new_process_stays_and_is_told_each_time(begin):
    proxy = begin()
    for _ in range(2):
        told = reloaded(proxy, more="")
        change(proxy, ("workers = 2", "workers = 3"))
        told = reloaded(proxy)
        assert told == {"changed": [], "needs_restart": ["process workers"]}
        change(proxy, ("workers = 3", "workers = 2"))
    assert b"first" in login_text(proxy)


def test_by_signal(begin):
    proxy = begin()
    change(proxy, more=LOGIN)
    proxy.process.send_signal(signal.SIGHUP)
    proxy.wait_for_event("reloaded")
    with proxy.wire() as wire:
        assert b"another one." in wire.greeting


def test_by_a_link_that_leads_elsewhere(begin):
    """As in a volume of Kubernetes: the file that the process was started with is gone when there is another one."""
    proxy = begin(kind=Linked)
    (proxy.folder / "second.conf").write_text(path_of(proxy).read_text() + LOGIN)
    (proxy.folder / "next").symlink_to("second.conf")
    (proxy.folder / "next").rename(path_of(proxy))
    (proxy.folder / "first.conf").unlink()
    assert reloaded(proxy)["changed"] == ["login greeting"]
    assert json.loads(done(proxy, "status", "--json"))["configuration"] == str(path_of(proxy))


# --- what counts for the next login ---

def test_shards_come_change_and_go(begin, stores):
    proxy = begin(routes={"bob": "store"})
    first, second = stores
    assert b"first" in login_text(proxy) and b"first" in login_text(proxy, "bob")

    (proxy.folder / "routes").write_text("bob red\n* store\n")
    told = reloaded(proxy, more=shard("red", second.port, more=QUICK))
    assert told["changed"] == ["route file (its content)", 'shard "red" (new)']
    assert b"first" in login_text(proxy) and b"second" in login_text(proxy, "bob")
    rows = json.loads(done(proxy, "shard", "list", "--json"))
    assert [row["shard"] for row in rows] == ["store", "red"]

    stays, goes = proxy.logged_in("alice"), proxy.logged_in("bob")
    told = reloaded(proxy, (f"{servers.HOST}:{first.port}", f"{servers.HOST}:{second.port}"))
    assert told["changed"] == ['shard "store" address']
    assert b"second" in login_text(proxy)

    (proxy.folder / "routes").write_text("* store\n")
    told = reloaded(proxy, (shard("red", second.port, more=QUICK), ""))
    assert told["changed"] == ["route file (its content)", 'shard "red" (removed)']
    assert b"* BYE [UNAVAILABLE]" in goes.read_to_end()
    assert b"NOOP done" in stays.command(b"NOOP")
    assert b"second" in login_text(proxy, "bob")
    stays.close()

    (proxy.folder / "routes").write_text("bob red\n* store\n")
    reloaded(proxy, more=shard("red", first.port, more=QUICK))
    assert b"first" in login_text(proxy, "bob") and b"second" in login_text(proxy)


def test_connections_of_a_changed_shard_are_not_kept(begin):
    with Store(Host()) as store:
        proxy = begin(shards=shard("store", store.port, more=QUICK), pool="warm = 0 park_time = 1m")
        lent, parks = proxy.logged_in("bob"), proxy.logged_in()
        parks.command(b"LOGOUT")
        wait_for_metrics(proxy, backends_parked=1)
        reloaded(proxy, more=LOGIN)
        assert proxy.metrics()["imapmux_backends_parked"] == 1, "nothing has changed for its shard"
        reloaded(proxy, ("drain_time = 200ms", "drain_time = 300ms"))
        wait_for_metrics(proxy, backends_parked=0)
        assert b"NOOP done" in lent.command(b"NOOP")
        lent.command(b"LOGOUT")
        wait_for_metrics(proxy, backends_open=0, backends_parked=0)
        store.check()


def test_a_shard_whose_route_is_gone_is_refused(begin, stores):
    """The route of Redis, or of a directory, may lead to a shard that was removed: as to one that never was."""
    proxy = begin(shards=shard("store", stores[0].port, more=QUICK) + shard("red", stores[1].port, more=QUICK),
                  sources=FILES.replace('file = "routes"', 'default_shard = red').replace("{file}", "{default}"))
    with proxy.wire() as early:
        assert b"second" in login_text(proxy)
        told = reloaded(proxy, ("default_shard = red", "default_shard = store"),
                        (shard("red", stores[1].port, more=QUICK), ""))
        assert told["changed"] == ["route default_shard", 'shard "red" (removed)']
        assert b"first" in early.command(b"LOGIN alice secret")


def test_weight_replica_and_state_follow(begin, stores):
    proxy = begin()
    second = shard("twin", stores[1].port, more=QUICK)
    reloaded(proxy, ("drain_time = 200ms", "drain_time = 200ms replica = twin weight = 7"), more=second)
    rows = {row["shard"]: row for row in json.loads(done(proxy, "shard", "list", "--json"))}
    assert (rows["store"]["weight"], rows["store"]["replica"]) == (7, "twin")
    done(proxy, "shard", "drain", "store")
    assert b"second" in login_text(proxy)
    reloaded(proxy, (" replica = twin", ""))
    assert b"first" in login_text(proxy)
    done(proxy, "shard", "weight", "store", "9")
    reloaded(proxy, ("weight = 7", "weight = 8"))
    rows = {row["shard"]: row for row in json.loads(done(proxy, "shard", "list", "--json"))}
    assert (rows["store"]["weight"], rows["store"]["state"]) == (9, "drain"), "what operators say counts"


def test_passwords_come_from_another_file(begin):
    proxy = begin()
    early = proxy.wire()
    (proxy.folder / "others").write_text(password_line("alice", "another"))
    (proxy.folder / "others").chmod(0o600)
    told = reloaded(proxy, ('file = "passwd"', 'file = "others"'))
    assert told["changed"] == ["passwd file"]
    assert b" NO " in early.command(b"LOGIN alice secret")
    assert b" OK " in early.command(b"LOGIN alice another")
    early.close()


def test_what_is_remembered_stays_unless_its_sources_change(begin):
    proxy = begin("auth_cache { ttl = 1h }\n")
    hits = "imapmux_auth_cache_total{result=\"hit\"}"

    def is_remembered():
        before = proxy.metrics()[hits]
        assert b" OK " in login_text(proxy)
        return proxy.metrics()[hits] > before
    assert not is_remembered() and is_remembered()
    reloaded(proxy, more=LOGIN)
    assert is_remembered()
    reloaded(proxy, ("auth { sources = {passwd} }", "auth { sources = {passwd} timeout = 9s }"))
    assert not is_remembered() and is_remembered()


def test_limits_and_throttle(begin):
    proxy = begin("limits { per_user = 1 }\n")
    with proxy.logged_in():
        assert b"NO [LIMIT]" in login_text(proxy)
        assert reloaded(proxy, ("per_user = 1", "per_user = 2"))["changed"] == ["limits per_user"]
        with proxy.logged_in():
            assert b"NO [LIMIT]" in login_text(proxy)
    all_have_left(proxy)
    reloaded(proxy, ("per_user = 2", "per_user = 0 per_user_address = 1"))
    with proxy.logged_in():
        assert b"NO [LIMIT]" in login_text(proxy)
        reloaded(proxy, ("per_user = 0 per_user_address = 1", "per_user = 0"))
    all_have_left(proxy)
    reloaded(proxy, ("per_user = 0", "per_user_address = 1"))
    with proxy.logged_in():
        assert b"NO [LIMIT]" in login_text(proxy), "nothing is counted that has gone, and nothing twice"
    told = reloaded(proxy, ('trusted = {"127.0.0.0/8"}', "free_failures = 0 delay = 300ms max_parallel = 1"))
    assert told["changed"] == ["throttle free_failures", "throttle delay", "throttle max_parallel", "throttle trusted"]
    delayed = 'imapmux_throttle_total{what="delayed"}'
    before = proxy.metrics()[delayed]
    for password in ("wrong", "worse"):
        assert b" NO " in login_text(proxy, password=password)
    assert proxy.metrics()[delayed] == before + 1


def test_names_and_capabilities(begin):
    proxy = begin()
    assert b" NO " in login_text(proxy, "alice@example.org")
    told = reloaded(proxy, more='username { domain_map = {"example.org="} }\n'
                                'capability { remove = {"ID"} add = {"XYZ"} }\n')
    assert told["changed"] == ["capability remove", "capability add", "username domain_map"]
    with proxy.wire() as wire:
        answer = wire.command(b"LOGIN alice@example.org secret")
    assert b" XYZ]" in answer and b" ID " not in answer


def test_the_log_and_metrics(begin):
    proxy = begin()
    done(proxy, "log", "level", "warning")
    reloaded(proxy, more=LOGIN)
    assert done(proxy, "log", "level").strip() == "warning", "an operator's word counts while the file is the same"
    reloaded(proxy, ("level = info", "level = debug"), ('"metrics.prom"', '"others.prom"'))
    assert done(proxy, "log", "level").strip() == "debug"
    servers.wait_for((proxy.folder / "others.prom").exists, "metrics at their new place")
    reloaded(proxy, ("level = debug", "level = info format = json"))
    login_text(proxy)
    servers.wait_for(lambda: any(line.startswith("{") for line in proxy.output().splitlines()), "a line of JSON")
    reloaded(proxy, ("format = json", ""), ('"others.prom"', '"metrics.prom"'))


def test_certificates(begin, folder):
    proxy = begin()

    def serial(listener="tls"):
        with proxy.wire(listener) as wire:
            return wire.socket.getpeercert(binary_form=True)

    old = serial()
    with proxy.logged_in(listener="tls") as stays:
        chain, key = servers.make_certificate(folder, name="renewed")
        text = path_of(proxy).read_text()
        begin_at = text.index("certificate main")
        before = text[begin_at:text.index("}", begin_at)]
        told = reloaded(proxy, (before, f'certificate main {{ chain = "{chain}" key = "{key}" '))
        assert told["changed"] == ['certificate "main" chain', 'certificate "main" key']
        assert serial() != old and serial("starttls") == serial()
        old = serial()
        servers.make_certificate(folder, name="renewed")
        told = reloaded(proxy)
        assert told["changed"] == ['certificate "main" chain (its content)', 'certificate "main" key (its content)']
        assert serial() != old
        old = serial()
        assert reloaded(proxy, more="tls { watch = 100ms }\n")["changed"] == ["tls watch"]
        servers.make_certificate(folder, name="renewed")  # which is found without a reload now
        proxy.wait_for_event("certificates read")
        assert serial() != old
        assert b"NOOP done" in stays.command(b"NOOP")


def is_refused(port):
    """Not reset, as one that came just before the end of the socket is."""
    with socket.socket() as peer, contextlib.suppress(ConnectionResetError):
        return peer.connect_ex((servers.HOST, port)) == errno.ECONNREFUSED


def test_listeners_come_change_and_go(begin):
    proxy = begin()
    port = servers.free_port()
    more = f'listener more {{ address = {{"{servers.HOST}:{port}"}} tls = none plaintext_login = yes }}\n'
    assert reloaded(proxy, more=more)["changed"] == ['listener "more" (new)']
    proxy.port["more"] = port
    proxy.wire = lambda listener="plain", **options: type(proxy).wire(proxy, listener, **options) \
        if listener != "more" else Wire(servers.HOST, port, **options)
    stays = proxy.wire("more")
    assert b" OK " in stays.command(b"LOGIN alice secret")
    told = reloaded(proxy, (more, more.replace("plaintext_login = yes", "plaintext_login = no")))
    assert told["changed"] == ['listener "more" plaintext_login']
    with proxy.wire("more") as wire:
        assert b"LOGINDISABLED" in wire.greeting
    told = reloaded(proxy, (more.replace("plaintext_login = yes", "plaintext_login = no"), ""))
    assert told["changed"] == ['listener "more" (removed)']
    servers.wait_for(lambda: is_refused(port), "the socket to be closed")
    assert b"NOOP done" in stays.command(b"NOOP")
    stays.close()
    assert b"first" in login_text(proxy)


def test_checks_of_the_stores(begin, stores):
    """Checks begin, find out what has gone, and end with the shard, or with all of them."""
    proxy = begin()
    gone = servers.free_port()
    more = shard("gone", gone, more=QUICK)
    reloaded(proxy, ("interval = 0s", "interval = 100ms timeout = 1s fall = 1"), more=more)
    wait_for_metrics(proxy, stores_down=1)
    reloaded(proxy, more=LOGIN)
    assert proxy.metrics()["imapmux_stores_down"] == 1, "what was found counts on"
    assert len(proxy.events("store is down")) == 1
    reloaded(proxy, (f"{servers.HOST}:{gone}", f"{servers.HOST}:{stores[1].port}"))
    wait_for_metrics(proxy, stores_down=0)
    reloaded(proxy, (f"{servers.HOST}:{stores[1].port}", f"{servers.HOST}:{gone}"))
    wait_for_metrics(proxy, stores_down=1)
    reloaded(proxy, (shard("gone", gone, more=QUICK), ""))
    assert proxy.metrics()["imapmux_stores_down"] == 0 and proxy.metrics()["imapmux_store_addresses_down"] == 0
    reloaded(proxy, ("interval = 100ms timeout = 1s fall = 1", "interval = 0s"))
    assert b"first" in login_text(proxy)


# --- what is not good ---

def test_a_bad_file_leaves_all_as_it_was(begin, stores):
    proxy = begin()
    path, taken = path_of(proxy), Store(good)
    lines = path.read_text().splitlines()

    def line_of(text):
        return 1 + next(number for number, line in enumerate(path.read_text().splitlines()) if text in line)

    (proxy.folder / "empty.pem").write_text("")
    (proxy.folder / "bad-routes").write_text("alice nowhere\n")
    key = next(line for line in lines if line.startswith("certificate"))
    cases = [
        ([("log {", "log { lvl = info ")], line_of("log {"), 'has no setting "lvl"'),
        ([("level = info", "level = loud")], line_of("log {"), "loud"),
        ([(key, 'certificate main { chain = "empty.pem" }')], line_of("certificate main"), "empty.pem"),
        ([('file = "passwd"', 'file = "nowhere"')], line_of('file = "passwd"'), "nowhere"),
        ([("sources = {passwd}", 'sources = {ldap} }\nldap { uri = {"ldap://127.0.0.1"} base = "%{nobody}"')],
         line_of("sources = {passwd}") + 1, "nobody"),
        ([(f":{proxy.port['tls']}\"", f":{taken.port}\"")], line_of("listener imaps"), "in use"),
    ]
    with proxy.logged_in() as stays:
        for replacements, line, words in cases:
            said = refused(proxy, *replacements)
            assert words in said and f"proxy.conf:{line}: " in said, (replacements, said)
        said = refused(proxy, ('file = "routes"', 'file = "bad-routes"'))
        assert "bad-routes:1: " in said
        assert b"NOOP done" in stays.command(b"NOOP")
        for listener in ("plain", "starttls", "tls"):
            assert b"first" in login_text(proxy, listener=listener)
    assert len(proxy.events("reload failed")) == len(cases) + 1 and not proxy.events("reloaded")
    said = refused(proxy, (f":{proxy.port['tls']}\"", f":{taken.port}\""), more=shard("red", stores[0].port))
    assert "in use" in said
    taken.close()
    assert reloaded(proxy, more=shard("blue", stores[0].port))["changed"] == ['shard "blue" (new)']
    assert {row["shard"] for row in json.loads(done(proxy, "shard", "list", "--json"))} == {"store", "blue"}
    assert json.loads(done(proxy, "shard", "weight", "blue", "3", "--json"))["shard"] == "blue"


def test_one_at_a_time(begin):
    """A file that cannot be read yet, for it comes through a pipe."""
    proxy = begin()
    pipe = proxy.folder / "pipe"
    subprocess.run(["mkfifo", pipe], check=True)
    change(proxy, more='include("pipe")\n')
    proxy.process.send_signal(signal.SIGHUP)
    for count in (1, 2):
        with open(pipe, "w") as file:  # which waits for who reads it
            if count == 1:
                assert "under way" in ctl(proxy, "reload").stderr
                proxy.process.send_signal(signal.SIGHUP)
                assert b"first" in login_text(proxy)
            file.write(LOGIN.replace("another", f"another {count}"))
        servers.wait_for(lambda: len(proxy.events("reloaded")) == count, "the reload")
    with proxy.wire() as wire:
        assert b"another 2" in wire.greeting


def test_not_while_it_ends(begin):
    proxy = begin()
    with proxy.logged_in() as stays:
        done(proxy, "drain", "1h")
        result = ctl(proxy, "reload")
        assert result.returncode == FAILED and "about to end" in result.stderr
        assert b"NOOP done" in stays.command(b"NOOP")


# --- under load ---

RELOADS = 10


class Logins(threading.Thread):
    """Logs in, says NOOP, and logs out, again and again."""

    def __init__(self, proxy, number):
        super().__init__(daemon=True)
        self.proxy, self.listener, self.enough = proxy, ("plain", "starttls", "tls")[number % 3], threading.Event()
        self.count, self.failure = 0, None
        self.start()

    def run(self):
        try:
            while not self.enough.is_set():
                with self.proxy.logged_in(("alice", "bob")[self.count % 2], self.listener) as wire:
                    assert b"NOOP done" in wire.command(b"NOOP")
                    wire.command(b"LOGOUT")
                self.count += 1
        except Exception as failure:  # told by `end`
            self.failure = failure

    def end(self):
        self.enough.set()
        self.join(60)
        assert self.failure is None, self.failure
        return self.count


class Busy(Logins):
    """One session that never rests."""

    def run(self):
        try:
            with self.proxy.logged_in("alice", self.listener) as wire:
                while not self.enough.is_set():
                    assert b"NOOP done" in wire.command(b"NOOP")
                    self.count += 1
        except Exception as failure:
            self.failure = failure


def test_ten_reloads_under_load(begin, stores, folder):
    """Of everything at once, there and back: nobody is dropped or refused, and nothing is left of a generation."""
    proxy = begin(pool="warm = 2 park_time = 1m")
    (proxy.folder / "others").write_text((proxy.folder / "passwd").read_text())
    (proxy.folder / "others").chmod(0o600)
    chain, key = servers.make_certificate(folder, name="second")
    text = path_of(proxy).read_text()
    begin_at = text.index("certificate main")
    certificate = text[begin_at:text.index("}", begin_at)]
    port = servers.free_port()
    more = (f'listener more {{ address = {{"{servers.HOST}:{port}"}} tls = none plaintext_login = yes }}\n' +
            shard("red", stores[1].port, more=QUICK))
    there = [(certificate, f'certificate main {{ chain = "{chain}" key = "{key}" '),
             ('file = "passwd"', 'file = "others"'),
             ("drain_time = 200ms", "drain_time = 300ms max_connections = 500"),
             ("interval = 0s", "interval = 100ms"), ("warm = 2", "warm = 1"), ('trusted = {"127.0.0.0/8"}', EVERYBODY)]
    idle = [proxy.logged_in(("alice", "bob")[number % 2], ("plain", "starttls", "tls")[number % 3])
            for number in range(30)]
    crowd = [Logins(proxy, number) for number in range(6)] + [Busy(proxy, number) for number in range(6)]
    for generation in range(RELOADS):
        counts = [one.count for one in crowd]
        if generation == 0:
            change(proxy, *there, more=more)
            texts = [path_of(proxy).read_text(), text]
        path_of(proxy).write_text(texts[generation % 2])
        assert len(reloaded(proxy)["changed"]) >= 10
        servers.wait_for(lambda: all(one.failure or one.count > count + 2 for one, count in zip(crowd, counts)),
                         "everybody to go on")
    for wire in idle:
        assert b"NOOP done" in wire.command(b"NOOP")
    assert sum(one.end() for one in crowd) > RELOADS
    servers.wait_for(lambda: proxy.metrics()['imapmux_sessions{phase="relay"}'] == len(idle), "the crowd to be gone")
    metrics = proxy.metrics()
    assert metrics["imapmux_logins_refused_total"] == 0 and metrics["imapmux_sessions_refused_total"] == 0
    assert len(proxy.events("reloaded")) == RELOADS
    for wire in idle:
        wire.close()


def test_no_loop_waits_for_the_routes(begin):
    """Their file comes slowly, through a pipe: meanwhile everybody is served, and administration answers."""
    proxy = begin()
    pipe = proxy.folder / "slow-routes"
    subprocess.run(["mkfifo", pipe], check=True)
    change(proxy, ('file = "routes"', 'file = "slow-routes"'))
    proxy.process.send_signal(signal.SIGHUP)
    with open(pipe, "w") as routes:  # which waits for who reads it
        assert "under way" in ctl(proxy, "reload").stderr
        assert b"first" in login_text(proxy) and b"first" in login_text(proxy, "bob")
        assert json.loads(done(proxy, "--json", "status"))["state"] == "running"
        assert not proxy.events("reloaded")
        routes.write("alice store\n")
    proxy.wait_for_event("reloaded")
    assert b"first" in login_text(proxy) and b" NO " in login_text(proxy, "bob")


def test_a_disk_that_hangs_does_not_keep_the_process(begin):
    """The file is never read to its end: the process ends all the same, after a while."""
    proxy = begin()
    pipe = proxy.folder / "pipe"
    subprocess.run(["mkfifo", pipe], check=True)
    change(proxy, more='include("pipe")\n')
    proxy.process.send_signal(signal.SIGHUP)
    with open(pipe, "w"):  # which waits for who reads it
        assert "under way" in ctl(proxy, "reload").stderr
        proxy.process.send_signal(signal.SIGTERM)
        proxy.process.wait(60)
    with pytest.raises(servers.ServerError, match="ended with 1:[^$]*the end takes too long"):
        proxy.stop()


# --- without memory ---

LOST = "no memory for the connection, or for the answer"


def ask(proxy):
    """A reload, asked for by a process that has memory: the answer, which may be an end for want of it."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(ConnectionError):
        peer.settimeout(60)
        peer.connect(str(proxy.folder / "admin.sock"))
        peer.sendall(b'{"command":"reload"}\n')
        while not answer.endswith(b"\n"):
            piece = peer.recv(65536)
            if not piece:
                break
            answer += piece
    assert proxy.process.poll() is None, proxy.output()[-4000:]
    return json.loads(answer or json.dumps({"ok": False, "error": LOST}))


@pytest.mark.parametrize("main_only", [False, True])
def test_without_memory_nothing_has_changed(shim, folder, certificate, stores, main_only):
    """Allocations of a reload fail, one after the other: of the threads that read and prepare; of the leading one."""
    control = Control(folder / f"reload-memory-{main_only}")
    one, other = shard("store", stores[0].port, more=QUICK), shard("red", stores[1].port, more=QUICK)
    with Starving(folder / f"reload-starving-{main_only}", shim=shim, control=control, shards=one + other, more=ADMIN,
                  certificate=certificate, workers=2, metrics="", pool="warm = 0 park_time = 1m") as proxy:
        path = path_of(proxy)
        plain = re.sub(r"^(certificate|listener imap).*\n", "", path.read_text(), flags=re.MULTILINE)
        texts = [plain, plain.replace(other, shard("blue", stores[1].port, more=QUICK)) + LOGIN +
                 "limits { per_user = 5 }\nauth_cache { ttl = 1h }\n"]

        def reload(index, first=NEVER):
            path.write_text(texts[index])
            control.arm(first, own_only=1, main_only=main_only)
            answer = ask(proxy)
            return answer, control.disarm()

        counts = []
        for index in (1, 0, 1, 0, 1, 0):
            answer, (count, _, _) = reload(index)
            assert answer["ok"]
            counts.append(count)
        count = max(counts[2:])
        firsts = sorted({*range(1, count + 1, max(1, count // 30)), *range(max(1, count - 100), count + 1)})
        refused = now = 0
        for first in firsts:
            answer, (_, failed, _) = reload(1 - now, first)
            assert answer["ok"] or failed, answer
            refused += not answer["ok"]
            with proxy.wire() as wire:
                is_other = b"another one." in wire.greeting
                assert is_other == (now if not answer["ok"] else 1 - now) or answer.get("error") == LOST, answer
                now = int(is_other)
                assert re.search(rb" OK .*first", wire.command(b"LOGIN alice secret"))
        assert refused > len(firsts) / 3
        assert reload(1 - now)[0]["ok"]
