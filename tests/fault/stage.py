"""
What the fault tests share: a store that does exactly what a test's script says, and imapmux before it with a password
file and a route file, so that nothing but the fault under test can go wrong.
"""
import contextlib
import pathlib
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import servers  # noqa: E402
from imapwire import Wire, whole  # noqa: E402,F401

PASSWORD = "secret"
PATIENCE_SECONDS = 30
CAPABILITIES = b"IMAP4rev1 SASL-IR LITERAL+ ID IDLE AUTH=PLAIN"
LITERAL_HEADER = re.compile(rb"\{(\d+)(\+?)\}\r\n\Z")

raised = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (raised, raised))


class Gone(Exception):
    """The other side closed."""


class Peer:
    """The store's end of one connection. Scripts are written with its methods; it remembers what it was told."""

    def __init__(self, connection, cut=whole):
        self.socket = connection
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.cut = cut
        self.buffered = b""
        self.heard = []

    def send(self, data):
        for piece in self.cut(data):
            self.socket.sendall(piece)

    def _more(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise Gone
        self.buffered += piece

    def line(self):
        """The next line with its end."""
        while b"\n" not in self.buffered:
            self._more()
        line, _, self.buffered = self.buffered.partition(b"\n")
        self.heard.append(line + b"\n")
        return line + b"\n"

    def exactly(self, count):
        while len(self.buffered) < count:
            self._more()
        taken, self.buffered = self.buffered[:count], self.buffered[count:]
        return taken

    def command(self):
        """The next command, its literals included; sync literals are asked for."""
        command = self.line()
        while True:
            literal = LITERAL_HEADER.search(command)
            if not literal:
                return command
            if not literal.group(2):
                self.send(b"+ go\r\n")
            command += self.exactly(int(literal.group(1))) + self.line()

    def greet(self, capabilities=CAPABILITIES):
        self.send(b"* OK [CAPABILITY %s] store\r\n" % capabilities)

    def until_login(self):
        """Answers what may come before the login command, and returns that."""
        while True:
            command = self.command()
            tag, name = command.split()[:2]
            if name.upper() in (b"LOGIN", b"AUTHENTICATE"):
                return command
            if name.upper() == b"CAPABILITY":
                self.send(b"* CAPABILITY %s\r\n" % CAPABILITIES)
            elif name.upper() == b"ID":
                self.send(b"* ID NIL\r\n")
            self.send(tag + b" OK done\r\n")

    def log_in(self, capabilities=CAPABILITIES):
        """A store as it should be, up to the end of the login."""
        self.greet(capabilities)
        self.until_login()
        self.send(b"L OK [CAPABILITY %s] Logged in\r\n" % capabilities)

    def serve(self):
        """Answers simple commands until LOGOUT."""
        while True:
            tag, name = self.command().split()[:2]
            if name.upper() == b"LOGOUT":
                self.send(b"* BYE bye\r\n" + tag + b" OK bye\r\n")
                return
            self.send(tag + b" OK " + name.upper() + b" done\r\n")

    def wait_for_end(self):
        """Reads until the proxy closes."""
        with contextlib.suppress(OSError):
            while self.socket.recv(65536):
                pass


def good(peer):
    peer.log_in()
    peer.serve()


class Store:
    """
    Listens, and runs `script(peer)` in a thread for each connection; the connection is closed when the script returns.
    A script that fails is reported by `check`.
    """

    def __init__(self, script=good, cut=whole, receive_buffer=None, host=servers.HOST):
        self.script, self.cut = script, cut
        self.peers, self.failures = [], []
        self.listener = socket.socket()
        if receive_buffer:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((host, 0))
        self.listener.listen(512)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection):
        peer = Peer(connection, self.cut)
        self.peers.append(peer)
        try:
            self.script(peer)
        except (Gone, ConnectionError, ssl.SSLError):
            pass
        except Exception as failure:
            self.failures.append(failure)
        finally:
            peer.socket.close()  # the script may have put TLS around it

    def check(self):
        assert not self.failures, self.failures

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


