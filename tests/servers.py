"""
Real servers for the tests and the demo: slapd, redis-server, Dovecot and imapmux, each on free ports of the loopback
address, each in a folder of its own below the one it is given. A server is running when its constructor returns, and
is ended by its process id; several checkouts can run side by side.
"""
import contextlib
import fcntl
import json
import os
import pathlib
import pwd
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
POLL_SECONDS = 0.02
START_SECONDS = 30
LDAP_BASE = "dc=example,dc=org"
CORE_DUMPS = "no" if os.getuid() == 0 else "yes"  # else tests without root could not count descriptors
MASTER_USER, MASTER_PASSWORD = "proxymaster", "master-secret"


class ServerError(Exception):
    """A server did not start, or did not end as it should."""


_ports_given = set()


def free_port():
    """
    A port that nobody listens on now, and that this process has not given out before; below those that the kernel
    gives to outgoing connections, so that none of these takes it meanwhile.
    """
    while True:
        port = random.randrange(10000, 32000)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _ports_given.add(port)
        return port


def wait_for(condition, what, seconds=START_SECONDS):
    """Polls until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise ServerError(f"waited {seconds} s in vain: {what}")
        time.sleep(POLL_SECONDS)


def accepts(port, host=HOST):
    try:
        socket.create_connection((host, port), timeout=1).close()
        return True
    except OSError:
        return False


def make_certificate(folder, name="server", hosts=("localhost",), addresses=(HOST,)):
    """A self-made EC P-256 certificate: paths of the certificate and of its key."""
    folder = pathlib.Path(folder)
    chain, key = folder / f"{name}.crt", folder / f"{name}.key"
    names = [f"DNS:{host}" for host in hosts] + [f"IP:{address}" for address in addresses]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "30", "-subj", f"/CN={hosts[0]}", "-addext", "subjectAltName=" + ",".join(names),
                    "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    return chain, key


class Server:
    """
    One process in the foreground, that listens on `host`. Subclasses write their files in `prepare` and say what to run
    in `command`.
    """

    name = "server"
    stop_signal = signal.SIGTERM
    stop_seconds = 10

    def __init__(self, folder, host=HOST, **options):
        self.folder, self.host = pathlib.Path(folder), host
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.process = None
        self.prepare(**options)
        self.start()

    def prepare(self):
        pass

    def command(self):
        raise NotImplementedError

    def ports(self):
        raise NotImplementedError

    def start(self):
        with open(self.folder / "output.log", "ab") as output:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                            cwd=self.folder, start_new_session=True)
        try:
            wait_for(self.ready, f"{self.name} to answer on {self.ports()}")
        except ServerError:
            self.stop()
            raise

    def ready(self):
        if self.process.poll() is not None:
            raise ServerError(f"{self.name} ended with {self.process.returncode}: {self.output()[-2000:]}")
        return all(accepts(port, self.host) for port in self.ports())

    def output(self):
        path = self.folder / "output.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def pause(self):
        """Freezes the process; returns when it is frozen, for the signal alone takes effect some time later."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        """At once, as a machine that fails. `start` brings it back, without what it had in memory."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self):
        """Ends the process and returns its exit status; harmless when it has ended."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.resume()
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        status, self.process = self.process.returncode, None
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Slapd(Server):
    """
    OpenLDAP with inetOrgPerson entries uid=NAME,ou=people,dc=example,dc=org; `users` maps names to passwords. More
    settings may come before the database and for it, more entries behind these, and other URIs to listen on.
    """

    name = "slapd"

    def prepare(self, users, settings="", database="", entries="", base=LDAP_BASE, uris=()):
        self.port = free_port()
        self.uri = f"ldap://{self.host}:{self.port}"
        self.base, self.uris = base, [self.uri, *uris]
        (self.folder / "db").mkdir()
        self._conf().write_text(f"""\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {self.folder}/slapd.pid
{settings}
access to attrs=userPassword by anonymous auth by * none
access to * by * read
database monitor
database mdb
suffix "{base}"
rootdn "cn=admin,{base}"
rootpw admin-secret
directory {self.folder}/db
maxsize 67108864
index objectClass,uid eq
{database}
""")
        texts = [f"dn: {base}\nobjectClass: dcObject\nobjectClass: organization\no: Example\n"
                 f"dc: {base.partition(',')[0].partition('=')[2]}\n",
                 f"dn: ou=people,{base}\nobjectClass: organizationalUnit\nou: people\n"]
        texts += [f"dn: uid={name},ou=people,{base}\nobjectClass: inetOrgPerson\nuid: {name}\ncn: {name}\n"
                  f"sn: {name}\nuserPassword: {password}\n" for name, password in users.items()]
        subprocess.run(["/usr/sbin/slapadd", "-q", "-f", str(self._conf())], check=True, capture_output=True,
                       input="\n".join([*texts, entries]).encode())

    def _conf(self):
        return self.folder / "slapd.conf"

    def ports(self):
        return [self.port]

    def command(self):
        return ["/usr/sbin/slapd", "-d", "0", "-f", str(self._conf()), "-h", " ".join(self.uris)]

    def operations(self, kind):
        """How many it has completed of one kind ("Bind", "Search"), as it says itself; asking costs one of each."""
        answer = subprocess.run(["ldapsearch", "-LLL", "-x", "-H", self.uri, "-s", "base", "-b",
                                 f"cn={kind},cn=Operations,cn=Monitor", "monitorOpCompleted"],
                                check=True, capture_output=True, text=True).stdout
        return int(re.search(r"^monitorOpCompleted: (\d+)$", answer, re.MULTILINE).group(1))

    def kill(self):
        """At once, as a machine that fails."""
        self.process.kill()
        self.process.wait()
        self.process = None


def connections_to(port, process, host=HOST):
    """How many established TCP connections of the process lead to that port."""
    wanted = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[2] == wanted and row[3] == "01"}
    found = set()
    for descriptor in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(descriptor))
    return len(inodes & found)


class Redis(Server):
    """redis-server without persistence, alone or as a replica of another one; `more` are lines of its redis.conf."""

    name = "redis-server"

    def prepare(self, replica_of=None, more=""):
        self.port = free_port()
        self.address = f"{self.host}:{self.port}"
        if replica_of:
            more += f"\nreplicaof {replica_of.host} {replica_of.port}"
        self._conf().write_text(f"""\
