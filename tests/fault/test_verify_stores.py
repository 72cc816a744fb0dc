"""Comparing a user's mailboxes at stores that do not behave: slow, wordy, wrong, gone."""
import json
import signal
import subprocess

import pytest

import servers
from stage import CAPABILITIES, Store, shard
from test_admin import FAILED, ctl, done

MASTER = ('connect_timeout = 20s login_timeout = 20s '
          'passwordless_login = master_authzid master_user = "top" master_password_file = "master"')
STATUS = b"(MESSAGES 2 UIDNEXT 3 UIDVALIDITY 9)"


def teller(mailboxes, capabilities=CAPABILITIES, status=lambda name: STATUS, spaces=b"NIL NIL NIL"):
    """A store with these mailboxes, in the form of LIST's argument; STATUS is told if it is asked for."""
    def script(peer):
        peer.log_in(capabilities)
        while True:
            command = peer.command()
            tag, name = command.split()[:2]
            if name == b"NAMESPACE":
                peer.send(b"* NAMESPACE " + spaces + b"\r\n")
            elif name == b"LIST":
                peer.send(b"".join(b"* LIST () \"/\" %s\r\n" % mailbox for mailbox in mailboxes))
            elif name == b"STATUS":
                mailbox = command.split(b" ", 2)[2].rpartition(b" (")[0]
                if status(mailbox) is None:
                    peer.send(tag + b" NO not this one\r\n")
                    continue
                peer.send(b"* STATUS %s %s\r\n" % (mailbox, status(mailbox)))
            elif name == b"LOGOUT":
                return
            peer.send(tag + b" OK done\r\n")
    return script


GOOD = teller([b"INBOX", b"a", b'"b c"', b'"q \\"x\\" \\\\"'])


@pytest.fixture(scope="module")
def one():
    with Store(GOOD) as store:
        yield store


@pytest.fixture(scope="module")
def other():
    with Store(GOOD) as store:
        yield store


@pytest.fixture(scope="module")
def begin(start, folder):
    def begin_one(*ports, more=""):
        master = folder / "verify-master"
        master.write_text("secret")
        master.chmod(0o600)
        shards = "".join(shard(name, port, more=MASTER.replace('"master"', f'"{master}"'))
                         for name, port in zip(("store", "other"), ports))
        return start(shards, more='admin { socket = "admin.sock" }\n' + more)
    return begin_one


@pytest.fixture(scope="module")
def proxy(begin, one, other):
    return begin(one.port, other.port)


@pytest.fixture(autouse=True)
def check(one, other):
    one.script = other.script = GOOD
    yield
    for store in one, other:
        store.check()


VERIFY = ["cutover", "verify", "alice", "store", "other"]


def why_not(proxy):
    result = ctl(proxy, *VERIFY)
    assert (result.returncode, result.stdout) == (FAILED, ""), result
    return result.stderr.removeprefix("imapmuxctl: alice: ").rstrip("\n")


def differences(proxy):
    result = ctl(proxy, "--json", *VERIFY)
    assert result.returncode == FAILED, result
    return [tuple(json.loads(line).values()) for line in result.stdout.splitlines()]


def test_without_extensions(proxy, one):
    one.peers.clear()
    assert json.loads(done(proxy, "--json", *VERIFY)) == {"mailboxes": 4, "messages": 8}
    asked = [line.split(b" ", 1)[1] for line in one.peers[-1].heard if line.startswith((b"L LIST", b"S "))]
    assert asked == [b'LIST "" "*"\r\n'] + [b"STATUS %s (MESSAGES UIDNEXT UIDVALIDITY)\r\n" % name for name in
                                            (b'"INBOX"', b'"a"', b'"b c"', b'"q \\"x\\" \\\\"')]


def test_for_people(proxy, other):
    assert done(proxy, *VERIFY).split() == ["mailboxes", "4", "messages", "8"]
    other.script = teller([b"INBOX", b"a", b'"b c"'])
    result = ctl(proxy, *VERIFY)
    assert result.returncode == FAILED and "only at store" in result.stdout
    assert result.stderr == 'imapmuxctl: alice: 1 mailbox differs: q "x" \\: only at store\n'


@pytest.mark.parametrize("name", [b'"a\xff\\"b"', b"{5}\r\nm\xc3\xa4r\r", b'"' + b"\xc3\xa4" * 4000 + b'"', b'"\x1b[2J"'])
def test_names_with_any_octet(proxy, one, other, name):
    one.script = teller([b"INBOX", name])
    other.script = teller([b"inbox"])
    assert [what for _, what in differences(proxy)] == ["only at store"]
    assert "\x1b" not in ctl(proxy, *VERIFY).stderr


def test_many_questions_at_once(proxy, one, other):
    names = [b"m%d" % number for number in range(2000)]
    one.script = teller(names)
    other.script = teller(names[::-1])
    assert json.loads(done(proxy, "--json", *VERIFY)) == {"mailboxes": 2000, "messages": 4000}


