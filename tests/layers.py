#!/usr/bin/python3
"""
Checks the layers: no folder includes or calls one above it, and in those where sessions live no file stands in a cycle.

    tests/layers.py BUILD_FOLDER

By include lines of the sources, and by the symbols that the objects in BUILD_FOLDER/obj define and want.
"""
import pathlib
import re
import subprocess
import sys

# Lowest first. A folder may use itself and those of the rows before it.
ROWS = [
    ["proxy/base"],
    ["proxy/imap", "proxy/net", "proxy/ctl", "auth", "routing"],
    ["proxy/store"],
    ["proxy/session"],
    ["proxy/process"],
    ["proxy/fleet"],
    ["proxy/admin", "proxy/http"],
    ["proxy/main"],
]
# Allowed within the second row: the language is pure, the network knows it not, the others may use both.
BESIDE = {("auth", "proxy/net"), ("routing", "proxy/net")}
# Their files can be read one after the other, each before those that use it. Elsewhere a table and its entries know each other.
WITHOUT_CYCLES = {"proxy/store", "proxy/session", "proxy/process"}
RANK = {folder: rank for rank, row in enumerate(ROWS) for folder in row}


def folder_of(path):
    """The entry of ROWS that a source file belongs to."""
    stem = str(pathlib.PurePath(path).with_suffix(""))
    for folder in RANK:
        if stem == folder or stem.startswith(folder + "/"):
            return folder
    sys.exit(f"{path}: belongs to no layer; add it to ROWS in tests/layers.py")


def allowed(user, used):
    if user == used or RANK[used] < RANK[user]:
        return True
    return RANK[used] == RANK[user] and (user, used) in BESIDE


def include_uses(sources):
    for source in sources:
        for name in re.findall(r'^#include "([^"]+)"', source.read_text(), re.MULTILINE):
            if pathlib.Path(name).exists():
                yield str(source), name


def symbols(build, source):
    listing = subprocess.run(["nm", f"{build}/obj/{source.with_suffix('.o')}"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return ({row[-1] for row in rows if len(row) == 3 and row[1] in "TDBRVW"}, {row[-1] for row in rows if row[0] == "U"})


def symbol_uses(build, sources):
    tables = {source: symbols(build, source) for source in sources if source.suffix == ".c"}
    owner = {name: source for source, (defined, _) in tables.items() for name in defined}
    for source, (_, wanted) in tables.items():
        for name in wanted & owner.keys():
            yield str(source), str(owner[name])


def cycle(edges):
    """One cycle among the edges, or None."""
    state = {}

    def visit(node, path):
        state[node] = "open"
        for target in sorted(edges.get(node, ())):
            if state.get(target) == "open":
                return path[path.index(target):] + [target]
            if target not in state:
                found = visit(target, path + [target])
                if found:
                    return found
        state[node] = "done"
        return None

    for node in sorted(edges):
        if node not in state:
            found = visit(node, [node])
            if found:
                return found
    return None


def cycles(uses):
    """One among the headers of all folders, and one among the files, a header and its source being one, of some."""
    headers, files = {}, {}
    for user, used in uses:
        if user.endswith(".h") and used.endswith(".h"):
            headers.setdefault(user, set()).add(used)
        ends = [str(pathlib.PurePath(path).with_suffix("")) for path in (user, used)]
        if ends[0] != ends[1] and all(folder_of(path) in WITHOUT_CYCLES for path in (user, used)):
            files.setdefault(ends[0], set()).add(ends[1])
    return [found for found in (cycle(headers), cycle(files)) if found]


def main():
    build = sys.argv[1]
    listing = subprocess.run(["git", "ls-files", "proxy", "auth", "routing"], capture_output=True, text=True, check=True)
    sources = [pathlib.Path(name) for name in listing.stdout.split() if name.endswith((".c", ".h"))]
    uses = [*include_uses(sources), *symbol_uses(build, sources)]
    faults = {f"{user}: uses {used}, which is above or beside it" for user, used in uses
              if not allowed(folder_of(user), folder_of(used))}
    faults |= {"cycle: " + " -> ".join(found) for found in cycles(uses)}
    for fault in sorted(faults):
        print(fault)
    print(f"layers: {len(sources)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
