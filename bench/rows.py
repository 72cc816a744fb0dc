"""
What is measured: one `Row` for each line of the tables, and how a run of each kind goes. A run takes one peer that has
just been started, and returns figures by name, all for one unit of work or as a share of the run's time:

    cpu             seconds of CPU time of the proxy, all its processes
    asked           the same of those whom it asks about logins
    rate            units in a second
    p50, p99        milliseconds of a unit
    logins          at the store
    resumed         TLS sessions
    load, store     seconds of CPU time of the two ends of the benchmark, in a second
    memory, kernel  KiB for each session
"""
import dataclasses
import time
import typing

import measure
from tools import BenchError, Load, warm_up

SETTLE_SECONDS = 0.1  # what a proxy still has to do for the last unit, when the client has its answer
WARM_UP_USERS = 16  # where all others shall log in only once
SLOW_OCTETS_PER_SECOND = 1000000
SLOW_CLIENTS = 16
SLOW_SIZE = 1 << 28
KIB, MIB = 1 << 10, 1 << 20
MAIL = ("imapmux", "nginx", "Dovecot")
PROXIES = MAIL + ("HAProxy",)
EVERYBODY = PROXIES + ("store alone",)


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much work a run is."""

    seconds: float = 2
    slow_seconds: float = 3
    idle_sessions: int = 9000
    users: int = 100
    directory_users: int = 8000


QUICK = Amounts(seconds=0.2, slow_seconds=1, idle_sessions=150, users=20, directory_users=400)


@dataclasses.dataclass(frozen=True)
class Row:
    """One workload. `unit` and `scale` say how its CPU time is written: so many of `unit` make one second."""

    name: str
    title: str
    workload: str
    options: typing.Mapping = dataclasses.field(default_factory=dict)
    words: tuple = ()
    peers: tuple = PROXIES
    unit: str = "µs"
    scale: float = 1e6
    setting: typing.Mapping = dataclasses.field(default_factory=dict)  # of the peer: directory, cached, parks
    users: int = 0  # who log in by turns; 0: as many as the amounts say
    once: bool = False  # a user never logs in twice
    run: typing.Callable = None

    def run_once(self, peer, site, amounts):
        return (self.run or run_work)(self, peer, site, amounts)


def _users(row, amounts):
    """For the load of a run: who logs in."""
    if row.once:
        count = amounts.directory_users - WARM_UP_USERS
        return {"first_user": WARM_UP_USERS, "users": count, "units": count}
    return {"users": row.users or amounts.users}


def _warm_up(row, peer, amounts):
    """Every user logs in twice, unless each shall come for the first time: caches are full, spares are there."""
    users = WARM_UP_USERS if row.once else row.users or amounts.users
    warm_up("login", peer.port, *_plain(peer), clients=4, users=users, units=2 * users, seconds=60)


def _plain(peer):
    return ("--plain",) if peer.plain else ()


class Usage:
    """CPU time and counts at one moment; what came since then is a difference."""

    def __init__(self, peer, site):
        self.proxy = 0 if peer.plain else measure.cpu_seconds(peer.process.pid)
        self.asked = sum(measure.cpu_seconds(server.process.pid) for server in peer.asks())
        self.store = measure.cpu_seconds(site.store.process.pid)
        self.logins = site.store.counts()["logins"]


def _figures(row, result, before, after):
    units, seconds = result["units"], result["seconds"]
    if units == 0:
        raise BenchError(f"{row.name}: nothing was done in {seconds} s")
    return {"cpu": (after.proxy - before.proxy) / units, "asked": (after.asked - before.asked) / units,
            "rate": units / seconds, "p50": result["p50_ms"], "p99": result["p99_ms"],
            "logins": (after.logins - before.logins) / units, "resumed": result["resumed"] / units,
            "load": result["load_cpu"] / seconds, "store": (after.store - before.store) / seconds}


def run_work(row, peer, site, amounts):
    """Units of work for some time."""
    _warm_up(row, peer, amounts)
    options = {"seconds": amounts.seconds, **_users(row, amounts), **row.options}
    with Load(row.workload, peer.port, *row.words, *_plain(peer), **options) as load:
        before = Usage(peer, site)
        load.start()
        result = load.result()
        time.sleep(SETTLE_SECONDS)
        return _figures(row, result, before, Usage(peer, site))


def run_idle(row, peer, site, amounts):
    """Sessions in IDLE: what each costs in memory; then each is sent one line, all at once."""
    _warm_up(row, peer, amounts)
    memory, kernel = measure.memory_kib(peer.process.pid), measure.kernel_kib()
    count = amounts.idle_sessions
    with Load("idle", peer.port, clients=count, users=amounts.users, wake=site.store.process.pid,
              seconds=60) as load:
        time.sleep(1)
        held = {"memory": (measure.memory_kib(peer.process.pid) - memory) / count,
                "kernel": (measure.kernel_kib() - kernel) / count}
        before = Usage(peer, site)
        load.start()
        result = load.result()
        return {**_figures(row, result, before, Usage(peer, site)), **held, "wake_up": result["seconds"]}


def run_slow(row, peer, site, amounts):
    """A large FETCH by clients that read slowly: by how much the proxy grows, at the most, for each of them."""
    _warm_up(row, peer, amounts)
    with Load("fetch", peer.port, clients=SLOW_CLIENTS, size=SLOW_SIZE, rate=SLOW_OCTETS_PER_SECOND,
              seconds=amounts.slow_seconds, users=amounts.users) as load:
        before = most = measure.memory_kib(peer.process.pid)
        load.start()
        while not load.is_done(0.1):
            most = max(most, measure.memory_kib(peer.process.pid))
        result = load.result()
    expected = SLOW_CLIENTS * SLOW_OCTETS_PER_SECOND * amounts.slow_seconds
    if result["bytes_in"] < expected / 4:
        raise BenchError(f"{row.name}: {result['bytes_in']} octets instead of {expected}")
    return {"memory": (most - before) / SLOW_CLIENTS}


def _fetch(name, size, clients, unit, scale):
    text = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
    return Row(f"fetch-{name}", f"FETCH {text}, {clients} sessions", "fetch", {"size": size, "clients": clients},
               peers=EVERYBODY, unit=unit, scale=scale)


ROWS = (
    Row("login-full", "login and logout, full TLS handshake, 128 at once", "login", {"clients": 128}),
    Row("login-resumed", "login and logout, TLS resumed, 128 at once", "login", {"clients": 128}, ("--resume",)),
    Row("login-cold", "login and logout, LDAP and Redis asked for each, 128 at once", "login", {"clients": 128},
        peers=("imapmux", "Dovecot"), setting={"directory": True}, once=True),
    Row("login-cached", "login and logout, what LDAP said is remembered, 128 at once", "login", {"clients": 128},
        peers=("imapmux", "Dovecot"), setting={"directory": True, "cached": True}),
    Row("login-one", "login and logout, full handshake, one at a time", "login", {"clients": 1}, peers=EVERYBODY),
    Row("login-late", "the same, by a client that acknowledges late, as Linux does", "login", {"clients": 1},
        ("--late-acks",)),
    Row("webmail", "webmail: LOGIN, SELECT, FETCH 1 KiB, LOGOUT; 20 users, 8 at once", "webmail", {"clients": 8},
        setting={"parks": True}, users=20),
    _fetch("1k", KIB, 8, "µs", 1e6),
    _fetch("16k", 16 * KIB, 8, "µs", 1e6),
    _fetch("1m", MIB, 4, "ms", 1e3),
    _fetch("16m", 16 * MIB, 4, "ms", 1e3),
    Row("append", "APPEND 1 MiB with LITERAL+, 4 sessions", "append", {"clients": 4, "size": MIB}, peers=EVERYBODY,
        unit="ms", scale=1e3),
    Row("noop-1", "NOOP, 1 session", "noop", {"clients": 1}, peers=EVERYBODY, unit="s for 100 000", scale=1e5),
    Row("noop-64", "NOOP, 64 sessions", "noop", {"clients": 64}, peers=EVERYBODY, unit="s for 100 000", scale=1e5),
    Row("idle", "a line to a session in IDLE, to all at once", "idle", run=run_idle),
    Row("slow", f"FETCH {SLOW_SIZE // MIB} MiB by {SLOW_CLIENTS} clients that read 1 MB/s each", "fetch", run=run_slow),
)
