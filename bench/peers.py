"""
The proxies that are compared, each with the configuration that a good administrator would give it: two workers, TLS 1.3
with clients, plain text to the store, buffers and limits for many sessions. All but HAProxy, which does not know what a
login is, write a line for each login to a log file.

Each is a process in a folder of its own, started anew for each run. `Peer.site` has what all share (see bench.py):
certificate, store, directory. With `directory` a peer asks LDAP, with `cached` it remembers what LDAP said.
"""
import crypt
import os
import pathlib
import re
import subprocess

import servers
from tools import PASSWORD

WORKERS = 2
SESSIONS_MAX = 9400  # two descriptors for each, and the limit is often 20 000
HOST = servers.HOST


class Peer(servers.Server):
    """One proxy, which listens with TLS on `port`."""

    version_command = ()
    plain = False

    def prepare(self, site, directory=False, cached=False, parks=False):
        self.site, self.directory, self.cached, self.parks = site, directory, cached, parks
        self.port = servers.free_port()
        self.configuration = self.folder / "proxy.conf"
        self.configuration.write_text(self.settings())

    def settings(self):
        raise NotImplementedError

    def ports(self):
        return [self.port]

    def asks(self):
        """The servers of others that this one asks about a login."""
        return [self.site.slapd] if self.directory else []

    @classmethod
    def version(cls):
        """The number that the program tells."""
        said = subprocess.run(cls.version_command, capture_output=True, text=True)
        return re.search(r"\d+\.\d+[\w.~+-]*", said.stdout + said.stderr)[0]


class Imapmux(Peer):
    """The proxy of this repository. Without a directory it has a password file with slow hashes, and remembers them."""

    name = "imapmux"
    binary = pathlib.Path(os.environ.get("IMAPMUX") or servers.REPOSITORY / "build/imapmux").resolve()
    version_command = (str(binary), "--version")

    def settings(self):
        site = self.site
        cache = "" if self.directory and not self.cached else "auth_cache { ttl = 1h }"
        return f"""\
process {{ workers = {WORKERS} max_sessions = {SESSIONS_MAX} }}
certificate bench {{ chain = "{site.chain}" key = "{site.key}" }}
listener imaps {{ address = {{"{HOST}:{self.port}"}} tls = implicit }}
pool {{ warm = 8 park_time = {"1m" if self.parks else "0s"} }}
{self._directory() if self.directory else self._files()}
{cache}
shard store {{ address = {{"{HOST}:{site.store.port}"}} tls = none }}
"""

    def asks(self):
        return super().asks() + ([self.site.redis] if self.directory else [])

    def _files(self):
        digest = crypt.crypt(PASSWORD, crypt.mksalt(crypt.METHOD_SHA512))
        (self.folder / "users").write_text("".join(f"{name}:{digest}\n" for name in self.site.users))
        (self.folder / "routes").write_text("* store\n")
        return 'passwd { file = "users" }\nroute { file = "routes" }'

    def _directory(self):
        return f"""\
auth {{ sources = {{ldap}} }}
ldap {{ uri = {{"{self.site.slapd.uri}"}} base = "ou=people,{servers.LDAP_BASE}" filter = "(uid=%{{user}})" }}
route {{ sources = {{redis}} }}
redis {{ address = "{self.site.redis.address}" }}"""

    def command(self):
        return [str(self.binary), "-c", str(self.configuration)]


class Responder(servers.Server):
    """Says yes to each login that nginx asks about: an nginx of its own, so that its CPU time can be told apart."""

    name = "auth_http responder"

    def prepare(self, store_port):
        self.port = servers.free_port()
        (self.folder / "nginx.conf").write_text(f"""\
{nginx_process(self.folder, "crit")}
http {{
    access_log off;
    client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;
    fastcgi_temp_path {self.folder}/fastcgi; uwsgi_temp_path {self.folder}/uwsgi; scgi_temp_path {self.folder}/scgi;
    server {{
        listen {HOST}:{self.port};
        location / {{
            add_header Auth-Status OK;
            add_header Auth-Server {HOST};
            add_header Auth-Port {store_port};
            return 204;
        }}
    }}
}}
""")

    def ports(self):
        return [self.port]

    def command(self):
        return ["/usr/sbin/nginx", "-c", str(self.folder / "nginx.conf")]


