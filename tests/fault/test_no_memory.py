"""
Memory that cannot be had: each allocation of a story is made to fail, one after the other, whoever asked for it. The
process must live, each client must get a proper answer or its end in time, and the next session must work in full.

The stories are played once to count their allocations, then again for each of them with that one failing. Those that
imapmux itself asks for all get their turn; of those of its libraries every IMAPMUX_NO_MEMORY_STEP-th (1 is all), and
more in short stories. With IMAPMUX_NO_MEMORY_IN_A_ROW so many fail one after the other.
Under the address sanitizer what an unlucky path forgets to free is found, too.
"""
import base64
import contextlib
import json
import mmap
import os
import pathlib
import random
import re
import socket
import ssl
import struct
import subprocess
import time

import pytest

import servers
from crowd import wait_for_metrics
from host import Host, over_tls
from imapwire import Closed, single_bytes, whole
from passage import Passage, trickling
from stage import PASSWORD, Proxy, Store, directory_and_redis, shard

SHIM = pathlib.Path(__file__).with_name("failing_malloc.c")
SHARDS = {"alice": "secure", "bob": "store", "carol": "pieces"}
STEP = int(os.environ.get("IMAPMUX_NO_MEMORY_STEP", "149"))
IN_A_ROW = int(os.environ.get("IMAPMUX_NO_MEMORY_IN_A_ROW", "1"))
SPARE = 3  # allocations more than the last time
MANY = 1000  # allocations of a story
ANSWER_SECONDS = 10
RECOVERY_SECONDS = 10
REDIS_CONNECTIONS = 4  # of the worker; of the control thread for commands, cutovers and events
PARK_SECONDS = 2
CONSENT_SECONDS = 0.3  # without memory there may be none
NEVER = 1 << 62
# What libraries cannot cope with, by function: the process ends, or a descriptor is lost. There to be shortened.
KNOWN = {
    "hi_malloc": "hiredis 0.14 aborts",
    "hi_calloc": "hiredis 0.14 aborts",
    "hi_strdup": "hiredis 0.14 aborts",
    "redisReaderGetReply": "hiredis 0.14 aborts when it cannot say that it had no memory",
    "redisBufferWrite": "hiredis 0.14 uses the empty string that it did not get",
    "ldap_send_server_request": "libldap 2.5 asserts that it could note a request",
    "ldap_parse_result": "liblber 2.5 asserts that it could copy a message",
    "ber_sockbuf_add_io": "liblber 2.5 asserts, when the connection ends, that it once got what it asked for",
    "ldap_url_dup": "libldap 2.5 forgets the socket that it has just connected",
    "OSSL_STORE_open_ex": "OpenSSL 3.0 crashes while it looks for an authority",
    "uv__io_start": "libuv ends the process when it cannot enlarge its table of descriptors",
}
SANITIZER = "verify_asan_link_order=0:detect_leaks=1:abort_on_error=0:handle_abort=1"

# Each password is remembered, but not for long enough to be of use: the directory is asked each time.
REMEMBER = "auth_cache { ttl = 1ms negative_ttl = 1ms }"
COUNT = "limits { per_user = 100 per_address = 100 per_user_address = 100 shared = yes }"

# What a client may hear when memory is short; never that its password is wrong, or that it has no mailbox.
REFUSED = re.compile(rb"(?:\* BYE\b|\S+ (?:NO|BAD) (?:\[UNAVAILABLE\]|\[SERVERBUG\]|\[LIMIT\]))[^\r\n]*\r\n\Z")
DONE = re.compile(rb"^t\d+ (?:OK|BAD STARTTLS is only) [^\r\n]*\r\n\Z", re.MULTILINE)

BULK = random.Random(7).randbytes(192 * 1024)


class Control:
    """The file that failing_malloc.c shares: which allocations fail, how many there were, who asked."""

    words = struct.Struct("=6Q24Q")

    def __init__(self, path):
        self.path = path
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def arm(self, first, own_only, in_a_row=1, main_only=False):
        self.words.pack_into(self.memory, 0, 0, in_a_row, own_only, main_only, 0, 0, *[0] * 24)
        struct.pack_into("=Q", self.memory, 0, first)

    def failed(self):
        return self.words.unpack_from(self.memory, 0)[5]

    def disarm(self):
        """Returns how many allocations there were, how many failed, and who asked for the first of those."""
        struct.pack_into("=Q", self.memory, 0, 0)
        _, _, _, _, count, failed, *asked = self.words.unpack_from(self.memory, 0)
        return count, failed, [address for address in asked if address]


