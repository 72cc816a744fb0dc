"""
Users are moved by imapmuxctl between two Dovecots, before which two imapmux share a Redis: with commands that copy mail
as docs/cutover.md shows them, while users work, in waves that are killed, gone on with, and taken back.
"""
import contextlib
import json
import os
import re
import signal
import subprocess
import threading

import pytest

import servers
from conftest import PASSWORD
from imapwire import Closed, Wire

pytestmark = pytest.mark.skipif(os.environ.get("IMAPMUX") == "none", reason="there is nothing to ask")
SINGLE = [f"one{number}" for number in range(8)]  # each test takes one, whose mailbox is new
USERS = [f"user{number}" for number in range(12)]
MESSAGE = b"Subject: %d\r\n\r\nmessage\r\n"
MOVED = b"* BYE [UNAVAILABLE] Your mailbox is being moved, please connect again.\r\n"
SHARD = """shard {name} {{
    address = {{"127.0.0.1:{port}"}}  tls = none  login = master_authzid
    master_user = "{user}"  master_password_file = "master"
}}
"""
CONFIGURATION = """
process {{ workers = 2 }}
admin {{ socket = "admin.sock" }}
listener plain {{ address = {{"127.0.0.1:{port}"}} tls = none plaintext_login = yes }}
auth {{ sources = {{passwd}} }}
passwd {{ file = "passwd" }}
throttle {{ trusted = {{"127.0.0.0/8"}} }}
route {{ sources = {{redis}} }}
redis {{ address = "{redis}" retry_max = 200ms }}
{shards}
"""
DOVEADM = """
doveadm_password = secret
service doveadm {{
  inet_listener {{
    address = 127.0.0.1
    port = {port}
  }}
}}
"""
# What docs/cutover.md has, with ports in place of names.
SYNC = """#!/bin/sh
address() { case $1 in blue) echo 127.0.0.1:%(blue)d ;; green) echo 127.0.0.1:%(green)d ;; esac; }
exec doveadm -c %(conf)s backup \\
    -S "$(address "$IMAPMUX_FROM")" -u "$IMAPMUX_BACKEND_USER" "tcp:$(address "$IMAPMUX_TO")"
"""
MBSYNC = """#!/bin/sh
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
port() { case $1 in blue) echo %(blue)d ;; green) echo %(green)d ;; esac; }
store() { # NAME SHARD
    cat <<END
IMAPAccount $1
Host 127.0.0.1
Port $(port "$2")
User "$IMAPMUX_BACKEND_USER*%(master)s"
PassCmd "cat %(password)s"
SSLType None
AuthMechs LOGIN

IMAPStore $1
Account $1

END
}
{
    store from "$IMAPMUX_FROM"
    store to "$IMAPMUX_TO"
    cat <<END
Channel all
Far :from:
Near :to:
Patterns *
Sync Pull
Create Near
SyncState $folder/
CopyArrivalDate yes
END
} >"$folder/mbsyncrc"
mbsync -q -c "$folder/mbsyncrc" all
"""


