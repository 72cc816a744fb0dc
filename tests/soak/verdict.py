"""
The verdict: what can only be seen when all clients have left, and the table that tells how it was.
"""
import collections
import contextlib
import signal

import disturb
import health
import watch
from client import HANG_SECONDS, Client, Trouble, fetched
from imapwire import quoted
from judge import BY_ITSELF
from letters import ID_HEADER, digest_of
from town import READERS

MIB = 1 << 20


def reach(soaking):
    """Judges, with all servers up, and stops the proxy; prints the table."""
    town, judge = soaking.town, soaking.judge
    metrics = health.wait_for_drain(town)
    descriptors = health.descriptors(town)
    for complaint in (soaking.memory.complaints() + health.complaints_of_rest(town.proxy) +
                      health.complaints_of_metrics(metrics, town.connections) +
                      health.complaints_of_descriptors(soaking.descriptors, descriptors)):
        judge.fail(complaint)
    copies = compare_stores(soaking)
    stop_proxy(town, judge)
    disturbances = rows_of_disturbances(town, judge)  # as clients saw them: the log comes next
    health.LogReader(town, judge).read()
    show(rows_of_load(soaking, metrics, copies) + rows_of_health(soaking, descriptors) + disturbances +
         [("failures", len(judge.failures))])


# The stores


def compare_stores(soaking):
    """Every message of everybody, read at the stores themselves; returns how many there are."""
    count = 0
    for person in soaking.town.residents.values():
        found = collections.defaultdict(collections.Counter)
        for shard, folder, octets in all_mail(soaking.town, person):
            header = ID_HEADER.search(octets[:4096])
            identity = header.group(1).decode() if header else f"{octets[:80]!r}"
            place = folder if shard == person.shard else f"{folder} on {shard}"
            found[identity][place] += 1
            count += 1
            if not soaking.ledger.has_octets(identity, digest_of(octets)):
                soaking.judge.fail(f"{identity} of {person.name} in {place} is not what was stored")
        for complaint in soaking.ledger.compare(person.name, found):
            soaking.judge.fail(f"mail of {person.name}: {complaint}")
    return count


def all_mail(town, person):
    """Shard, folder and octets of each message of this user, wherever it is, without the proxy."""
    for shard, store in town.stores.items():
        with Client(town, "plain", port=store.port) as client:
            client.log_in(person.name)
            for folder in folders(client):
                for number in range(1, client.select(folder) + 1):
                    for _, octets in fetched(client.run(b"FETCH %d (UID BODY.PEEK[])" % number)):
                        yield shard, folder, octets


def folders(client):
    listed = [line for line in client.run(b"LIST ", quoted(""), b" ", quoted("*"))
              if line.startswith(b"* LIST") and b"\\Noselect" not in line]
    return [line.rstrip(b"\r\n").partition(b' "/" ')[2].strip(b'"').decode() for line in listed]


# The proxy


def stop_proxy(town, judge):
    """SIGTERM, while somebody waits: she is told, and the proxy ends with 0."""
    with Client(town) as client:
        client.log_in(READERS[0])
        client.select("INBOX")
        town.proxy.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(Trouble), client.troubles():
            client.poll(HANG_SECONDS)
        if not client.bye or "[UNAVAILABLE]" not in client.bye:
            judge.fail(f"SIGTERM, and a client hears {client.responses[-1:]} instead of BYE")
    try:
        town.proxy.process.wait(HANG_SECONDS)
        town.proxy.stop()
    except Exception as problem:
        judge.fail(f"the end of imapmux: {problem}")


# The table


def rows_of_load(soaking, metrics, copies):
    def total(name):
        return health.sum_of(metrics, f"imapmux_{name}_total")
    told, median, most = watch.figures(soaking.postmen)
    sure, unsure = soaking.ledger.count()
    leases = [count for name, count in metrics.items() if name.startswith("imapmux_leases_total")]
    return [
        ("time, seed", f"{soaking.seconds} s, {soaking.seed}"),
        ("client sessions opened / closed", f"{total('sessions_opened')} / {total('sessions_closed')}"),
        ("logins accepted / refused", f"{total('logins_ok')} / {total('logins_refused')}"),
        ("commands that were checked", soaking.soak.commands),
        ("bytes from / to clients", f"{total('bytes_from_clients'):,} / {total('bytes_to_clients'):,}"),
        ("leases new / warm / parked", " / ".join(f"{count:.0f}" for count in leases[:3])),
        ("connections to stores made / ended", f"{total('backend_connects')} / {total('backend_drops')}"),
        ("messages entered in the ledger", soaking.ledger.entered),
        ("  of these kept for sure / unanswered", f"{sure} / {unsure}"),
        ("  copies found at the stores", copies),
        ("notifications in IDLE", f"{told}; median {median:.0f} ms, slowest {most:.0f} ms"),
    ]


def rows_of_health(soaking, after):
    thirds = " / ".join(f"{third / MIB:.1f} MiB" for third in soaking.memory.thirds())
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(after.items()))
    return [
        ("memory, thirds", thirds + (", of a sanitizer: not judged" if soaking.town.proxy.sanitized else "")),
        ("descriptors before / after", f"{soaking.descriptors.total()} / {after.total()}: {kinds}"),
    ]


def rows_of_disturbances(town, judge):
    counts = dict(judge.played, **{BY_ITSELF: sum(len(town.crashes(shard)) for shard in town.stores)})
    rows = []
    for name in [row.name for row in disturb.DISTURBANCES] + [BY_ITSELF]:
        symptoms = [f"{count} {symptom}" for (cause, symptom), count in sorted(judge.excused.items()) if cause == name]
        rows.append((f"disturbance: {name}",
                     f"{counts.get(name, 0)} times, explains {', '.join(symptoms) or 'nothing'}"))
    return rows + [("symptoms that were excused", judge.excused.total())]


def show(rows):
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"{what:<{width}}  {value}")