class Starving(Proxy):
    """imapmux with failing_malloc.c before its memory."""

    def held_logins(self):
        return sum('phase=\\"held\\"' in line for line in self.lines)

    def prepare(self, shim, control, **options):
        self.shim, self.control = shim, control
        super().prepare(binary=interposable(), **options)

    def environment(self):
        environment = super().environment()
        environment.update(LD_PRELOAD=str(self.shim), FAILING_MALLOC=str(self.control.path), MALLOC_PERTURB_="165",
                           ASAN_OPTIONS=SANITIZER)
        return environment

    def start(self):
        super().start()
        self.maps = pathlib.Path(f"/proc/{self.process.pid}/maps").read_text().splitlines()

    def name(self, address):
        """A return address as "library: function"."""
        for line in self.maps:
            span, _, offset, _, inode, *path = line.split(maxsplit=5)
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end and path:
                return f"{pathlib.Path(path[0]).name}: {function_at(path[0], address - start + int(offset, 16))}"
        return hex(address)


def function_at(path, offset):
    answer = subprocess.run(["addr2line", "-fse", path, hex(offset - 1)], capture_output=True, text=True).stdout
    name, line = answer.splitlines()[:2] if answer else ("??", "??")
    return f"{name} {line}" if name != "??" else hex(offset)


def interposable():
    """
    The sanitizer's runtime must be a library, else it is asked before any preloaded one: `make asan` links the proxy a
    second time like that.
    """
    binary = pathlib.Path(os.environ.get("IMAPMUX") or servers.REPOSITORY / "build/imapmux").resolve()
    content = binary.read_bytes()
    if b"__tsan_init" in content:
        pytest.skip("the thread sanitizer's malloc cannot be replaced")
    if b"__asan_init" not in content:
        return binary
    shared = binary.with_name("imapmux-shared")
    if not shared.exists():
        pytest.skip(f"{shared} is not there; make asan links it")
    return shared


@pytest.fixture(scope="module")
def shim(folder):
    built = folder / "failing_malloc.so"
    flags = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["cc", *flags, "-o", built, SHIM], check=True)
    return built


class Site:
    """Real directory and Redis, whose connections can be cut, stores with and without TLS, and a proxy that starves."""

    def __init__(self, stack, folder, certificate, shim):
        self.folder, self.certificate, self.shim, self.count = folder, certificate, shim, 0
        enter = stack.enter_context
        slapd = enter(servers.Slapd(folder / "no-memory-slapd", users={user: PASSWORD for user in SHARDS}))
        redis = enter(servers.Redis(folder / "no-memory-redis"))
        redis.route(SHARDS)
        self.moves, self.redis_server = Moves(self), redis
        self.directory, self.redis = enter(Passage(slapd.port)), enter(Passage(redis.port))
        secure, plain = Host(prologue=over_tls(certificate, "starttls")), Host()
        plain.answers[b"t2 FETCH"] = b"* 1 FETCH (BODY[] {%d}\r\n%s)\r\nt2 OK FETCH done\r\n" % (len(BULK), BULK)
        self.stores = {"secure": enter(Store(secure)), "store": enter(Store(plain)),
                       "pieces": enter(Store(Host(), cut=single_bytes))}
        self.answers = {}  # as they are while there is memory
        self.control = Control(folder / "failing-malloc.control")
        self.proxy = None
        stack.callback(self.stop)

    def start(self):
        """The proxy, anew, and warm: what is set up once has been set up. One that has died is forgotten."""
        self.count += 1
        self.redis.cut_off()
        self.redis_server.call("CLIENT", "KILL", "TYPE", "normal")  # and what it has said, but Redis has not read
        self.moves.forget()
        limits = "connect_timeout = 3s login_timeout = 3s"
        shards = "".join(shard(name, store.port, tls="starttls" if name == "secure" else "none", more=limits)
                         for name, store in self.stores.items())
        self.proxy = Starving(self.folder / f"no-memory-{self.count}", shim=self.shim, control=self.control,
                              shards=shards, certificate=self.certificate, log="debug",
                              pool=f"warm = 0 park_per_user = 1 park_time = {PARK_SECONDS}s",
                              sources=directory_and_redis(self.directory.port, self.redis.port, route="cache_ttl = 0s"),
                              more=f'{REMEMBER} {COUNT} admin {{ socket = "admin.sock" }}\n')
        for _ in range(2):
            self.recover()
            for story in {*STORIES.values(), *CONTROL_STORIES.values()}:
                story(self)
        self.recover()
        self.descriptors = self.proxy.descriptors()

    def recover(self):
        """
        The next sessions work: at once, or after the pause that follows on a lost connection to a server. All
        connections to Redis are there again, which sessions of known users need not wait for.
        """
        for user in SHARDS:
            servers.wait_for(lambda: self.works(user), "a session to work", RECOVERY_SECONDS)
        self.moves.undo()
        servers.wait_for(lambda: servers.connections_to(self.redis.port, self.proxy.process) == REDIS_CONNECTIONS,
                         "Redis to be connected", RECOVERY_SECONDS)

    def works(self, user):
        if self.proxy.process.poll() is not None:
            raise servers.ServerError(f"imapmux ended with {self.proxy.process.returncode}")
        return session(self, user, "plain", FAREWELL)

    def stop(self):
        if self.proxy:
            self.proxy.stop()