class Stage:
    def __init__(self, folder, stack):
        self.folder = folder
        self.redis = stack.enter_context(servers.Redis(folder / "moves-redis"))
        self.doveadm = {name: servers.free_port() for name in ("blue", "green")}
        users = dict.fromkeys(SINGLE + USERS, PASSWORD)
        self.stores = {name: stack.enter_context(servers.Dovecot(folder / f"moves-{name}", users=users,
                                                                 more=DOVEADM.format(port=port)))
                       for name, port in self.doveadm.items()}
        conf = folder / "doveadm.conf"
        conf.write_text("doveadm_password = secret\nlog_path = /dev/stderr\n")
        self.sync = self.script("copy-mail", SYNC % {**self.doveadm, "conf": conf})
        self.mbsync = self.script("copy-by-imap", MBSYNC % {
            **{name: store.port for name, store in self.stores.items()}, "master": servers.MASTER_USER,
            "password": folder / "master-password"})
        (folder / "master-password").write_text(servers.MASTER_PASSWORD + "\n")
        self.proxies = [self.proxy(number, stack) for number in range(2)]

    def script(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def proxy(self, number, stack):
        home, port = self.folder / f"moves-imapmux-{number}", servers.free_port()
        home.mkdir()
        digest = subprocess.run(["openssl", "passwd", "-5", "-salt", "rounds=1000$salt", "-stdin"],
                                input=PASSWORD.encode(), capture_output=True, check=True).stdout.decode().strip()
        passwd = "".join(f"{user}:{digest}\n" for user in SINGLE + USERS)
        for name, text in (("passwd", passwd), ("master", servers.MASTER_PASSWORD)):
            (home / name).write_text(text)
            (home / name).chmod(0o600)
        shards = "".join(SHARD.format(name=name, port=store.port, user=servers.MASTER_USER)
                         for name, store in self.stores.items())
        configuration = CONFIGURATION.format(port=port, redis=self.redis.address, shards=shards)
        proxy = stack.enter_context(servers.Imapmux(home, configuration=configuration, ports=[port]))
        proxy.port = port
        return proxy

    def start_ctl(self, *words, **options):
        return subprocess.Popen([self.proxies[0].binary.with_name("imapmuxctl"), "-s",
                                 self.proxies[0].folder / "admin.sock", *words], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, **options)

    def ctl(self, *words):
        tool = self.start_ctl(*words)
        out, err = tool.communicate(timeout=120)
        return tool.returncode, out, err

    def done(self, *words):
        status, out, err = self.ctl(*words)
        assert status == 0, (out, err)
        return [json.loads(line) for line in out.splitlines()]

    def session(self, user, number=0):
        wire = Wire(servers.HOST, self.proxies[number % 2].port)
        wire.login(user, PASSWORD)
        return wire

    def shards(self):
        return {item["user"]: item["shard"] for item in self.done("export", "--json")}

    def shards_of_all(self):
        return {shard for user, shard in self.shards().items() if user in USERS}

    def subjects(self, name, user):
        """Of the messages in INBOX at one of the stores."""
        with contextlib.closing(Wire(servers.HOST, self.stores[name].port)) as wire:
            wire.login(f"{user}*{servers.MASTER_USER}", servers.MASTER_PASSWORD)
            wire.command(b"SELECT INBOX")
            found = wire.command(b"FETCH 1:* (BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        return sorted(int(subject) for subject in re.findall(rb"Subject: (\d+)", found))


@pytest.fixture(scope="module")
def stage(folder):
    """All users are at blue, each with two messages; green is empty."""
    with contextlib.ExitStack() as stack:
        stage = Stage(folder, stack)
        path = folder / "routes.csv"
        path.write_text("".join(f"{user},blue\n" for user in SINGLE + USERS))
        stage.done("import", path, "--json")
        for user in SINGLE + USERS:
            with stage.session(user) as wire:
                for number in range(2):
                    append(wire, number)
        yield stage


@pytest.fixture
def user():
    return SINGLE.pop()


def append(wire, number, mailbox=b"INBOX"):
    message = MESSAGE % number
    return wire.command(b"APPEND %s {%d+}\r\n%s" % (mailbox, len(message), message))


def test_one_user(stage, user):
    """Two sessions at two proxies are told to come back, and find all their mail at the new store."""
    with stage.session(user, 0) as one, stage.session(user, 1) as other:
        one.command(b"CREATE Work")
        append(one, 7, b"Work")
        result, = stage.done("move", user, "--to", "green", "--presync", stage.sync, "--sync", stage.sync, "--json")
        assert one.read_to_end() == other.read_to_end() == MOVED
    assert result.pop("hold_ms") > 0
    assert result == {"user": user, "from": "blue", "to": "green", "state": "moved", "mailboxes": 2, "messages": 3}
    with stage.session(user, 1) as wire:
        append(wire, 2)
    assert stage.subjects("green", user) == [0, 1, 2] and stage.subjects("blue", user) == [0, 1]
    assert stage.shards()[user] == "green"


def test_without_a_copy_nothing_is_moved(stage, user):
    status, _, told = stage.ctl("move", user, "--to", "green")
    assert status == 1
    assert re.search(rf"the comparison failed: {user}: 1 mailbox differs: INBOX: .*; the user is at blue", told)
    assert stage.shards()[user] == "blue"
    with stage.session(user) as wire:
        append(wire, 2)
    assert stage.subjects("blue", user) == [0, 1, 2]


def test_a_copy_by_imap(stage, user):
    """UIDs may be others then, which the comparison would not let pass."""
    status, _, told = stage.ctl("move", user, "--to", "green", "--sync", stage.mbsync, "--verify", "none")
    assert status == 0, told
    assert stage.subjects("green", user) == [0, 1]


def test_a_proxy_that_is_frozen(stage, user):
    """It may still serve her, so she is not moved without its word."""
    with stage.session(user, 1) as wire:
        stage.proxies[1].process.send_signal(signal.SIGSTOP)
        try:
            status, _, told = stage.ctl("move", user, "--to", "green", "--sync", stage.sync, "--timeout", "2s")
        finally:
            stage.proxies[1].process.send_signal(signal.SIGCONT)
        assert status == 1 and "not all have let go of the user in time" in told and f"{user}: waiting for " in told
        assert stage.shards()[user] == "blue"
        with contextlib.suppress(Closed):
            wire.read_to_end()
    assert stage.done("move", user, "--to", "green", "--sync", stage.sync, "--json")[0]["state"] == "moved"


def test_redis_restarts_in_a_move(stage, user):
    """Steps are asked again until it is back."""
    tool = stage.start_ctl("move", user, "--to", "green", "--json", "--sync", "echo copying; sleep 1; " + stage.sync)
    assert tool.stderr.readline() == f"{user}: copying\n"
    stage.redis.call("SAVE")
    stage.redis.stop()
    stage.redis.start()
    out, err = tool.communicate(timeout=120)
    assert tool.returncode == 0, err
    assert json.loads(out)["state"] == "moved"


def test_a_proxy_restarts_in_a_move(stage, user):
    """The one that the tool talks to."""
    tool = stage.start_ctl("move", user, "--to", "green", "--json", "--sync", "echo copying; sleep 1; " + stage.sync)
    assert tool.stderr.readline() == f"{user}: copying\n"
    stage.proxies[0].stop()
    stage.proxies[0].start()
    out, err = tool.communicate(timeout=120)
    assert tool.returncode == 0, err
    assert json.loads(out)["state"] == "moved"


class Worker(threading.Thread):
    """Somebody who writes one message after the other, and comes back when told to; each is numbered."""

    def __init__(self, stage, user, stop):
        super().__init__()
        self.stage, self.user, self.over = stage, user, stop
        self.sure, self.unsure, self.failure = [0, 1], set(), None

    def log_in(self, number):
        """After the tool has died in the middle, logins wait for as long as they may, and are refused then."""
        while True:
            try:
                return self.stage.session(self.user, number)
            except AssertionError as refused:
                if "is being moved, please try again" not in str(refused):
                    raise

    def run(self):
        number = 1
        try:
            while not self.over.is_set():
                with contextlib.suppress(Closed, ConnectionError), self.log_in(number) as wire:
                    while not self.over.wait(0.05):
                        number += 1
                        self.unsure.add(number)
                        assert b" OK " in append(wire, number).splitlines()[-1]
                        self.unsure.discard(number)
                        self.sure.append(number)
        except Exception as failure:
            self.failure = failure

    def check(self, found):
        assert self.failure is None, self.failure
        assert len(found) == len(set(found))
        assert set(self.sure) <= set(found) <= set(self.sure) | self.unsure


@contextlib.contextmanager
def at_work(stage):
    """All users; they have stopped afterwards."""
    stop = threading.Event()
    workers = [Worker(stage, user, stop) for user in USERS]
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        stop.set()
        for worker in workers:
            worker.join(60)


def test_a_wave_while_users_work(stage, tmp_path):
    """The tool is killed in the middle; it is gone on with; then all are moved back. No message is lost or doubled."""
    path = tmp_path / "users"
    path.write_text("\n".join(USERS))
    with at_work(stage) as workers:
        total = to_green_and_back_and_again(stage, path)
    for worker in workers:
        worker.check(stage.subjects("green", worker.user))
    assert min(len(worker.sure) for worker in workers) > 5
    print(f"held for {total['median_hold_ms']} ms, at worst {total['worst_hold_ms']} ms")


def to_green_and_back_and_again(stage, path):
    tool = stage.start_ctl("move", "--from-file", path, "--to", "green", "--parallel", "4", "--presync", stage.sync,
                           "--sync", stage.sync)
    for _ in range(3):
        assert json.loads(tool.stdout.readline())["state"] == "moved"
    tool.kill()
    tool.communicate()
    wave, = stage.done("waves", "--json")
    assert wave["moved"] >= 3 and wave["waiting"] + wave["moving"] > 0
    *lines, total = stage.done("move", "--resume", wave["wave"])
    assert total["failed"] == total["left"] == 0 and stage.shards_of_all() == {"green"}
    *lines, total = stage.done("move", "--rollback", wave["wave"], "--sync", stage.sync, "--parallel", "8")
    assert total["moved"] == len(USERS) and stage.shards_of_all() == {"blue"}
    at_blue = list(stage.shards().values()).count("blue")
    *lines, total = stage.done("shard", "empty", "blue", "--to", "green", "--sync", stage.sync, "--parallel", "8")
    assert total["moved"] == at_blue and set(stage.shards().values()) == {"green"}
    return total
