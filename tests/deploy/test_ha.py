"""
The example of two proxies, as it is shipped: HAProxy, imapmux, Redis with its Sentinels, each at an address of its own
on this host, before two stores. Only addresses, ports and paths are put in their places.
"""
import contextlib
import os
import re
import subprocess

import pytest
import servers
from imapwire import Closed, Wire

HA = servers.REPOSITORY / "deploy/ha"
IMAPMUX = servers.REPOSITORY / os.environ.get("IMAPMUX", "build/imapmux")
PASSWORD = "secret"
USERS = [f"user{number}" for number in range(6)]
CLIENT = "127.0.0.77"
REPLICATION, IMAPMUX_AT_REDIS = "REPLICATION-PASSWORD", "IMAPMUX-PASSWORD"


class Place:
    """Where everything is on this host: 192.0.2.N is 127.0.0.N, with ports that are free."""

    def __init__(self):
        self.ports = {port: servers.free_port() for port in ("993", "8080", "6379", "26379")}

    def text(self, name, own=None):
        """A shipped file; `own` is the address of the host that it is for."""
        shipped = (HA / name).read_text()
        text = re.sub(r"\b(26379|6379|8080|993)\b", lambda found: str(self.ports[found.group()]), shipped)
        if own:
            text = text.replace("0.0.0.0:", own + ":").replace(" 127.0.0.1\n", "\n")
            text = re.sub(r"^(bind|replica-announce-ip|sentinel announce-ip) \S+", rf"\1 {own}", text, flags=re.M)
        return text.replace("192.0.2.", "127.0.0.")


class Redis(servers.Redis):
    def prepare(self, place, replica):
        self.port = int(place.ports["6379"])
        text = place.text("redis.conf", self.host).replace("/var/lib/redis", str(self.folder))
        self._conf().write_text(text.replace("#replicaof", "replicaof") if replica else text)

    def ask(self, *words):
        return super().ask("-a", REPLICATION, "--no-auth-warning", *words)

    def good_replicas(self):
        """As min-replicas-to-write counts them."""
        told = self.ask("EVAL", "return redis.call('INFO', 'replication')", "0")
        return int(re.search(r"min_slaves_good_slaves:(\d+)", told).group(1))


class Sentinel(servers.Sentinel):
    def prepare(self, place):
        self.port, self.title = int(place.ports["26379"]), "routes"
        self._conf().write_text(place.text("sentinel.conf", self.host).replace("/var/lib/redis", str(self.folder)))


class Haproxy(servers.Server):
    name = "haproxy"

    def prepare(self, place):
        self.port = servers.free_port()
        text = re.sub(r"bind :\d+", f"bind {self.host}:{self.port}", place.text("haproxy.cfg"))
        for shipped, here in {"/dev/log": "stdout format raw", "maxconn 40000": "maxconn 1000",
                              "default-server": "default-server source 127.0.0.2"}.items():
            text = text.replace(shipped, here)
        self.conf = self.folder / "haproxy.cfg"
        self.conf.write_text(text)

    def ports(self):
        return [self.port]

    def command(self):
        return ["/usr/sbin/haproxy", "-db", "-f", str(self.conf)]


