"""
The town that the soak disturbs: a directory, Redis, two Dovecots and imapmux before them, all on free ports; who lives
there; and what can happen to its servers.
"""
import contextlib
import os
import pathlib
import re
import signal
import ssl
import threading
import time

import servers
from client import PASSWORD

SHARDS = ("blue", "green")
FOLDERS = ("INBOX", "Archive", "Sent Items", "Archive/2024")
PEOPLE = [f"person{number}" for number in range(8)]
READERS = [f"reader{number}" for number in range(4)]
CROWD = [f"crowd{number:02}" for number in range(20)]
# Seconds in which clients at rest must have been told that their store is lost.
DRAIN_SECONDS = 4
WORKERS = 2

# Short times, for much to happen in little of it: what is kept expires, what is lost is told soon.
CONFIGURATION = """
process {{ workers = {workers}  stop_timeout = 20s  max_sessions = 2000  core_dumps = {dumps} }}
log {{ level = info }}
metrics {{ file = "metrics.prom" interval = 250ms }}
certificate main {{ chain = "{chain}" key = "{key}" }}
listener plain {{ address = {{"127.0.0.1:{plain}"}} tls = none plaintext_login = yes }}
listener imap {{ address = {{"127.0.0.1:{starttls}"}} tls = starttls }}
listener imaps {{ address = {{"127.0.0.1:{tls}"}} tls = implicit }}
session {{ idle_notify = 5s }}
pool {{ warm = 2  warm_time = 5s  park_time = 5s  lifetime = 1m  park_per_user = 2 }}
auth {{ sources = {{ldap}} timeout = 6s }}
throttle {{ trusted = {{"127.0.0.0/8"}} }}
ldap {{
    uri = {{"{ldap}"}}
    base = "ou=people,dc=example,dc=org"
    connect_timeout = 2s
    timeout = 4s
}}
route {{ sources = {{redis}} timeout = 4s }}
health {{ interval = 1s }}
redis {{ address = "{redis}" connect_timeout = 2s timeout = 2s retry_max = 500ms }}
shard blue {{
    address = {{"{blue}"}}
    tls = none
    {limits}
}}
shard green {{
    address = {{"{green}"}}
    tls = starttls
    tls_ca_file = "{chain}"
    tls_name = "localhost"
    login = master_authzid
    master_user = "{master}"
    master_password_file = "{master_file}"
    {limits}
}}
"""
LIMITS = ("max_connections = 100 max_logins_in_flight = 20 queue_timeout = 50s slow_start = 2s "
          f"drain_time = {DRAIN_SECONDS}s connect_timeout = 10s")

# Dovecot in IDLE hears nothing from the moment that a mailbox's log is rotated to its next look at it, else after 30 s.
WAKEFUL = "mailbox_idle_check_interval = 3 secs\n"


class Person:
    """Somebody with mail. Who changes what is in the folders holds the lock; to add mail nobody needs to."""

    def __init__(self, name, shard):
        self.name, self.shard = name, shard
        self.lock = threading.Lock()
        self.synced = {}  # by folder: UIDVALIDITY, and the highest UID that the offline copy has


class Town:
    """Who lives there, and, from `start` to `close`, the servers."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.running = []
        self.connections, self._counting = 0, threading.Lock()
        names = PEOPLE + READERS + CROWD
        self.shard_of = {name: SHARDS[number % 2] for number, name in enumerate(names)}
        self.residents = {name: Person(name, shard) for name, shard in self.shard_of.items()}
        self.people = [self.residents[name] for name in PEOPLE]
        self.crowd = [self.residents[name] for name in CROWD]
        self.ports = {name: servers.free_port() for name in ("plain", "starttls", "tls")}
        self.slapd = self.redis = self.proxy = self.tls_context = None
        self.stores = {}

    def start(self):
        passwords = {name: PASSWORD for name in self.residents}
        certificate = servers.make_certificate(self.folder)
        self.tls_context = ssl.create_default_context(cafile=str(certificate[0]))
        self.slapd = self._run(servers.Slapd, "slapd", users=passwords)
        self.redis = self._run(servers.Redis, "redis")
        self.import_routes()
        for name in SHARDS:
            self.stores[name] = self._run(servers.Dovecot, name, users=passwords, certificate=certificate, more=WAKEFUL)
            self.stores[name].shard = name
        self.proxy = self._run(servers.Imapmux, "imapmux", configuration=self._configuration(certificate),
                               ports=list(self.ports.values()))

    def _run(self, kind, name, **options):
        server = kind(self.folder / name, **options)
        self.running.append(server)
        return server

    def _configuration(self, certificate):
        master_file = self.folder / "master.password"
        master_file.write_text(servers.MASTER_PASSWORD)
        master_file.chmod(0o600)
        return CONFIGURATION.format(chain=certificate[0], key=certificate[1], ldap=self.slapd.uri, workers=WORKERS,
                                    redis=self.redis.address, blue=self.stores["blue"].address, limits=LIMITS,
                                    dumps=servers.CORE_DUMPS, green=self.stores["green"].address, master=servers.MASTER_USER,
                                    master_file=master_file, **self.ports)

    def import_routes(self):
        self.redis.route(self.shard_of)

    def count_connection(self):
        with self._counting:
            self.connections += 1

    def crashes(self, shard):
        return crashes(self.stores[shard]) if shard in self.stores else []

    def close(self):
        with contextlib.ExitStack() as all_of_them:  # each is ended, also if another one complains
            for server in self.running:
                all_of_them.callback(server.stop)


def crashes(store):
    """When processes of this Dovecot have panicked, as time.monotonic tells it; to the second."""
    moments = re.findall(r"^(\w+ +\d+ [\d:]+) [^\n]*: Panic: ", store.output(), re.MULTILINE)
    year, since_epoch = time.strftime("%Y "), time.time() - time.monotonic()
    return [time.mktime(time.strptime(year + moment, "%Y %b %d %H:%M:%S")) - since_epoch for moment in moments]


# What can happen to servers


def kill(server):
    """kill -9 of the server and of all processes that it has started."""
    children = children_of(server.process.pid)
    server.process.kill()
    server.process.wait()
    kill_all(children)


def kill_some(server, name, count, source):
    """kill -9 of some of the processes of this name that the server has started; the server lives on."""
    named = [child for child in children_of(server.process.pid) if name_of(child) == name]
    kill_all(source.sample(named, min(count, len(named))))


def kill_all(processes):
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def children_of(parent):
    """Processes whose parent this is."""
    numbers = [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if status_of(number)[1:2] == [str(parent)]]


def is_running(process):
    return status_of(process)[:1] not in ([], ["Z"])


def status_of(process):
    """The state, the parent and more, as proc(5) lists them behind the name; nothing if there is no such process."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def name_of(process):
    try:
        return pathlib.Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""