bind {self.host}
port {self.port}
protected-mode no
dir {self.folder}
save ""
appendonly no
repl-diskless-sync-delay 0
{more}
""")

    def _conf(self):
        return self.folder / "redis.conf"  # a Sentinel rewrites it when roles change

    def ports(self):
        return [self.port]

    def command(self):
        return ["redis-server", str(self._conf())]

    def ask(self, *words):
        """Sends one command and returns the answer, decoded."""
        said = subprocess.run(["redis-cli", "-h", self.host, "-p", str(self.port), "--json", *words],
                              capture_output=True, check=True)
        return json.loads(said.stdout)

    def role(self):
        """"master", "slave"; None while it changes, and ends all connections."""
        with contextlib.suppress(subprocess.CalledProcessError):
            return self.ask("ROLE")[0]

    def call(self, *words):
        """Sends one command and returns the first line of the answer."""
        return self.call_all([words])[0]

    def call_all(self, commands):
        """Sends simple commands (those with answers of one line) together; returns their answers."""
        request = b""
        for words in commands:
            request += b"*%d\r\n" % len(words)
            request += b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            connection.sendall(request)
            stream = connection.makefile("rb")
            answers = [stream.readline().decode().rstrip() for _ in commands]
        for answer in answers:
            if answer.startswith("-"):
                raise ServerError(f"redis: {answer}")
        return answers

    def route(self, shards, prefix="imapmux:"):
        """Tells where mailboxes are: `shards` maps user names to shard names."""
        self.call_all([("HSET", f"{prefix}user:{{{user}}}", "shard", shard) for user, shard in shards.items()])


class Sentinel(Redis):
    """redis-server as a Sentinel that watches `master`. It looks more often than it would by itself."""

    name = "sentinel"
    # Four times the first is how long a new master has before another Sentinel demotes it, five times the last how old
    # news of a replica may be that is to become one, of which there are some each second while the master is down.
    periods = ["PUBLISH-PERIOD", "500", "INFO-PERIOD", "200", "ASK-PERIOD", "100", "PING-PERIOD", "300"]

    def prepare(self, master, title="routes", quorum=2, down_after_ms=500):
        self.title = title
        super().prepare()
        self._conf().write_text(f"""\
