"""What a process has in its memory, as its debugger would see it."""
import array
import mmap


def writable(pid):
    """The present parts of all writable mappings: (what is mapped there, octets)."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, \
            open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in maps:
            span, permissions, _, _, _, *name = line.split(maxsplit=5)
            if not permissions.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for first, last in _present(pagemap, start, end):
                memory.seek(first)
                yield name[0].strip() if name else "anonymous", memory.read(last - first)


def _present(pagemap, start, end):
    """Runs of pages that have been touched: a thread's stack has 8 MiB of others."""
    pagemap.seek(start // mmap.PAGESIZE * 8)
    pages = array.array("Q", pagemap.read((end - start) // mmap.PAGESIZE * 8))
    first = None
    for number, page in enumerate([*pages, 0]):
        touched = page >> 62 != 0  # present, or swapped out
        if touched and first is None:
            first = number
        elif not touched and first is not None:
            yield start + first * mmap.PAGESIZE, start + number * mmap.PAGESIZE
            first = None
