"""
A client that believes nothing: every response must be one that the server could have had a reason to send. Whatever
goes wrong becomes a Trouble with a symptom, for the judge to compare with what was disturbed at that time.
"""
import base64
import contextlib
import re
import socket
import ssl
import struct
import time

import servers
from imapwire import Closed, NonSync, Sync, Wire, quoted

HANG_SECONDS = 75
PASSWORD = 'pass "word\\ %'
TLS_OF = {"plain": None, "starttls": "starttls", "tls": "implicit"}
UNTAGGED = re.compile(rb"\* (\d+ (EXISTS|RECENT|EXPUNGE|FETCH \(.*\))|(OK|NO|BYE) [^\r\n]*"
                      rb"|(FLAGS|CAPABILITY|LIST|LSUB|STATUS|SEARCH|ESEARCH|ID|NAMESPACE)( .*)?)\r\n", re.DOTALL)
CONTINUATION = re.compile(rb"\+ [^\r\n]*\r\n")
TAGGED = re.compile(rb"(\S+) (OK|NO|BAD) [^\r\n]*\r\n")
# What a refused login is called, by the code of its answer.
REFUSALS = {b"[UNAVAILABLE]": "unavailable", b"[CONTACTADMIN]": "no route", b"[AUTHENTICATIONFAILED]": "denied"}
EXISTS = re.compile(rb"\* (\d+) EXISTS\r\n")
LITERAL = re.compile(rb" \{(\d+)\}\r\n")
UID = re.compile(rb"UID (\d+)")


class Trouble(Exception):
    """
    `symptom` is one of: cut (the connection ended), bye, no (a command was refused), the values of REFUSALS, hang, and
    wrong, which nothing excuses. `since` is when all was well for the last time.
    """

    def __init__(self, symptom, detail, since=None):
        super().__init__(f"{symptom}: {detail}")
        self.symptom, self.detail = symptom, detail
        self.since = time.monotonic() if since is None else since