bind {self.host}
port {self.port}
protected-mode no
dir {self.folder}
sentinel monitor {title} {master.host} {master.port} {quorum}
sentinel down-after-milliseconds {title} {down_after_ms}
sentinel failover-timeout {title} 3000
""")

    def command(self):
        return [*super().command(), "--sentinel"]

    def start(self):
        super().start()
        self.ask("SENTINEL", "DEBUG", *self.periods)

    def master_port(self):
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.title)[1])

    def knows(self, replicas, sentinels):
        state = self.ask("SENTINEL", "MASTER", self.title)
        return (int(state["num-slaves"]), int(state["num-other-sentinels"]) + 1) == (replicas, sentinels)


class WatchedRedis:
    """A master, its replicas, and three Sentinels with a quorum of two; running when the constructor returns."""

    title = "routes"

    def __init__(self, folder, replicas=1, more=""):
        folder = pathlib.Path(folder)
        self._stack = contextlib.ExitStack()
        try:
            first = self._start(Redis, folder / "redis-0", more=more)
            self.servers = [first] + [self._start(Redis, folder / f"redis-{number + 1}", replica_of=first, more=more)
                                      for number in range(replicas)]
            self.sentinels = [self._start(Sentinel, folder / f"sentinel-{number}", master=first, title=self.title)
                              for number in range(3)]
            for sentinel in self.sentinels:
                wait_for(lambda one=sentinel: one.knows(replicas, len(self.sentinels)), "the Sentinels to meet")
        except BaseException:
            self._stack.close()
            raise
        names = ", ".join(f'"{sentinel.address}"' for sentinel in self.sentinels)
        self.settings = f'sentinels = {{ {names} }} sentinel_master = "{self.title}"'

    def _start(self, kind, *arguments, **options):
        server = kind(*arguments, **options)
        self._stack.callback(server.stop)
        return server

    def master(self):
        return self.master_after(None)

    def master_after(self, old):
        """The server that is the master, but not the old one: as soon as all Sentinels agree on it, and it knows."""
        def agreed():
            ports = {sentinel.master_port() for sentinel in self.sentinels if sentinel.process}
            named = [server for server in self.servers if server.port in ports and server is not old]
            return named[0] if len(ports) == len(named) == 1 and named[0].role() == "master" else None
        return wait_for(agreed, "the Sentinels to agree on a master")

    def stop(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Dovecot(Server):
    """
    Dovecot 2.3 as a store, with all its IMAP extensions. Any user may log in with one of `users`' passwords, or by way
    of the master user: AUTHENTICATE PLAIN with an authorization identity, or the name user*proxymaster.
    """

    name = "dovecot"

    def prepare(self, users, certificate=None, greeting="store ready.", more=""):
        self.port = free_port()
        self.tls_port = free_port() if certificate else None
        self.address = f"{self.host}:{self.port}"
        self.mail = self.folder / "mail"
        self.mail.mkdir()
        (self.folder / "users").write_text("".join(f"{name}:{{PLAIN}}{word}::::::\n" for name, word in users.items()))
        (self.folder / "masters").write_text(f"{MASTER_USER}:{{PLAIN}}{MASTER_PASSWORD}::::::\n")
        for path in ("users", "masters"):
            os.chmod(self.folder / path, 0o644)
        root = os.getuid() == 0
        mail_user = "nobody" if root else pwd.getpwuid(os.getuid()).pw_name
        self.internal_user, self.login_user = ("dovecot", "dovenull") if root else (mail_user, mail_user)
        entry = pwd.getpwnam(mail_user)
        if root:
            os.chown(self.mail, entry.pw_uid, entry.pw_gid)
        self._conf().write_text(self._settings(entry, greeting, certificate) + more)

    def _conf(self):
        return self.folder / "dovecot.conf"

    def _settings(self, mail_user, greeting, certificate):
        tls = "ssl = no\n"
        if certificate:
            tls = f"ssl = yes\nssl_cert = <{certificate[0]}\nssl_key = <{certificate[1]}\nssl_dh =\n"
        tls_listener = f"inet_listener imaps {{\n address = {self.host}\n port = {self.tls_port or 0}\n ssl = yes\n }}"
        return f"""\