def test_no_to_status(proxy, one, other):
    other.script = teller([b"INBOX", b"a", b'"b c"', b'"q \\"x\\" \\\\"'],
                          status=lambda name: None if name == b'"a"' else STATUS)
    assert differences(proxy) == [("a", "other tells no STATUS of it")]


def test_a_name_that_cannot_be_asked_for(proxy, one, other):
    one.script = other.script = teller([b"INBOX", b"{3}\r\na\rb"])
    assert differences(proxy) == [("a\rb", "store tells no STATUS of it")]


def test_other_namespaces_do_not_count(proxy, one, other):
    one.script = teller([b"INBOX", b"INBOX/a", b"user/bob/x", b"shared/y"], CAPABILITIES + b" NAMESPACE",
                        spaces=b'(("INBOX/" "/" "X-P" ("a" "b"))) (("user/" "/")) (("shared/" NIL)("#x" "."))')
    other.script = teller([b"INBOX", b"a"])
    assert json.loads(done(proxy, "--json", *VERIFY)) == {"mailboxes": 2, "messages": 4}


def answers(text, capabilities=CAPABILITIES):
    """Says this to whatever comes first."""
    def script(peer):
        peer.log_in(capabilities)
        peer.command()
        peer.send(text)
        peer.wait_for_end()
    return script


def too_many(peer):
    peer.log_in()
    peer.command()
    for first in range(0, 100001, 1000):
        peer.send(b"".join(b"* LIST () NIL %d\r\n" % number for number in range(first, first + 1000)))
    peer.wait_for_end()


def too_much(peer):
    peer.log_in()
    peer.command()
    chatter = b"* OK so\r\n" * 100000
    while True:
        peer.send(chatter)


def gone(peer):
    peer.log_in()
    peer.command()


def no_login(peer):
    peer.greet()
    peer.until_login()
    peer.send(b"L NO [AUTHORIZATIONFAILED] not as alice\r\n")
    peer.wait_for_end()


@pytest.mark.parametrize("script,reason", [
    (answers(b"* BYE going down\r\n"), "it says BYE"), (answers(b"+ more?\r\n"), "it does not speak IMAP"),
    (answers(b"\x00\r\n"), "it does not speak IMAP"), (answers(b"L NO no list\r\n"), "it refuses LIST"),
    (answers(b"* LIST rubbish\r\n"), "what it tells makes no sense: * LIST rubbish"),
    (answers(b"* STATUS a (MESSAGES many)\r\n"), "what it tells makes no sense: * STATUS a (MESSAGES many)"),
    (answers(b"* NAMESPACE rubbish\r\n", CAPABILITIES + b" NAMESPACE"), "what it tells makes no sense: * NAMESPACE"),
    (answers(b"* LIST () NIL \"" + b"x" * 70000), "a response is too long"),
    (answers(b"* LIST () NIL {99999999}\r\n"), "a response is too long"),
    (too_many, "more than 100000 mailboxes"), (too_much, "it tells too much"), (gone, "closed by the store"),
    (no_login, "login refused: [AUTHORIZATIONFAILED] not as alice")], ids=lambda value: getattr(value, "__name__", None))
def test_stores_that_are_of_no_use(proxy, one, other, script, reason):
    other.script = script
    why = why_not(proxy)
    assert reason in why and ("shard other" in why or "login refused" in why)
    servers.wait_for(lambda: servers.connections_to(one.port, proxy.process) == 0, "the connections to end")


def silent(peer):
    peer.log_in()
    peer.wait_for_end()


def test_a_store_that_never_answers(begin, one, other):
    proxy = begin(one.port, other.port, more="cutover { verify_timeout = 1s }\n")
    other.script = silent
    assert why_not(proxy) == "shard other: not done within verify_timeout"
    one.script = silent
    assert why_not(proxy) == "shard store: not done within verify_timeout"


def test_whoever_asked_has_gone(proxy, one, other):
    other.script = silent
    program = proxy.binary.with_name("imapmuxctl")
    asking = subprocess.Popen([program, "-s", proxy.folder / "admin.sock", *VERIFY], env=proxy.environment())

    def connections():
        return servers.connections_to(other.port, proxy.process)
    servers.wait_for(lambda: connections() > 0, "a connection")
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    servers.wait_for(lambda: connections() == 0, "the connection to end")


def test_the_process_ends_meanwhile(begin, one, other):
    proxy = begin(one.port, other.port)
    other.script = silent
    asking = subprocess.Popen([proxy.binary.with_name("imapmuxctl"), "-s", proxy.folder / "admin.sock", *VERIFY],
                              env=proxy.environment(), stderr=subprocess.PIPE)
    servers.wait_for(lambda: servers.connections_to(other.port, proxy.process) > 0, "a connection")
    assert proxy.stop() == 0
    assert asking.wait() == FAILED and b"ended without an answer" in asking.stderr.read()
    asking.stderr.close()


def test_a_shard_that_is_none(proxy):
    result = ctl(proxy, "cutover", "verify", "alice", "store", "nowhere")
    assert result.stderr == 'imapmuxctl: there is no shard "nowhere"\n'
