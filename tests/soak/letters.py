"""
The messages of the soak. Each has an id in a header of its own. Its octets follow from its id alone, so that nobody
needs to keep them: what a client fetched, or a store holds at the end, is compared with what is made anew.
"""
import base64
import hashlib
import itertools
import random
import re

ID_HEADER = re.compile(rb"X-Soak: (\S+)\r\n")
# Octets of a body, from and to, and how many of a hundred messages are of that size.
SIZES = [(200, 4_000, 66), (4_000, 60_000, 24), (60_000, 400_000, 8), (1_000_000, 3_000_000, 2)]
# What a proxy might mistake for the language around it.
LINES = [b"Lorem ipsum dolor sit amet, consectetur adipiscing elit.", b"* BYE go away", b"s5 OK done", b"DONE",
         b"+ idling", b")", b"ends in a literal {10}", b"~{5+}", b"{18446744073709551616}", b'" unbalanced \\',
         b"* CAPABILITY IMAP4rev1 AUTH=PLAIN", b"s1 LOGOUT", b"8 bit \xff\xfe\x80", b"", b"x" * 3000]


class Letter:
    """One message: `octets` as they were sent, `attachment` as they stand in its second part, or None."""

    def __init__(self, identity):
        source = random.Random(identity)
        low, high = source.choices([size[:2] for size in SIZES], [size[2] for size in SIZES])[0]
        size = source.randrange(low, high)
        self.identity = identity
        self.attachment = None
        headers = (f"From: ann@example.org\r\nTo: bob@example.org\r\nSubject: {identity} {{3}}\r\n"
                   f"X-Soak: {identity}\r\nMessage-ID: <{identity}@example.org>\r\n"
                   f"Date: Mon, 1 Jan 2024 12:00:00 +0000\r\n").encode()
        if source.random() < 0.3:
            self.attachment = base64.encodebytes(source.randbytes(size * 3 // 4)).replace(b"\n", b"\r\n")
            self.octets = headers + multipart(text_of(source, 300), self.attachment)
        else:
            self.octets = headers + b"\r\n" + text_of(source, size)
        self.digest = digest_of(self.octets)


def text_of(source, size):
    """Lines of at least so many octets in all."""
    chosen = source.choices(LINES, k=8)
    once = b"\r\n".join(chosen) + b"\r\n"
    return once * (size // len(once) + 1)


def multipart(text, attachment):
    return (b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"=cut=\"\r\n\r\npreamble\r\n--=cut=\r\n"
            b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + text +
            b"\r\n--=cut=\r\nContent-Type: application/octet-stream; name=\"a {3}\"\r\n"
            b"Content-Transfer-Encoding: base64\r\n\r\n" + attachment + b"\r\n--=cut=--\r\n")


def digest_of(octets):
    return hashlib.sha256(octets).digest()


class Press:
    """Makes messages that no other has the id of; from several threads."""

    def __init__(self, seed):
        self.seed = seed
        self.numbers = itertools.count(1)

    def letter(self):
        return Letter(f"{self.seed}.{next(self.numbers):07}")