base_dir = {self.folder}/run
state_dir = {self.folder}/state
log_path = {self.folder}/dovecot.log
protocols = imap
listen = {self.host}
login_greeting = {greeting}
default_internal_user = {self.internal_user}
default_internal_group = {_group_of(self.internal_user)}
default_login_user = {self.login_user}
{tls}
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_master_user_separator = *
auth_failure_delay = 0
auth_verbose = yes
login_trusted_networks = 127.0.0.0/8
mail_max_userip_connections = 10000
mail_uid = {mail_user.pw_uid}
mail_gid = {mail_user.pw_gid}
first_valid_uid = 1
first_valid_gid = 1
mail_home = {self.mail}/%u
mail_location = sdbox:~/sdbox
mail_plugins = acl quota notify
mail_attribute_dict = file:%h/attributes
mail_fsync = never
imap_metadata = yes
imap_id_send = name *
default_process_limit = 2000
default_client_limit = 20000
default_vsz_limit = 0
passdb {{
  driver = passwd-file
  args = {self.folder}/masters
  master = yes
  result_success = continue
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {self.folder}/users
}}
userdb {{
  driver = static
  args = uid={mail_user.pw_uid} gid={mail_user.pw_gid} home={self.mail}/%u master_user=%u allow_all_users=yes
}}
namespace inbox {{
  inbox = yes
  separator = /
}}
protocol imap {{
  mail_plugins = $mail_plugins imap_acl imap_quota
}}
plugin {{
  acl = vfile
  quota = count:User quota
  quota_vsizes = yes
  quota_rule = *:storage=1G
  quota_max_mail_size = 0
}}
service imap-login {{
  chroot =
  service_count = 0
  process_min_avail = 1
  inet_listener imap {{
    address = {self.host}
    port = {self.port}
  }}
  {tls_listener}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
"""

    def ports(self):
        return [port for port in (self.port, self.tls_port) if port]

    def command(self):
        return ["/usr/sbin/dovecot", "-F", "-c", str(self._conf())]

    def output(self):
        log = self.folder / "dovecot.log"
        return super().output() + (log.read_text(errors="replace") if log.exists() else "")


def _group_of(user):
    import grp
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


class Imapmux(Server):
    """
    The proxy, with the text of its proxy.conf. Lines of its log are kept as they come. `stop` insists on an orderly
    end: exit status 0 and not a word from a sanitizer.
    """

    name = "imapmux"
    stop_seconds = 60
    log_field = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')

    def prepare(self, configuration, ports, binary=None):
        self.binary = pathlib.Path(binary or os.environ.get("IMAPMUX") or REPOSITORY / "build/imapmux").resolve()
        if not self.binary.exists():
            raise ServerError(f"{self.binary} is not there: run make first, or set IMAPMUX")
        self._ports = ports
        self._changed = threading.Condition()
        self._reader = None
        (self.folder / "proxy.conf").write_text(configuration)

    def ports(self):
        return self._ports

    def command(self):
        return [str(self.binary), "-c", str(self.folder / "proxy.conf")]

    def environment(self):
        environment = dict(os.environ)
        environment.setdefault("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0")
        environment.setdefault("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
        return environment

    def start(self):
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, env=self.environment(), cwd=self.folder,
                                        start_new_session=True)
        with self._changed:  # who reads what a process before this one has said stops now
            self._stream = self.process.stderr
            self._stderr = self._stream.fileno()
            os.set_blocking(self._stderr, False)
            self.lines, self._begun, self._at_end = [], b"", False
        self._reader = threading.Thread(target=self._read, args=(self._stream,), daemon=True)
        self._reader.start()
        try:
            self.wait_for_event("ready")
        except ServerError:
            super().stop()
            raise

    def _read(self, stream):
        """Wakes those who wait for lines; whoever looks at the log takes in himself what has been written."""
        at_end = False
        while not at_end and not stream.closed:
            ready, _, _ = select.select([stream], [], [], 1)
            with self._changed:
                at_end = stream is not self._stream or (bool(ready) and self._take_in())
                self._changed.notify_all()

    def _take_in(self):
        """All that the proxy has written so far, so that what it logged before it answered is there; True at the end."""
        with self._changed:
            while not self._at_end and not self._stream.closed:
                try:
                    data = os.read(self._stderr, 1 << 16)
                except BlockingIOError:
                    break
                self._at_end = not data
                *lines, self._begun = (self._begun + data).split(b"\n")
                self.lines += [line.decode(errors="replace") for line in lines]
            return self._at_end

    @contextlib.contextmanager
    def unread(self, pipe_bytes):
        """Meanwhile nobody reads the log, which goes to a pipe of this size."""
        fcntl.fcntl(self._stderr, fcntl.F_SETPIPE_SZ, pipe_bytes)
        with self._changed:
            yield

    def events(self, name=None):
        """The log so far as dictionaries, those with this event only."""
        self._take_in()
        found = []
        for line in list(self.lines):
            fields = json.loads(line) if line.startswith('{"time":') else {
                key: value.strip('"') for key, value in self.log_field.findall(line)}
            if "event" in fields and name in (None, fields["event"]):
                found.append(fields)
        return found

    def wait_for_event(self, name, seconds=START_SECONDS):
        """The first event of this name, as soon as it is logged."""
        with self._changed:
            self._changed.wait_for(lambda: self.events(name) or self._at_end, seconds)
            found = self.events(name)
        if not found:
            raise ServerError(f"imapmux did not log event={name}:\n{self.output()[-4000:]}")
        return found[0]

    def output(self):
        self._take_in()
        return "\n".join(self.lines)

    @property
    def sanitized(self):
        """Whether it is a sanitizer's build, whose memory tells nothing."""
        content = self.binary.read_bytes()
        return b"__asan_init" in content or b"__tsan_init" in content

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))

    def metrics(self):
        """
        What the file metrics.prom says, by name with labels: of a moment after this call, or of the end if the proxy
        has ended. The few ms allow for the kernel's coarse time stamps.
        """
        path, called_at = self.folder / "metrics.prom", time.time()

        def is_new():
            running = self.process is not None and self.process.poll() is None
            return not running or path.exists() and path.stat().st_mtime > called_at + 0.02
        wait_for(is_new, "metrics.prom to be written")
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def descriptors(self):
        return len(list(pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def kill(self):
        stream = self.process.stderr
        super().kill()
        self._reader.join(10)
        stream.close()

    def stop(self):
        if self.process is None:
            return None
        stream = self.process.stderr
        status = super().stop()
        self._reader.join(10)
        stream.close()
        output = self.output()
        if re.search(r"Sanitizer|runtime error:", output):
            raise ServerError(f"a sanitizer reports:\n{output[-8000:]}")
        if status != 0:
            raise ServerError(f"imapmux ended with {status}:\n{output[-4000:]}")
        return status


class Folder:
    """A temporary folder that other users may walk through (Dovecot's processes run as several)."""

    def __init__(self, prefix="imapmux-"):
        import tempfile
        self.path = pathlib.Path(tempfile.mkdtemp(prefix=prefix))
        self.path.chmod(0o755)

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.remove()
