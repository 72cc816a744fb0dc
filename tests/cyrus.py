"""
Cyrus IMAP 3.6 as a store for the tests. Debian's package cannot be installed beside Dovecot's, so `make cyrus` unpacks
it in a folder of the checkout, and nothing of it is installed.
"""
import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess

import servers

UNPACKED = pathlib.Path(os.environ.get("CYRUS") or servers.REPOSITORY / "build-cyrus").resolve()
REALM = "localhost"
ADMIN, ADMIN_PASSWORD = "cyrusadmin", "admin-secret"


class Cyrus(servers.Server):
    """
    Cyrus as it comes, but for what keeps tests waiting: pauses after wrong passwords, and writes that reach the disk.
    Any of `users` may log in with the password it maps to; any name at all by way of the master user: AUTHENTICATE
    PLAIN with an authorization identity. An INBOX comes into being at the first login. With a certificate, STARTTLS is
    offered, and there is a port for TLS from the start. Cyrus logs to syslog only.
    """

    name = "cyrus"
    stop_seconds = 2

    def prepare(self, users, certificate=None):
        if not UNPACKED.exists():
            raise servers.ServerError(f"{UNPACKED} is not there: run make deps, or set CYRUS")
        self.port = servers.free_port()
        self.tls_port = servers.free_port() if certificate else None
        self.address = f"{servers.HOST}:{self.port}"
        # Cyrus refuses to run as root, and who it runs as may not be let into the checkout: it runs from a copy.
        shutil.copytree(UNPACKED / "usr/lib", self.folder / "lib")
        self.binaries = self.folder / "lib/cyrus/bin"
        for name in ("state/db", "state/socket", "mail", "tmp"):
            (self.folder / name).mkdir(parents=True)
        if certificate:
            certificate = [shutil.copy(path, self.folder) for path in certificate]
        self._conf().write_text(self._settings(certificate))
        self._services().write_text(self._commands())
        for name, password in {servers.MASTER_USER: servers.MASTER_PASSWORD, ADMIN: ADMIN_PASSWORD, **users}.items():
            self.add_user(name, password)
        self.user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        for path in self.folder.rglob("*"):
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def add_user(self, name, password):
        subprocess.run([UNPACKED / "usr/sbin/saslpasswd2", "-p", "-c", "-f", self._passwords(), "-u", REALM, name],
                       input=password.encode(), check=True, capture_output=True)

    def _conf(self):
        return self.folder / "imapd.conf"

    def _services(self):
        return self.folder / "cyrus.conf"

    def _passwords(self):
        return self.folder / "sasldb2"

    def _settings(self, certificate):
        tls = f"tls_server_cert: {certificate[0]}\ntls_server_key: {certificate[1]}\n" if certificate else ""
        return f"""\
configdirectory: {self.folder}/state
defaultpartition: default
partition-default: {self.folder}/mail
proc_path: {self.folder}/state/proc
mboxname_lockpath: {self.folder}/state/lock
idlesocket: {self.folder}/state/socket/idle
temp_path: {self.folder}/tmp
servername: {REALM}
altnamespace: yes
unixhierarchysep: yes
autocreate_quota: 0
admins: {ADMIN}
proxyservers: {servers.MASTER_USER}
allowplaintext: yes
failedloginpause: 0
skiplist_unsafe: yes
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {self._passwords()}
sasl_mech_list: PLAIN LOGIN
{tls}"""

    def _commands(self):
        def run(program, *options):
            return f'cmd="{self.binaries / program} {" ".join(("-C", str(self._conf())) + options)}"'

        tls_service = f'imaps {run("imapd", "-s")} listen="{servers.HOST}:{self.tls_port}"\n' if self.tls_port else ""
        return f"""\
START {{
  recover {run("ctl_cyrusdb", "-r")}
}}
DAEMON {{
  idled {run("idled")}
}}
SERVICES {{
  imap {run("imapd")} listen="{self.address}" prefork=3
  {tls_service}
}}
"""

    def ports(self):
        return [port for port in (self.port, self.tls_port) if port]

    def command(self):
        libraries = next(self.folder.glob("lib/*/libcyrus.so.0")).parent
        return ["env", f"CYRUS_USER={self.user.pw_name}", f"LD_LIBRARY_PATH={libraries}", str(self.binaries / "master"),
                "-D", "-C", str(self._conf()), "-M", str(self._services()), "-p", str(self.folder / "master.pid")]

    def stop(self):
        """
        Who connects while Cyrus stops makes its master wait for ever, for a process that it will not start. So what is
        left of it after a moment is killed, and the status says nothing.
        """
        group = self.process and self.process.pid
        status = super().stop()
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        return status