class Client(Wire):
    """A connection through the proxy, or, with a `port`, to something else."""

    tag_form = b"s%d"

    def __init__(self, town, listener="tls", port=None, ticket=None, **options):
        self.responses, self.open_tags, self.bye = [], set(), None
        self.well_at = time.monotonic()
        self.ticket = ticket
        with self.troubles():
            super().__init__(servers.HOST, port or town.ports[listener], tls=TLS_OF[listener], context=town.tls_context,
                             timeout=HANG_SECONDS, **options)
        if not port:
            town.count_connection()

    def start_tls(self, name="localhost"):
        self.socket = self.context.wrap_socket(self.socket, server_hostname=name, session=self.ticket)

    @contextlib.contextmanager
    def troubles(self):
        """Everything that a socket can come up with, as a Trouble."""
        try:
            yield
        except TimeoutError:
            raise Trouble("hang", f"no answer within {HANG_SECONDS} s to {self.open_tags}", self.well_at) from None
        except (Closed, OSError) as problem:  # ssl.SSLError is an OSError
            symptom = "bye" if self.bye else "cut"
            raise Trouble(symptom, (self.bye or str(problem))[-200:], self.well_at) from None

    # Receiving

    def read_response(self):
        response = super().read_response()
        tagged = TAGGED.fullmatch(response)
        if tagged and tagged.group(1) in self.open_tags:
            self.open_tags.remove(tagged.group(1))
        elif not UNTAGGED.fullmatch(response) and not (self.open_tags and CONTINUATION.fullmatch(response)):
            raise Trouble("wrong", f"what is {response[-200:]!r} an answer to? Open are {self.open_tags}")
        if response.startswith(b"* BYE "):
            self.bye = response.decode(errors="replace").rstrip()
        self.responses.append(response)
        return response

    def next_tag(self):
        tag = super().next_tag()
        self.open_tags.add(tag)
        return tag

    def command(self, *parts, tag=None):
        tag = tag or self.next_tag()
        self.open_tags.add(tag)
        return super().command(*parts, tag=tag)

    def poll(self, seconds):
        """The next response, or None if none comes within this time."""
        self.socket.settimeout(seconds)
        try:
            return self.read_response()
        except TimeoutError:  # the beginning of a response is kept
            return None
        finally:
            self.socket.settimeout(HANG_SECONDS)

    # Commands

    def run(self, *parts):
        """Sends a command that must succeed, and returns its responses."""
        return self.run_all([parts])

    def run_all(self, commands, before_reading=lambda: None):
        """The same with several, sent together: then without literals that are waited for."""
        self.responses = []
        with self.troubles():
            if len(commands) == 1:
                self.command(*commands[0])
            else:
                tags = [self.next_tag() for _ in commands]
                self.send(b"".join(written(tag, parts) for tag, parts in zip(tags, commands)))
                before_reading()
                while self.open_tags:
                    self.read_response()
        for response in self.responses:
            self._judge(response, commands)
        self.well_at = time.monotonic()
        return self.responses

    def _judge(self, response, commands):
        status = response.split(b" ", 2)[1]
        if b"[EXPUNGEISSUED]" in response or response[:1] in b"*+":
            return  # others expunge, too
        if status != b"OK":
            symptom = "no" if status == b"NO" else "wrong"
            raise Trouble(symptom, f"{response!r} to {str(commands)[:200]}", self.well_at)

    def log_in(self, user, password=PASSWORD, how="LOGIN"):
        """Logs in, or tells in a Trouble why not."""
        self.responses = []
        command = {
            "LOGIN": lambda: (b"LOGIN " + quoted(user) + b" " + quoted(password),),
            "literals": lambda: (b"LOGIN ", Sync(user.encode()), b" ", NonSync(password.encode())),
            "PLAIN": lambda: (b"AUTHENTICATE PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()),),
        }[how]()
        with self.troubles():
            self.command(*command)
        status, code = self.responses[-1].split(b" ", 3)[1:3]
        if status == b"NO":
            raise Trouble(REFUSALS.get(code, "wrong"), f"login of {user}: {self.responses[-1]!r}", self.well_at)
        if status != b"OK" or not code.startswith(b"[CAPABILITY"):
            raise Trouble("wrong", f"login of {user}: {self.responses[-1]!r}")
        self.well_at = time.monotonic()

    def select(self, folder):
        """SELECT; the number of messages."""
        return int(EXISTS.search(b"".join(self.run(b"SELECT ", quoted(folder)))).group(1))

    def log_out(self):
        self.responses = []
        with self.troubles():
            self.command(b"LOGOUT")
        if not self.bye or b" OK " not in self.responses[-1]:
            raise Trouble("wrong", f"LOGOUT is answered {self.responses}")
        with self.troubles():
            rest = self.buffered + self.read_to_end()
        if rest:
            raise Trouble("wrong", f"{rest[-200:]!r} after LOGOUT")

    # Ends

    def reset(self):
        """Closes with RST, whatever is under way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def take_ticket(self):
        """What the next connection may resume its TLS session with."""
        return self.socket.session if isinstance(self.socket, ssl.SSLSocket) else None


def written(tag, parts):
    """A command as it goes over the wire if nobody waits for anything."""
    pieces = [part.header % len(part.octets) + part.octets if isinstance(part, NonSync) else part for part in parts]
    return tag + b" " + b"".join(pieces) + b"\r\n"


def fetched(responses):
    """UID and octets of each FETCH response that has exactly one literal in it."""
    for response in responses:
        literal = LITERAL.search(response)
        if response.startswith(b"* ") and literal and b" FETCH (" in response[:literal.start()]:
            end = literal.end() + int(literal.group(1))
            uid = UID.search(response[:literal.start()] + response[end:])
            yield int(uid.group(1)), response[literal.end():end]
