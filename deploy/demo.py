#!/usr/bin/python3
"""
A small mail system on free ports of this machine, to look at and to try: a directory with twenty users, Redis with
their routes, two Dovecot stores with some mail, and imapmux before them. Plays a session of two users whose mail is on
different stores, then stays up until it is interrupted; it ends all that it started and leaves nothing behind.

    deploy/demo.py            play the session, stay up
    deploy/demo.py --check    play the session, exit with 0 if all went as it should, with 1 if not
"""
import argparse
import contextlib
import pathlib
import re
import signal
import sys
import textwrap
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))
import servers  # noqa: E402
from imapwire import Sync, Wire, quoted  # noqa: E402

PASSWORD = "open-sesame"
NAMES = ("ann ben cleo dan eve finn gina hans ida jon kim lea max nina otto pia quin rosa sam tina").split()
SHARDS = {name: "blue" if number % 2 == 0 else "green" for number, name in enumerate(NAMES)}
ANN, BEN, CLEO = NAMES[:3]
PROXY_CONF = """\
certificate demo {{ chain = "{chain}" key = "{key}" }}
listener imap  {{ address = {{"127.0.0.1:{imap}"}}  tls = starttls }}
listener imaps {{ address = {{"127.0.0.1:{imaps}"}} tls = implicit }}
auth {{ sources = {{ldap}} }}
ldap {{ uri = {{"{ldap}"}} base = "ou=people,dc=example,dc=org" filter = "(uid=%{{user}})" }}
route {{ sources = {{redis}} }}
redis {{ address = "{redis}" }}
admin {{ socket = "admin.sock" }}
http {{ address = "127.0.0.1:{http}" }}
shard blue  {{ address = {{"{blue}"}}  tls = none }}
shard green {{ address = {{"{green}"}} tls = none }}
"""


class Failed(Exception):
    """Something in the session was not as it should be."""


def must(condition, what):
    if not condition:
        raise Failed(what)


class Printer:
    """Prints a session as a transcript: who, which way, what."""

    colours = {"C": "36", "S": "32", "title": "1", "note": "2"}

    def __init__(self):
        self.coloured = sys.stdout.isatty()

    def paint(self, kind, text):
        return f"\033[{self.colours[kind]}m{text}\033[0m" if self.coloured else text

    def title(self, text):
        print("\n" + self.paint("title", text), flush=True)

    def note(self, text):
        print(self.paint("note", textwrap.fill(text, 96, initial_indent="  ", subsequent_indent="  ")), flush=True)

    def say(self, who, side, data, most=8):
        lines = data.decode(errors="replace").rstrip("\r\n").split("\r\n")
        if len(lines) > most:
            lines[most - 1:] = [f"... {len(lines) - most + 1} more lines"]
        for line in lines:
            line = line if len(line) <= 110 else line[:107] + "..."
            print(f"  {who:<10} {self.paint(side, side + ':')} {line}", flush=True)


class Client:
    """A client of the demo: a connection whose talk is printed."""

    def __init__(self, printer, who, port, tls="implicit"):
        self.printer, self.who = printer, who
        self.wire = Wire(servers.HOST, port, tls=tls)
        printer.say(who, "S", self.wire.greeting)

    def do(self, *parts, shown=None):
        sent = b"".join(getattr(part, "octets", part) for part in parts)
        self.printer.say(self.who, "C", shown or sent)
        answer = self.wire.command(*parts)
        self.printer.say(self.who, "S", answer)
        last = answer.rstrip(b"\r\n").rsplit(b"\r\n", 1)[-1]
        must(re.match(rb"t\d+ OK\b", last), f"{self.who}: {sent[:60]!r} was answered by {last!r}")
        return answer

    def login(self, user):
        return self.do(b"LOGIN " + quoted(user) + b" " + quoted(PASSWORD), shown=f"LOGIN {user} ********".encode())

    def hear(self, word, seconds=5):
        """Waits for an unsolicited response with this word, and prints all that comes."""
        self.wire.socket.settimeout(seconds)
        while True:
            response = self.wire.read_response()
            self.printer.say(self.who, "S", response)
            if word in response:
                return