class Moves:
    """Administration over its socket, and moves that are begun and taken back."""

    def __init__(self, site):
        self.site, self.user, self.move = site, "bob", None

    def ask(self, command, **arguments):
        """The answer, or None when there is none."""
        with contextlib.suppress(ConnectionError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(ANSWER_SECONDS)
            peer.connect(str(self.site.proxy.folder / "admin.sock"))
            peer.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            line = peer.makefile("rb").readline()
            return json.loads(line) if line.endswith(b"\n") else None

    def step(self, name, **arguments):
        """What is known of the move after a step, or {}."""
        answer = self.ask(f"cutover {name}", user=self.user, move=self.move, **arguments)
        return answer["result"] if answer and answer["ok"] else {}

    def begin(self, to):
        """Whether it has begun and the proxy has consented."""
        self.move = random.randbytes(8).hex()
        begun = self.step("begin", to=to)
        return begun and within(CONSENT_SECONDS, lambda: self.step("look").get("acked"))

    def undo(self):
        """It is over for certain."""
        if self.move:
            servers.wait_for(lambda: self.step("abort").get("state") == "active", "a move's end", RECOVERY_SECONDS)
        self.move = None

    def forget(self):
        """What a process that was killed has left in Redis."""
        self.move = None
        self.site.redis_server.call_all([("DEL", "imapmux:proxies", "imapmux:moving"),
                                         ("HDEL", f"imapmux:user:{{{self.user}}}", "state", "move", "target", "until")])


def within(seconds, condition):
    """What it returned in time, true or not."""
    with contextlib.suppress(servers.ServerError):
        return servers.wait_for(condition, "it", seconds)


def session(site, user, listener, commands, login=None, **options):
    """A client's session: whether all went well. If not, it has been told properly, or its connection has ended."""
    received = b""
    login = login or b"LOGIN " + user.encode() + b" " + PASSWORD.encode()
    try:
        with site.proxy.wire(listener, timeout=ANSWER_SECONDS, **options) as wire:
            received = wire.greeting
            for command in (login, *commands):
                if received.startswith(b"* BYE"):
                    break
                received = wire.command(command)
                if not DONE.search(received):
                    break
                assert same(received, site.answers.setdefault((user, command, *commands), received))
            else:
                return True
    except Closed as end:
        received = b"* BYE \r\n" if end.received.endswith(b"\n") else b""
    except (ConnectionError, ssl.SSLError):
        return False
    assert not received or REFUSED.search(received), received
    return False


def same(received, known):
    """The human text behind the capabilities may get lost."""
    return received.partition(b"]")[0] == known.partition(b"]")[0] if b"[CAPABILITY" in known else received == known


PARK = (b"NOOP", b"SELECT INBOX", b"FETCH 1 BODY[]", b"LOGOUT")  # the connection is kept
FAREWELL = (b"NOOP", b"ENABLE CONDSTORE", b"LOGOUT")  # and now it is not


def a_session(site):
    """TLS on both sides, a login by directory and Redis, a new connection; then the same one, parked meanwhile."""
    session(site, "alice", "tls", PARK)
    session(site, "alice", "starttls", FAREWELL)


def pieces(site):
    """Octet by octet, and the client is always ahead: bytes are held that cannot be judged yet, in both directions."""
    commands = (b"CAPABILITY", b"APPEND INBOX {3}\r\nabc", b"IDLE\r\nDONE", b"STARTTLS", b"LOGOUT")
    session(site, "carol", "plain", commands, cut=single_bytes)


def bulk(site):
    """More than the client's kernel takes at once: the rest waits in the proxy."""
    session(site, "bob", "plain", (b"FETCH 1 BODY[]", b"LOGOUT"), receive_buffer=4096)


def directory_connects(site):
    """The connections to the directory were lost: new ones are made."""
    site.directory.cut_off()
    session(site, "bob", "plain", FAREWELL)


def redis_connects(site):
    site.redis.cut_off()
    session(site, "bob", "plain", FAREWELL)


def exchange(site):
    """Messages and challenges of SASL. Nobody reads the challenges, so that a missing one is not waited for."""
    name, password = (base64.b64encode(text.encode()) for text in ("bob", PASSWORD))
    session(site, "bob", "plain", FAREWELL, login=b"AUTHENTICATE LOGIN\r\n" + name + b"\r\n" + password)


def administration(site):
    """
    Each command, octet by octet; one that fails says so, or the connection ends. What an answer lists is complete.
    """
    with contextlib.suppress(ConnectionError, Closed), site.proxy.wire(timeout=ANSWER_SECONDS) as wire:
        if answered(wire, b"LOGIN bob " + PASSWORD.encode()) and answered(wire, b"ENABLE CONDSTORE"):
            administer(site)


def administer(site):
    with socket.socket(socket.AF_UNIX) as peer, contextlib.suppress(ConnectionError):
        peer.settimeout(ANSWER_SECONDS)
        peer.connect(str(site.proxy.folder / "admin.sock"))
        answers = peer.makefile("rb")
        for command, arguments, listed in COMMANDS:
            for octet in json.dumps({"command": command, "arguments": arguments}).encode() + b"\n":
                peer.sendall(bytes([octet]))
            items, answer = [], {}
            while "ok" not in answer:
                line = answers.readline()
                if not line:
                    return
                answer = json.loads(line)
                items += [answer["item"]] if "item" in answer else []
            if not answer["ok"]:
                assert answer["error"], answer
                continue
            items += answer["result"] if isinstance(answer["result"], list) else []
            assert len(items) == listed, (command, items, answer)


def move(site):
    """
    Bob is moved: his session ends before the proxy consents, and his next login waits until he is back. Whether all
    went well.
    """
    login = b"LOGIN bob " + PASSWORD.encode()
    with contextlib.suppress(ConnectionError, Closed), site.proxy.wire(timeout=ANSWER_SECONDS) as there, \
            site.proxy.wire(timeout=ANSWER_SECONDS) as waiting:
        was_in = answered(there, login)
        held = site.proxy.held_logins()
        consented = site.moves.begin("secure")
        if consented and was_in:
            has_ended(there)
        waiting.send(b"t1 " + login + b"\r\n")
        if consented:
            within(CONSENT_SECONDS, lambda: site.proxy.held_logins() > held)
        site.moves.undo()
        return answered(waiting) and all([answered(waiting, command) for command in FAREWELL]) and was_in and consented
    return False


def answered(wire, *command):
    """Whether it has an OK; else it is a proper refusal, or the end."""
    try:
        received = wire.command(*command) if command else wire.read_tagged(b"t1")
    except Closed as end:
        received = b"* BYE \r\n" if end.received.endswith(b"\n") or not end.received else end.received
    assert DONE.search(received) or REFUSED.search(received), received
    return bool(DONE.search(received))


def has_ended(wire):
    """Whoever consents to a move has nobody at the store any more."""
    received = wire.read_to_end()
    assert not received or REFUSED.search(received), received


def reconnection(site):
    """Redis is lost and found again: a beat, the subscription, and what was missed is read."""
    site.redis.cut_off()
    within(RECOVERY_SECONDS, lambda: site.redis.connections() == REDIS_CONNECTIONS)
    return move(site)


# With how many things they list.
COMMANDS = [("version", {}, 0), ("status", {}, 0), ("metrics", {}, 0), ("cache flush", {}, 0), ("log level", {}, 0),
            ("sing", {}, None), ("who", {}, 1), ("who", {"what": "bob"}, 1), ("proxies", {}, 1),
            ("shard list", {}, len(SHARDS)), ("shard weight", {"shard": "store", "weight": "100"}, 0),
            ("explain", {"user": "bob"}, 0), ("routes export", {}, len(SHARDS)),
            ("routes import", {"csv": "".join(f"{user},{at}\n" for user, at in SHARDS.items())}, len(SHARDS)),
            ("kick", {"user": "bob"}, 0)]
STORIES = {"session": a_session, "exchange": exchange, "pieces": pieces, "bulk": bulk, "directory": directory_connects,
           "redis": redis_connects, "move": move}
CONTROL_STORIES = {"administration": administration, "move": move, "reconnection": reconnection}


@pytest.fixture(scope="module")
def site(folder, certificate, shim):
    with contextlib.ExitStack() as stack:
        yield Site(stack, folder, certificate, shim)


class Trial:
    """Plays a story again and again, with each n-th allocation failing in turn, and collects what went wrong."""

    def __init__(self, site, story, own_only, main_only):
        self.site, self.story, self.own_only, self.main_only = site, story, own_only, main_only
        self.known, self.wrong, self.tried = [], [], 0
        self.last_asked = []

    def count(self):
        """How many allocations the story makes; a few more or less each time."""
        self.site.control.arm(NEVER, self.own_only, main_only=self.main_only)
        self.story(self.site)
        return self.site.control.disarm()[0]

    def run(self):
        total = self.count()
        for first in range(1, total + 1, self.step(total)):
            self.play(first)
        print(f"\n{self.story.__name__}: {total} allocations, {self.tried} of them failed, "
              f"{len(self.known)} times a library could not cope, {len(self.wrong)} times something was wrong")
        for story in self.known:
            print("\n".join(line for line in story.splitlines() if "level=" not in line))

    def step(self, total):
        """Each one, if STEP is 1. Else of our own each one or, with OpenSSL's in TLS, some thousand; of others fewer."""
        if STEP == 1:
            return 1
        if self.own_only:
            return total // MANY + 1
        return STEP if total > MANY else STEP // 8 + 1

    def play(self, first):
        site, lines, asked = self.site, len(self.site.proxy.lines), []
        site.control.arm(first, self.own_only, IN_A_ROW, self.main_only)
        try:
            self.story(site)
            _, failed, asked = site.control.disarm()
            self.tried += failed > 0
            site.recover()
            if self.story in (move, reconnection):
                servers.wait_for(lambda: move(site), "the next move", RECOVERY_SECONDS)
            servers.wait_for(lambda: site.proxy.descriptors() <= site.descriptors, "descriptors", 2 * PARK_SECONDS)
        except Exception as failure:
            asked = asked or site.control.disarm()[2]
            self.note(f"allocation {first}: {failure!r}", asked, lines)
        self.last_asked = asked  # it may take effect later

    def note(self, what, asked, lines):
        """Writes down what went wrong, and who had asked in vain; goes on with a new process."""
        proxy = self.site.proxy
        stack = [proxy.name(address) for address in asked or self.last_asked]
        with contextlib.suppress(subprocess.TimeoutExpired):
            proxy.process.wait(1)
        died = proxy.process.poll() is not None
        proxy.process.kill()
        with contextlib.suppress(servers.ServerError):
            proxy.stop()
        known = (died or "descriptors" in what) and any(name in line for name in KNOWN for line in stack)
        (self.known if known else self.wrong).append("\n  ".join([f"{what} ({died=})", *stack, *proxy.lines[lines:]]))
        self.site.start()


# The libraries' part in an exchange is that in any login.
TRIALS = [pytest.param(name, own_only, id=f"{name}-{'own' if own_only else 'libraries'}")
          for own_only in (True, False) for name in STORIES if own_only or name != "exchange"]
CONTROL_TRIALS = [pytest.param(name, own_only, id=f"{name}-{'own' if own_only else 'libraries'}")
                  for own_only in (True, False) for name in CONTROL_STORIES]


@pytest.mark.parametrize("name,own_only", TRIALS)
def test_story(site, name, own_only):
    is_played(site, STORIES[name], own_only, main_only=False)


@pytest.mark.parametrize("name,own_only", CONTROL_TRIALS)
def test_story_of_control_thread(site, name, own_only):
    is_played(site, CONTROL_STORIES[name], own_only, main_only=True)


def is_played(site, story, own_only, main_only):
    if site.proxy is None:
        site.start()
    trial = Trial(site, story, own_only, main_only)
    trial.run()
    assert not trial.wrong, "\n".join(trial.wrong)
    wait_for_metrics(site.proxy, backends_parked=0, leases_waiting=0, logins_in_flight=0)


# A reply of Redis is for who asked for it

class Pair:
    """Alice and bob ask Redis at the same time, for different shards; alice's login meets the failure."""

    def __init__(self, site, stack):
        self.site = site
        self.alice, self.bob, self.other = (stack.enter_context(site.proxy.wire()) for _ in range(3))
        self.lines_before = len(site.proxy.lines)

    def send_login(self, wire, user):
        wire.send(f"in LOGIN {user} {PASSWORD}\r\n".encode())

    def log_in_alice(self, first):
        """With that allocation failing; returns how many there were, and the names of who had asked for that one."""
        control = self.site.control
        control.arm(first, own_only=False)
        self.send_login(self.alice, "alice")
        servers.wait_for(lambda: control.failed() or self.in_route() == 1, "alice to ask Redis")
        with contextlib.suppress(Closed, ConnectionError):  # a library could not cope
            self.let_loop_turn()
        count, _, asked = control.disarm()
        return count, [self.site.proxy.name(address) for address in asked]

    def log_in_bob(self):
        before = self.in_route()
        self.send_login(self.bob, "bob")
        servers.wait_for(lambda: self.in_route() > before, "bob to ask Redis")
        self.let_loop_turn()

    def in_route(self):
        return sum('phase=\\"route\\"' in line for line in self.site.proxy.lines[self.lines_before:])

    def let_loop_turn(self):
        for _ in range(3):
            self.other.command(b"NOOP")

    def check(self):
        """Both are answered, and whoever is in is where its mail is."""
        for wire in (self.alice, self.bob):
            answer = wire.read_tagged(b"in")
            assert DONE.search(answer.replace(b"in ", b"t1 ")) or REFUSED.search(answer), answer
        for line in self.site.proxy.events("login ok"):
            assert line["shard"] == SHARDS[line["user"]], line


def replies_in_order(site, first):
    """One try: how many allocations there were, and the names of who had asked for the one that failed."""
    with contextlib.ExitStack() as stack:
        pair = Pair(site, stack)
        site.redis.hold()
        count, asked = pair.log_in_alice(first)
        of_interest = asked_by_hiredis(asked) and site.proxy.process.poll() is None
        if of_interest:
            pair.log_in_bob()
        site.redis.cut = trickling(0.001)  # else both replies would be read at once
        site.redis.release()
        if of_interest:
            pair.check()
        site.redis.cut = whole
    if site.proxy.process.poll() is not None:
        with contextlib.suppress(servers.ServerError):
            site.proxy.stop()
        site.start()
    return count, asked


def asked_by_hiredis(names):
    return any("libhiredis" in name for name in names)


def test_replies_keep_their_order(site):
    """A command that hiredis has no memory to remember must not lead to its reply being taken for the next one's."""
    if site.proxy is None:
        site.start()
    last, tried = replies_in_order(site, NEVER)[0], 0
    for first in range(last + SPARE, 0, -1):  # Redis is asked last
        site.recover()
        asked = replies_in_order(site, first)[1]
        tried += asked_by_hiredis(asked)
        if tried and not asked_by_hiredis(asked):
            break
    assert tried
