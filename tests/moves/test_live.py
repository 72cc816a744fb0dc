"""
Users move from one store to another while they work, and meanwhile the master of Redis dies, and then a proxy. Nothing
that was acknowledged may be lost or doubled, and nobody may be on both stores. IMAPMUX_MOVE_USERS=50 moves more of them.
"""
import json
import statistics
import subprocess
import threading

import campus
import people
import servers

USERS = [f"user{number:02}" for number in range(campus.size("IMAPMUX_MOVE_USERS", 12))]
CLIENTS_EACH = 4


def read_lines(stream, lines, changed):
    for line in stream:
        with changed:
            lines.append(json.loads(line))
            changed.notify_all()


class Move:
    """imapmuxctl as it moves all users, and what it has said so far."""

    def __init__(self, place, *words):
        names = place.folder / "users.txt"
        names.write_text("".join(f"{user}\n" for user in USERS))
        command = place.ctl_command(place.proxies[0], "--json", "move", "--from-file", str(names), "--to", "green",
                                    "--parallel", "4", "--sync", place.sync(), *words)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=place.proxies[0].environment())
        self.lines, self.changed = [], threading.Condition()
        threading.Thread(target=read_lines, args=(self.process.stdout, self.lines, self.changed), daemon=True).start()

    def moved(self):
        return [line for line in self.lines if line.get("state") == "moved"]

    def wait_for(self, count, seconds=120):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.moved()) >= count, seconds), json.dumps(self.lines[-20:], indent=1)

    def finish(self, seconds=240):
        complaint = self.process.stderr.read()
        assert self.process.wait(seconds) == 0, (complaint, json.dumps(self.lines[-20:], indent=1))


def judge(place, clients):
    """Whatever is wrong with what the clients have seen, and with what is left."""
    faults = [fault for client in clients for fault in client.faults]
    refusals = {refusal for client in clients for refusal in client.refusals}
    faults += [f"a login was refused with {refusal}" for refusal in refusals - {"[UNAVAILABLE]"}]
    for user in USERS:
        mine = [client for client in clients if client.user == user]
        late = people.overlap([stay for client in mine for stay in client.stays])
        if late:
            faults.append(f"{user} was on both stores for {late} s")
        if any(not client.stays or client.stays[-1].store != "green" for client in mine):
            faults.append(f"{user} has not come back on the new store with all clients")
        there = people.numbers_at(place.stores["green"], user)
        kept = [number for client in mine for number in client.kept]
        uncertain = set().union(*(client.uncertain for client in mine))
        faults += [f"{number} is there {there.count(number)} times" for number in kept if there.count(number) != 1]
        faults += [f"{number} was not acknowledged, and is there {there.count(number)} times"
                   for number in uncertain if there.count(number) > 1]
        faults += [f"{number} was sent by nobody" for number in set(there) - set(kept) - uncertain]
    return faults


def test_users_move_while_redis_and_a_proxy_die():
    with campus.Campus(USERS) as place:
        over, ports = threading.Event(), [proxy.port for proxy in place.proxies]
        clients = [people.Client(user, number, ports, over) for user in USERS for number in range(CLIENTS_EACH)]
        for client in clients:
            client.start()
        servers.wait_for(lambda: all(client.kept for client in clients), "every client to work", 120)
        move = Move(place)
        move.wait_for(len(USERS) // 5)
        place.redis.kill()
        place.watched.master_after(place.redis)
        place.redis.start()  # which becomes a replica: without one no step of a move counts
        move.wait_for(len(move.moved()) + 1)
        move.wait_for(len(USERS) // 2)
        place.proxies[1].kill()
        ports.remove(place.proxies[1].port)
        move.finish()
        counts = {id(client): len(client.kept) for client in clients}
        servers.wait_for(lambda: all(len(client.kept) > counts[id(client)] for client in clients),
                         "every client to work on the new store", 120)
        over.set()
        for client in clients:
            client.join()
        assert not judge(place, clients)
        holds = [line["hold_ms"] for line in move.moved()]
        print(f"{len(holds)} users moved: held for {statistics.median(holds)} ms (median), {max(holds)} ms (worst); "
              f"{sum(len(client.kept) for client in clients)} messages, "
              f"{sum(len(client.uncertain) for client in clients)} without an answer")