def mail(sender, recipient, subject, text):
    return (f"From: {sender}@example.org\r\nTo: {recipient}@example.org\r\nSubject: {subject}\r\n"
            f"Date: Mon, 1 Jan 2024 12:00:00 +0000\r\n\r\n{text}\r\n").encode()


class Stage:
    """All servers of the demo, in the order in which they depend on one another."""

    def __init__(self, folder, stack):
        users = {name: PASSWORD for name in NAMES}
        self.chain, key = servers.make_certificate(folder)
        start = stack.enter_context
        self.slapd = start(servers.Slapd(folder / "slapd", users=users))
        self.redis = start(servers.Redis(folder / "redis"))
        self.redis.route(SHARDS)
        self.stores = {name: start(servers.Dovecot(folder / name, users=users, greeting=f"store {name} ready."))
                       for name in ("blue", "green")}
        for name in (ANN, BEN):
            self._deliver(name)
        self.imap, self.imaps, self.http = (servers.free_port() for _ in range(3))
        configuration = PROXY_CONF.format(chain=self.chain, key=key, imap=self.imap, imaps=self.imaps, http=self.http,
                                          ldap=self.slapd.uri, redis=self.redis.address,
                                          blue=self.stores["blue"].address, green=self.stores["green"].address)
        self.proxy = start(servers.Imapmux(folder / "imapmux", configuration=configuration,
                                           ports=[self.imap, self.imaps, self.http]))

    def _deliver(self, name):
        with Wire(servers.HOST, self.stores[SHARDS[name]].port) as wire:
            wire.login(name, PASSWORD)
            wire.command(b"CREATE On-" + SHARDS[name].encode())
            wire.command(b"APPEND INBOX ", Sync(mail("postmaster", name, "Welcome", f"Your mail is on {SHARDS[name]}.")))


def play_user(printer, stage, name):
    shard = SHARDS[name]
    printer.title(f"{name.capitalize()}'s mail is on {shard}: directory, route and store are found at login")
    client = Client(printer, name, stage.imaps)
    client.login(name)
    must(f"On-{shard}".encode() in client.do(b'LIST "" "*"'), f"{name} does not see the mailboxes on {shard}")
    client.do(b"APPEND INBOX ", Sync(mail(name, name, "A note to myself", f"Kept on {shard}.")))
    client.do(b"SELECT INBOX")
    must(f"Kept on {shard}.".encode() in client.do(b"FETCH 2 BODY[]"), f"{name} does not get the message back")
    client.do(b"LOGOUT")


def play_wrong_password(printer, stage):
    printer.title("A wrong password; an unknown name gets the same answer")
    for name in (ANN, "nobody"):
        client = Client(printer, name, stage.imaps)
        printer.say(name, "C", f"LOGIN {name} ********".encode())
        answer = client.wire.command(b"LOGIN " + name.encode() + b" wrong")
        printer.say(name, "S", answer)
        must(b" NO [AUTHENTICATIONFAILED]" in answer, f"{name} was answered by {answer!r}")
        client.wire.close()


def play_idle(printer, stage):
    printer.title(f"{ANN.capitalize()}'s telephone idles, over STARTTLS; her desktop puts a message into the mailbox")
    phone = Client(printer, "telephone", stage.imap, tls="starttls")
    desktop = Client(printer, "desktop", stage.imaps)
    phone.login(ANN)
    phone.do(b"SELECT INBOX")
    printer.say("telephone", "C", b"IDLE")
    phone.wire.send(b"i1 IDLE\r\n")
    phone.hear(b"+")
    desktop.login(ANN)
    start = time.monotonic()
    desktop.do(b"APPEND INBOX ", Sync(mail(BEN, ANN, "News", "Hello!")))
    phone.hear(b"EXISTS")
    printer.note(f"The telephone heard of it after {time.monotonic() - start:.1f} s.")
    printer.say("telephone", "C", b"DONE")
    phone.wire.send(b"DONE\r\n")
    printer.say("telephone", "S", phone.wire.read_tagged(b"i1"))
    phone.do(b"LOGOUT")
    desktop.do(b"LOGOUT")


