#!/usr/bin/python3
"""
Checks the layers: no module includes or calls one above it, and none stands in a cycle.

    tests/layers.py BUILD_FOLDER

By include lines of the sources, and by the symbols that the objects in BUILD_FOLDER/obj define and want.
"""
import pathlib
import re
import subprocess
import sys

# Lowest first. A module may use those of its own row and of the rows before it; within a row, cycles fail.
ROWS = [
    ["proxy/base"],
    ["proxy/imap", "proxy/net", "proxy/ctl", "auth", "routing"],
    ["proxy/offer", "proxy/client_id", "proxy/store_login", "proxy/gate", "proxy/relay", "proxy/limits", "proxy/registry",
     "proxy/cutover", "proxy/inventory", "proxy/referral", "proxy/history", "proxy/health_state",
     "proxy/json_text", "proxy/preflight", "proxy/privileges"],
    ["proxy/login"],
    ["proxy/store", "proxy/admission"],
    ["proxy/backend", "proxy/store_metrics"],
    ["proxy/lease", "proxy/verify", "proxy/health"],
    ["proxy/pooled"],
    ["proxy/idle"],
    ["proxy/pool_change"],
    ["proxy/pool"],
    ["proxy/home"],
    ["proxy/phase"],
    ["proxy/users"],
    ["proxy/traces"],
    ["proxy/inquiry"],
    ["proxy/entry"],
    ["proxy/relaying"],
    ["proxy/session", "proxy/worker_change"],
    ["proxy/inherited", "proxy/launcher"],
    ["proxy/listeners", "proxy/takeover"],
    ["proxy/worker"],
    ["proxy/expiry", "proxy/ticket_ring"],
    ["proxy/ticket_rotation"],
    ["proxy/ask", "proxy/control"],
    ["proxy/census"],
    ["proxy/ending"],
    ["proxy/pulse"],
    ["proxy/fleet", "proxy/certificates"],
    ["proxy/orders"],
    ["proxy/reload"],
    ["proxy/admin", "proxy/http"],
    ["proxy/main"],
]
# Allowed within the second row: the language is pure, the network knows it not, the others may use both.
BESIDE = {("auth", "proxy/net"), ("routing", "proxy/net")}
RANK = {module: rank for rank, row in enumerate(ROWS) for module in row}


def module_of(path):
    """The entry of ROWS that a source file belongs to."""
    stem = str(pathlib.PurePath(path).with_suffix(""))
    for module in RANK:
        if stem == module or stem.startswith(module + "/"):
            return module
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
    """Files of one cycle among the include edges of headers, or None."""
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


def main():
    build = sys.argv[1]
    listing = subprocess.run(["git", "ls-files", "proxy", "auth", "routing"], capture_output=True, text=True, check=True)
    sources = [pathlib.Path(name) for name in listing.stdout.split() if name.endswith((".c", ".h"))]
    includes = list(include_uses(sources))
    faults = [f"{user}: uses {used}, which is above or beside it" for user, used in
              includes + list(symbol_uses(build, sources)) if not allowed(module_of(user), module_of(used))]
    edges = {}
    for user, used in includes:
        if user.endswith(".h"):
            edges.setdefault(user, set()).add(used)
    loop = cycle(edges)
    if loop:
        faults.append("include cycle: " + " -> ".join(loop))
    for fault in sorted(set(faults)):
        print(fault)
    print(f"layers: {len(sources)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