class Site:
    def __init__(self, stack, folder):
        self.place = Place()
        enter = stack.enter_context
        users = {user: PASSWORD for user in USERS}
        self.chain, self.key = servers.make_certificate(folder)
        self.secret = folder / "redis.password"
        self.secret.write_text(IMAPMUX_AT_REDIS)
        self.directory = enter(servers.Slapd(folder / "slapd", users=users))
        more = ("haproxy_trusted_networks = 127.0.0.0/8\n"
                "service imap-login {\n inet_listener imaps {\n haproxy = yes\n }\n}\n")
        self.stores = {name: enter(servers.Dovecot(folder / name, users=users, certificate=(self.chain, self.key),
                                                   more=more)) for name in ("blue", "green")}
        master, *_ = [enter(Redis(folder / f"redis{number}", host=f"127.0.0.{number}", place=self.place,
                                  replica=number != 21)) for number in (21, 22, 23)]
        sentinels = [enter(Sentinel(folder / f"sentinel{number}", host=f"127.0.0.{number}", place=self.place))
                     for number in (21, 22, 23)]
        for sentinel in sentinels:
            servers.wait_for(lambda one=sentinel: one.knows(2, 3), "the Sentinels to meet")
        servers.wait_for(lambda: master.good_replicas() == 2, "the replicas to follow")
        self.proxies = [self.start_proxy(stack, folder / f"mx{number}", f"127.0.0.{number}") for number in (11, 12)]
        self.haproxy = enter(Haproxy(folder / "haproxy", place=self.place))

    def configuration(self, own, folder):
        text = self.place.text("proxy.conf", own)
        kept = {"/etc/imapmux/mail.pem": self.chain, "/etc/imapmux/mail.key": self.key,
                "/etc/imapmux/redis.password": self.secret, "/run/imapmux": folder, "/var/lib/imapmux": folder,
                "ldap://ldap1.example.org": self.directory.uri, "start_tls = yes": "start_tls = no"}
        for shipped, here in kept.items():
            text = text.replace(shipped, str(here))
        for name, store in self.stores.items():
            text = re.sub(rf'"{name}\.example\.org:\d+"',
                          f'"{servers.HOST}:{store.tls_port}" tls_name = localhost tls_ca_file = "{self.chain}"', text)
        return f"process {{ core_dumps = {servers.CORE_DUMPS} }}\n" + text

    def start_proxy(self, stack, folder, own):
        ports = [int(self.place.ports["993"]), int(self.place.ports["8080"])]
        proxy = servers.Imapmux(folder, host=own, configuration=self.configuration(own, folder), ports=ports)
        stack.callback(proxy.stop)
        return proxy

    def connect(self):
        return Wire(servers.HOST, self.haproxy.port, tls="implicit", source=CLIENT)

    def session(self, user):
        """A client that is logged in, as soon as there is a proxy to be had."""
        def log_in():
            wire = self.connect()
            wire.login(user, PASSWORD)
            return wire
        return servers.wait_for(lambda: tried(log_in), "a login")


def tried(action):
    try:
        return action()
    except (Closed, OSError):
        return None


@pytest.fixture(scope="module")
def site():
    with contextlib.ExitStack() as stack:
        yield Site(stack, stack.enter_context(servers.Folder("imapmux-ha-")))


def users_at(proxy):
    return {event["user"] for event in proxy.events("login ok")}


def test_sessions_come_back_by_the_other_proxy(site):
    wires = {user: site.session(user) for user in USERS}
    first, second = site.proxies
    servers.wait_for(lambda: users_at(first) | users_at(second) == set(USERS), "all logins to be logged")
    lost = users_at(first)
    assert lost and users_at(second)
    first.kill()
    for user, wire in wires.items():
        if user in lost:
            assert tried(lambda one=wire: one.command(b"NOOP")) is None
            wires[user] = site.session(user)
    servers.wait_for(lambda: users_at(second) == set(USERS), "all logins to be logged")
    for wire in wires.values():
        assert b" OK " in wire.command(b"NOOP")
        wire.close()


def test_the_stores_see_the_clients_address(site):
    site.session(USERS[0]).close()
    logins = [line for store in site.stores.values() for line in store.output().splitlines() if "Login: user=" in line]
    assert logins and all(f"rip={CLIENT}," in line for line in logins)


def test_haproxy_takes_its_file(site):
    checked = subprocess.run(["/usr/sbin/haproxy", "-c", "-f", site.haproxy.conf], capture_output=True, text=True)
    assert checked.returncode == 0 and "WARNING" not in checked.stdout + checked.stderr, checked.stdout + checked.stderr


def test_keepalived_takes_its_file(tmp_path):
    """Its test of a configuration ends itself by SIGTERM once it has been another user, to look at the script."""
    interface = next(name for name in sorted(os.listdir("/sys/class/net")) if name != "lo")
    text = (HA / "keepalived.conf").read_text().replace("interface eth0", f"interface {interface}")
    (tmp_path / "keepalived.conf").write_text(text.replace("script_user nobody nogroup", "script_user root"))
    checked = subprocess.run(["/usr/sbin/keepalived", "--config-test", "-f", tmp_path / "keepalived.conf"],
                             capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_imapmux_may_do_at_redis_what_the_documentation_says():
    page = (servers.REPOSITORY / "docs/operations.md").read_text()
    said = re.search(r"ACL SETUSER imapmux on >PASSWORD (.*)", page).group(1)
    assert f"user imapmux on >IMAPMUX-PASSWORD {said}\n" in (HA / "redis.conf").read_text()