def play_webmail(printer, stage):
    printer.title("Webmail: a session for each click; the store sees one login")
    store = stage.stores[SHARDS[CLEO]]
    before = store.output().count(f"Login: user=<{CLEO}>")
    for _ in range(3):
        client = Client(printer, CLEO, stage.imaps)
        client.login(CLEO)
        client.do(b"STATUS INBOX (MESSAGES)")
        client.do(b"LOGOUT")
    count = store.output().count(f"Login: user=<{CLEO}>") - before
    printer.note(f"{SHARDS[CLEO].capitalize()}'s log has {count} login of {CLEO}: imapmux has kept the connection.")
    must(count == 1, f"{count} logins at the store for three sessions")


def capabilities(answer):
    found = re.search(rb"CAPABILITY ([^]\r\n]*)", answer)
    must(found, f"no capabilities in {answer!r}")
    return found.group(1).decode().split()


def play_capability(printer, stage):
    printer.title("CAPABILITY after login: directly at the store, and through imapmux")
    with Wire(servers.HOST, stage.stores["blue"].port) as direct, \
            Wire(servers.HOST, stage.imaps, tls="implicit") as through:
        direct.login(ANN, PASSWORD)
        through.login(ANN, PASSWORD)
        at_store, at_proxy = (capabilities(wire.command(b"CAPABILITY")) for wire in (direct, through))
    for word in sorted(set(at_store) | set(at_proxy)):
        print(f"  {word if word in at_store else '-':<28} {word if word in at_proxy else '-'}")
    must({"IMAP4rev1", "IDLE"} <= set(at_proxy), "imapmux hides what the store can do")
    must("STARTTLS" not in at_proxy, "imapmux offers STARTTLS on a connection with TLS")


def play(printer, stage):
    for name in (ANN, BEN):
        play_user(printer, stage, name)
    play_wrong_password(printer, stage)
    play_idle(printer, stage)
    play_webmail(printer, stage)
    play_capability(printer, stage)


def print_addresses(printer, stage):
    printer.title("To try by hand (any of the names, one password)")
    print(f"""\
  imapmux    imaps://{servers.HOST}:{stage.imaps}   imap://{servers.HOST}:{stage.imap} (STARTTLS)
  status     http://{servers.HOST}:{stage.http}/   (also /metrics, /healthz, /readyz)
  stores     blue {stage.stores['blue'].address}   green {stage.stores['green'].address}
  directory  {stage.slapd.uri}   redis {stage.redis.address}
  names      {' '.join(NAMES)}
  password   {PASSWORD}
  files      {stage.proxy.folder.parent} (proxy.conf is in imapmux/)

  openssl s_client -quiet -crlf -connect {servers.HOST}:{stage.imaps}
  {stage.proxy.binary.with_name('imapmuxctl')} -s {stage.proxy.folder / 'admin.sock'} status
  curl --cacert {stage.chain} -u {ANN}:{PASSWORD} 'imaps://localhost:{stage.imaps}/INBOX;MAILINDEX=1'""", flush=True)


def wait_for_signal():
    print("\nUp until Ctrl-C.", flush=True)
    while True:
        signal.pause()


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description="imapmux with real servers around it, to look at and to try.")
    parser.add_argument("--check", action="store_true", help="end after the session; exit with 1 if it went wrong")
    check = parser.parse_args().check
    signal.signal(signal.SIGTERM, interrupted)
    printer = Printer()
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(servers.Folder("imapmux-demo-"))
            printer.title("Starting a directory, Redis, two Dovecot stores and imapmux")
            stage = Stage(folder, stack)
            play(printer, stage)
            print_addresses(printer, stage)
            if not check:
                wait_for_signal()
    except KeyboardInterrupt:
        print("\nStopped.")
    except (Failed, servers.ServerError, OSError, AssertionError, EOFError) as failure:
        print(f"\nFAILED: {failure}", file=sys.stderr)
        return 1
    if check:
        print("\nAll as it should be.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
