"""
Two proxies before two stores, blue and green, with a directory, and a Redis of which there is a replica and that three
sentinels watch.
"""
import contextlib
import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "fault")]
import people  # noqa: E402
import servers  # noqa: E402
from imapwire import Wire  # noqa: E402
from passage import Passage  # noqa: E402

BOTH = ("blue", "green")
CONFIGURATION = """
process {{ workers = 2  stop_timeout = 10s  core_dumps = {dumps} }}
admin {{ socket = "admin.sock" }}
metrics {{ file = "metrics.prom" interval = 100ms }}
listener plain {{ address = {{"{host}:{port}"}} tls = none plaintext_login = yes }}
auth {{ sources = {{ldap}} }}
auth_cache {{ ttl = 10m }}
throttle {{ trusted = {{"127.0.0.0/8"}} }}
ldap {{ uri = {{"{directory}"}} base = "ou=people,{base}" }}
route {{ sources = {{redis}} keep_while_down = {keep_while_down} snapshot = "routes.snapshot" }}
cutover {{ hold_timeout = {hold_timeout} }}
health {{ interval = 1s }}
redis {{
    {where}
    replicas = {replicas}  node_expiry = 3s  connect_timeout = 500ms  timeout = 1s  retry_max = 500ms
}}
{shards}
"""
SHARD = """shard {name} {{
    address = {{"{address}"}}
    tls = none
    passwordless_login = master_authzid
    master_user = "{master}"
    master_password_file = "{secret}"
}}
"""
# The inner doveadm is another store's: it must not inherit what the outer one has read of its own configuration.
SYNC = ('doveadm -c "{folder}/$IMAPMUX_FROM/dovecot.conf" backup -u "$IMAPMUX_USER" '
        'env -i PATH="$PATH" doveadm -c "{folder}/$IMAPMUX_TO/dovecot.conf" dsync-server -u "$IMAPMUX_USER"')


class Campus:
    """All of it, in a temporary folder; a context manager."""

    def __init__(self, users, sentinels=True, keep_while_down="20s", hold_timeout="40s"):
        self.users = users
        self._stack = contextlib.ExitStack()
        self.folder = self._stack.enter_context(servers.Folder("imapmux-moves-"))
        self.settings = dict(keep_while_down=keep_while_down, hold_timeout=hold_timeout)
        try:
            self._start(sentinels)
        except BaseException:
            self.stop()
            raise

    def _start(self, sentinels):
        passwords = {user: people.PASSWORD for user in self.users}
        self.directory = self._add(servers.Slapd(self.folder / "slapd", users=passwords))
        if sentinels:
            self.watched = self._add(servers.WatchedRedis(self.folder))
            self.redis, ways = self.watched.servers[0], 2 * [self.watched.settings]
        else:
            self.redis = self._add(servers.Redis(self.folder / "redis"))
            self.passages = [self._add(Passage(self.redis.port)) for _ in range(2)]  # of each proxy to Redis
            ways = [f'address = "{servers.HOST}:{passage.port}"' for passage in self.passages]
        self.stores = {name: self._add(servers.Dovecot(self.folder / name, users=passwords,
                                                       more=f"imap_capability = +X{name.upper()}\n")) for name in BOTH}
        self.redis.route({user: "blue" for user in self.users})
        secret = self.folder / "master.password"
        secret.write_text(servers.MASTER_PASSWORD)
        secret.chmod(0o600)
        self.settings.update(
            replicas=int(sentinels), directory=self.directory.uri, base=servers.LDAP_BASE,
            host=servers.HOST, dumps=servers.CORE_DUMPS,
            shards="".join(SHARD.format(name=name, address=store.address, master=servers.MASTER_USER, secret=secret)
                           for name, store in self.stores.items()))
        self.proxies = [self.start_proxy(f"proxy{number}", where) for number, where in enumerate(ways)]

    def _add(self, server):
        return self._stack.enter_context(server)

    def start_proxy(self, name, where):
        port = servers.free_port()
        configuration = CONFIGURATION.format(port=port, where=where, **self.settings)
        proxy = servers.Imapmux(self.folder / name, configuration=configuration, ports=[port])
        proxy.port = port
        return self._add(proxy)

    def ctl(self, proxy, *words, **options):
        """Runs imapmuxctl; the ended process, with its output as text."""
        return subprocess.run(self.ctl_command(proxy, *words), capture_output=True, text=True, timeout=300,
                              env=proxy.environment(), **options)

    def ctl_command(self, proxy, *words):
        return [str(proxy.binary.with_name("imapmuxctl")), "-s", str(proxy.folder / "admin.sock"), *words]

    def rows(self, proxy, *words):
        """The lines that a command prints with --json, which must succeed."""
        ended = self.ctl(proxy, "--json", *words)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def sync(self):
        return SYNC.format(folder=self.folder)

    def stop(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def login(proxy, user):
    """Where a login leads to: the store's name, or the code that it is refused with."""
    with Wire(servers.HOST, proxy.port, timeout=60) as wire:
        answer = wire.command(b"LOGIN %s %s" % (user.encode(), people.PASSWORD.encode()), tag=b"in")
    refusal = people.REFUSAL.search(answer)
    return refusal.group(1).decode() if refusal else people.STORE.search(answer).group(1).decode().lower()


@contextlib.contextmanager
def session(proxy, user):
    """A client that is logged in."""
    with Wire(servers.HOST, proxy.port, timeout=60) as wire:
        wire.login(user, people.PASSWORD)
        yield wire


def size(name, usual):
    """A number of the environment, for a larger run than the usual one."""
    return int(os.environ.get(name, usual))