def nginx_process(folder, level):
    """What both kinds of nginx begin with."""
    return f"""\
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log {level};
worker_processes {WORKERS};
worker_rlimit_nofile {2 * SESSIONS_MAX + 200};
events {{ worker_connections {2 * SESSIONS_MAX + 100}; }}"""


class Nginx(Peer):
    """nginx with its mail module. Any HTTP service may say who gets in; here a minimal one does."""

    name = "nginx"
    version_command = ("/usr/sbin/nginx", "-v")

    def prepare(self, site, **options):
        self.responder = Responder(pathlib.Path(self.folder) / "responder", store_port=site.store.port)
        super().prepare(site, **options)

    def settings(self):
        return f"""\
load_module /usr/lib/nginx/modules/ngx_mail_module.so;
{nginx_process(self.folder, "info")}
mail {{
    server_name localhost;
    auth_http {HOST}:{self.responder.port}/auth;
    proxy_buffer 16k;
    proxy_timeout 1h;
    imap_capabilities IMAP4rev1 SASL-IR LITERAL+ IDLE UNSELECT;
    ssl_certificate {self.site.chain};
    ssl_certificate_key {self.site.key};
    ssl_protocols TLSv1.3;
    ssl_session_cache shared:mail:20m;
    ssl_session_tickets on;
    ssl_session_timeout 2h;
    server {{ listen {HOST}:{self.port} ssl backlog=4096; protocol imap; }}
}}
"""

    def command(self):
        return ["/usr/sbin/nginx", "-c", str(self.configuration)]

    def asks(self):
        return [self.responder]

    def stop(self):
        try:
            return super().stop()
        finally:
            self.responder.stop()


class Dovecot(Peer):
    """Dovecot's login proxy. Without a directory it takes any password, which no other way of asking can beat."""

    name = "Dovecot"
    version_command = ("/usr/sbin/dovecot", "--version")

    def settings(self):
        return f"""\
base_dir = {self.folder}/run
state_dir = {self.folder}/state
log_path = {self.folder}/dovecot.log
protocols = imap
listen = {HOST}
ssl = required
ssl_cert = <{self.site.chain}
ssl_key = <{self.site.key}
ssl_dh =
auth_mechanisms = plain
auth_cache_size = {"16M" if self.cached else "0"}
auth_cache_ttl = 1h
login_trusted_networks = 127.0.0.0/8
default_client_limit = 20000
default_vsz_limit = 0
passdb {{
{self._directory() if self.directory else self._static()}
}}
service imap-login {{
  chroot =
  service_count = 0
  process_min_avail = {WORKERS}
  process_limit = {WORKERS}
  client_limit = {SESSIONS_MAX}
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    address = {HOST}
    port = {self.port}
    ssl = yes
  }}
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

    def _static(self):
        return f"  driver = static\n  args = nopassword=y proxy=y host={HOST} port={self.site.store.port}"

    def _directory(self):
        path = self.folder / "ldap.conf"
        path.write_text(f"""\
uris = {self.site.slapd.uri}
ldap_version = 3
auth_bind = yes
base = ou=people,{servers.LDAP_BASE}
scope = onelevel
pass_filter = (uid=%u)
pass_attrs = =proxy=y, =host={HOST}, =port={self.site.store.port}
""")
        return f"  driver = ldap\n  args = {path}"

    def command(self):
        return ["/usr/sbin/dovecot", "-F", "-c", str(self.configuration)]


class Haproxy(Peer):
    """HAProxy as the floor: it ends TLS and copies bytes; the login goes to the store like all else."""

    name = "HAProxy"
    version_command = ("/usr/sbin/haproxy", "-v")

    def settings(self):
        both = self.folder / "bench.pem"
        both.write_text(pathlib.Path(self.site.chain).read_text() + pathlib.Path(self.site.key).read_text())
        return f"""\
global
    nbthread {WORKERS}
    maxconn {SESSIONS_MAX}
    tune.ssl.lifetime 7200
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen imaps
    bind {HOST}:{self.port} backlog 4096 ssl crt {both} ssl-min-ver TLSv1.3
    server store {HOST}:{self.site.store.port}
"""

    def command(self):
        return ["/usr/sbin/haproxy", "-db", "-f", str(self.configuration)]


class Direct(Peer):
    """No proxy and no TLS: what the store and the load can do by themselves."""

    name = "store alone"
    plain = True

    def prepare(self, site, **_):
        self.port = site.store.port

    def asks(self):
        return []

    def start(self):
        pass


ALL = (Imapmux, Nginx, Dovecot, Haproxy, Direct)
