"""Bytes that look like IMAP and are not quite: made of good ones, by a source of randomness that can be repeated."""

FRAGMENTS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b'"', b"\\", b'\\"', b"*", b"+ ", b"(", b")", b"[", b"]", b"(" * 40,
    b"{3}\r\n", b"{0+}\r\n", b"{5+}\r\nabc", b"~{2}\r\n", b"{4294967296+}\r\n", b"{9223372036854775807}\r\n",
    b"{99999999999999999999}\r\n", b"{-1}\r\n", b"{}\r\n", b"{1", b"\xff\xfe", b"\xc3\xa4", b"%s%n", b"A" * 300,
    b"a1 NOOP\r\n", b"x IDLE\r\n", b"DONE\r\n", b"z LOGOUT\r\n", b"q STARTTLS\r\n", b"q COMPRESS DEFLATE\r\n",
    b"l LOGIN alice secret\r\n", b"l AUTHENTICATE PLAIN\r\n", b"AGFsaWNlAHNlY3JldA==\r\n", b"=" * 7, b"*\r\n",
    b"* OK [CAPABILITY STARTTLS] x\r\n", b"* BYE x\r\n", b"* PREAUTH x\r\n", b"L OK done\r\n", b"L NO [ALERT] no\r\n",
    b"P OK\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\r\n\r\n\0\r\nQUIT\n",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
]
STRETCHED_MAX = 90_000  # more than any line before login may have


def part(source, data):
    """Where a random part of the data begins and ends; mostly a short one."""
    start = source.randint(0, len(data))
    return start, min(len(data), start + source.choice((1, 1, 2, 5, 20, 200)))


def drop(source, data):
    start, end = part(source, data)
    return data[:start] + data[end:]


def double(source, data):
    start, end = part(source, data)
    return data[:end] + data[start:]


def stretch(source, data):
    start, end = part(source, data)
    times = source.randint(2, max(2, STRETCHED_MAX // max(1, end - start)))
    return data[:start] + data[start:end] * times + data[end:]


def insert(source, data):
    at = source.randint(0, len(data))
    return data[:at] + source.choice(FRAGMENTS) + data[at:]


def overwrite(source, data):
    start, end = part(source, data)
    return data[:start] + source.randbytes(end - start) + data[end:]


def shuffle_lines(source, data):
    lines = data.splitlines(keepends=True)
    source.shuffle(lines)
    return b"".join(lines)


def truncate(source, data):
    return data[:source.randint(0, len(data))]


MUTATIONS = [drop, double, insert, insert, insert, overwrite, shuffle_lines, truncate]


def mutated(source, data):
    """The data after some mutations; now and then none, seldom a large one."""
    for _ in range(source.choice((0, 1, 1, 1, 2, 2, 4, 8))):
        data = source.choice(MUTATIONS)(source, data)
    return stretch(source, data) if source.random() < 0.04 else data


def garbage(source, longest=400):
    """Fragments and random octets."""
    pieces = (source.choice(FRAGMENTS) if source.random() < 0.7 else source.randbytes(source.randint(1, 30))
              for _ in range(source.randint(1, 30)))
    return b"".join(pieces)[:longest]


def cut(source, data):
    """The data in at most some hundred pieces."""
    if len(data) < 200 and source.random() < 0.2:
        largest = 1
    else:
        largest = max(1, source.choice((len(data), len(data) // 2, len(data) // 20, len(data) // 100)))
    at = 0
    while at < len(data):
        size = source.randint(1, largest)
        yield data[at:at + size]
        at += size