CONFIGURATION = """
process {{
    workers = {workers}  stop_timeout = {stop_timeout}  max_sessions = {max_sessions}  core_dumps = {core_dumps}
    {process}
}}
log {{ level = {log} }}
metrics {{ file = "{metrics}" interval = 100ms }}
pool {{ check_after = {check_after} {pool} }}
throttle {{ {throttle} }}
health {{ {health} }}
certificate main {{ chain = "{chain}" key = "{key}" }}
listener plain {{ address = {{"{host}:{plain}"}} tls = none plaintext_login = yes }}
listener imap {{ address = {{"{host}:{starttls}"}} tls = starttls }}
listener imaps {{ address = {{"{host}:{tls}"}} tls = implicit }}
{sources}
{more}
"""
EXEMPT = 'trusted = {"127.0.0.0/8"}'  # where many come from one address, or send wrong passwords
FILES = """
auth { sources = {passwd} }
passwd { file = "passwd" }
route { sources = {file} file = "routes" }
"""
SERVERS = """
auth {{ sources = {{ldap}} timeout = 5s }}
ldap {{
    uri = {{"ldap://{directory}"}}
    base = "ou=people,dc=example,dc=org"
    connect_timeout = {limit}
    timeout = {limit}
}}
route {{ sources = {{redis}} timeout = 5s {route} }}
redis {{ address = "{redis}" connect_timeout = {limit} timeout = {limit} retry_max = 200ms }}
"""
SHARD = 'shard {name} {{ address = {{{addresses}}} tls = {tls} tls_verify = no {more} }}\n'


def shard(name, *ports, tls="none", more="connect_timeout = 20s login_timeout = 20s", host=servers.HOST):
    addresses = ", ".join(f'"{host}:{port}"' for port in ports)
    return SHARD.format(name=name, addresses=addresses, tls=tls, more=more)


def directory_and_redis(directory, redis, limit="1s", route=""):
    """Sources for a proxy that asks a real directory and a real Redis: "host:port" of each, or a port of this host."""
    directory, redis = (f"{servers.HOST}:{at}" if isinstance(at, int) else at for at in (directory, redis))
    return SERVERS.format(directory=directory, redis=redis, limit=limit, route=route)


def directory_settings(**settings):
    """Sources for a proxy that asks the directory which the settings of section `ldap` tell of, and one store."""
    lines = "".join(f"    {name} = {value}\n" if str(value).startswith("{") else f'    {name} = "{value}"\n'
                    for name, value in settings.items())
    return f"auth {{ sources = {{ldap}} }}\nldap {{\n{lines}}}\nroute {{ sources = {{file}} file = \"routes\" }}\n"


def password_line(user, password=PASSWORD):
    digest = subprocess.run(["openssl", "passwd", "-5", "-salt", "rounds=1000$salt", "-stdin"], input=password.encode(),
                            capture_output=True, check=True).stdout.decode().strip()
    return f"{user}:{digest}\n"


class Proxy(servers.Imapmux):
    """
    imapmux with the listeners plain, starttls and tls (see `port`). `routes` maps users to shards, beside "*", which
    goes to the shard "store"; `users` all have the same password.
    """

    def prepare(self, shards, certificate, users=("alice", "bob"), routes=(), passwords=(), more="", workers=1,
                stop_timeout="10s", max_sessions=16384, pool="warm = 0 park_time = 0s", check_after="0s",
                throttle=EXEMPT, health="interval = 0s", sources=FILES, metrics="metrics.prom", log="info",
                core_dumps=servers.CORE_DUMPS, process="", ports=(), **others):
        self.port = {name: servers.free_port() for name in ("plain", "starttls", "tls")} | dict(ports)
        own = dict(passwords)
        line = password_line("USER")
        text = "".join(line.replace("USER", user, 1) for user in users if user not in own)
        text += "".join(password_line(user, password) for user, password in own.items())
        (self.folder / "passwd").write_text(text)
        (self.folder / "passwd").chmod(0o600)
        (self.folder / "routes").write_text("".join(f"{user} {name}\n" for user, name in dict(routes).items()) +
                                            "* store\n")
        configuration = CONFIGURATION.format(chain=certificate[0], key=certificate[1], workers=workers,
                                             stop_timeout=stop_timeout, max_sessions=max_sessions,
                                             pool=pool, check_after=check_after, throttle=throttle, health=health,
                                             sources=sources, more=more + shards, host=self.host, metrics=metrics,
                                             log=log, core_dumps=core_dumps, process=process, **self.port)
        super().prepare(configuration, list(self.port.values()), **others)

    def wire(self, listener="plain", **options):
        tls = {"plain": None, "starttls": "starttls", "tls": "implicit"}[listener]
        return Wire(self.host, self.port[listener], tls=tls, **options)

    def logged_in(self, user="alice", listener="plain", **options):
        wire = self.wire(listener, **options)
        wire.login(user, PASSWORD)
        return wire


def reset(connection):
    """Closes with RST, whatever is under way."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
