"""An imapmux for the tests of imapmuxctl: it speaks the protocol of administration, knows routes, moves and waves, and
misbehaves when it is told to."""
import collections
import contextlib
import json
import os
import socket
import threading


class Refused(Exception):
    def __init__(self, text, again=False):
        super().__init__(text)
        self.again = again


class Lost(Exception):
    """The connection ends without an answer."""


class Process:
    """
    `misbehave[command]` is a list of functions, one for each of the next requests, each called with the arguments and a
    function that carries out what was asked: what it returns is the result. None in the list behaves well.
    """

    def __init__(self, path, shards=("blue", "green"), users=()):
        self.path, self.shards = str(path), shards
        self.routes = {user: {"shard": shards[0], "state": "active", "epoch": 0} for user in users}
        self.waves, self.holders = {}, {}
        self.listened_to = {}  # user -> the trace at the proxy of this process; another one may listen at other proxies
        self.misbehave = collections.defaultdict(list)
        self.requests, self.failures = [], []
        self.missing = []  # proxies that do not let go
        self.most_at_once = 0
        self.lock = threading.RLock()
        self.listener = None
        self.listen()

    # --- the socket ---

    def listen(self):
        with_name = socket.socket(socket.AF_UNIX)
        with_name.bind(self.path)
        with_name.listen(64)
        self.listener = with_name
        threading.Thread(target=self._accept, args=(with_name,), daemon=True).start()

    def _accept(self, listener):
        while True:
            try:
                peer = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def close(self):
        os.unlink(self.path)
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self, peer):
        with contextlib.suppress(ConnectionResetError), peer, peer.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                assert len(line) <= 64 * 1024 and request.keys() == {"command", "arguments"}
                try:
                    for answer in self._answer(request["command"], request["arguments"]):
                        peer.sendall(json.dumps(answer).encode() + b"\n")
                except (Lost, OSError):
                    return
                except Exception as failure:
                    self.failures.append(failure)
                    raise

    def _answer(self, command, arguments):
        with self.lock:
            self.requests.append((command, arguments))
            behaviour = self.misbehave[command].pop(0) if self.misbehave[command] else None
        method = getattr(self, command.replace(" ", "_"))

        def carry_out():
            with self.lock:
                return method(**{name.replace("-", "_"): value for name, value in arguments.items()})
        try:
            result = behaviour(arguments, carry_out) if behaviour else carry_out()
        except Refused as refusal:
            return [{"ok": False, "error": str(refusal), **({"again": True} if refusal.again else {})}]
        items, result = result if isinstance(result, tuple) else ([], result)
        return [{"item": item} for item in items] + [{"ok": True, "result": result}]

    def asked(self, command):
        with self.lock:
            return [arguments for name, arguments in self.requests if name == command]

    # --- commands ---

    def version(self):
        return "fake"

    def shard_list(self):
        return [{"shard": shard, "state": "up", "health": "up"} for shard in self.shards]

    def route(self, user):
        route = self.routes.get(user)
        if route is None:
            raise Refused("no source of routes knows this user")
        return {"user": user, "shard": route["shard"], "state": route["state"], "source": "redis",
                "epoch": route["epoch"], "backend_user": route.get("backend_user", user), "age_ms": 0, "stale": False}

    def _describe(self, user, move=None):
        route = self.routes[user]
        missing = self.missing if route["state"] == "moving" else []
        return {"state": route["state"], "shard": route["shard"], "epoch": route["epoch"], "acked": 1,
                "missing": missing, "lacking": len(missing), "done": move is not None and route.get("moved_by") == move}

    def _mine(self, user, move):
        route = self.routes.get(user)
        if route is None or route.get("move") != move:
            raise Refused(f"{user}: no such move is under way")
        return route

    def cutover_begin(self, user, to, move=None):
        route = self.routes[user]
        if to not in self.shards:
            raise Refused(f'there is no shard "{to}"')
        if route.get("move") != move or route.get("target") != to:
            if route["state"] != "active":
                raise Refused(f"{user}: being moved")
            if route["shard"] == to:
                raise Refused(f"{user}: at shard {to} already")
            route.update(state="moving", target=to, move=move, epoch=route["epoch"] + 1)
            moving = [name for name, other in self.routes.items() if other["state"] == "moving"]
            self.most_at_once = max(self.most_at_once, len(moving))
        return {"user": user, "from": route["shard"], "to": to, "epoch": route["epoch"], "move": move,
                "state": "moving"}

    def cutover_look(self, user, move):
        if self.routes[user].get("moved_by") != move:
            self._mine(user, move)
        return self._describe(user, move)

    def cutover_verify(self, user, **shards):
        assert set(shards) == {"from", "to"} and self.routes[user]["state"] == "moving"
        return {"mailboxes": 3, "messages": 17}

    def cutover_commit(self, user, move):
        if self.routes[user].get("moved_by") == move:
            return self._describe(user, move)
        route = self._mine(user, move)
        if self.missing and route["state"] == "moving":
            raise Refused(f"{user}: 1 proxy has not let go of the user yet")
        route.update(state="active", shard=route.pop("target"), epoch=route["epoch"] + 1, moved_by=route.pop("move"))
        return self._describe(user, move)

    def cutover_abort(self, user, move):
        route = self._mine(user, move)
        if route["state"] != "moving":
            raise Refused("committed already")
        route.update(state="active", epoch=route["epoch"] + 1)
        del route["move"], route["target"]
        return self._describe(user)

    def trace_fetch(self, user, trace, end=None):
        lines = [{"at_ms": 0, "proxy": "here", "session": "1", "from": "proxy", "text": "here"}]
        if self.listened_to.setdefault(user, trace) != trace:
            lines = [{"proxy": "here", "refused": "somebody else traces this user"}]
        elif end:
            del self.listened_to[user]
        return lines, None

    def wave_create(self, wave, record):
        self.waves[wave] = ({}, json.loads(record))

    def wave_add(self, wave, record):
        self.waves[wave][0].update(json.loads(record))

    def wave_hold(self, wave, owner, release=None):
        if self.holders.setdefault(wave, owner) != owner:
            raise Refused(f"held by {self.holders[wave]}")
        if release:
            del self.holders[wave]

    def wave_show(self, wave):
        if wave not in self.waves:
            raise Refused(f"there is no wave {wave}")
        users, parameters = self.waves[wave]
        return [{"user": user, **record} for user, record in users.items()], parameters

    def wave_list(self):
        return [{"wave": wave, "users": len(users), "holder": self.holders.get(wave, ""), **parameters}
                for wave, (users, parameters) in self.waves.items()], None

    def routes_export(self, shard=None):
        return [{"user": user, "shard": route["shard"], "state": route["state"],
                 "backend_user": route.get("backend_user"), "epoch": route["epoch"]}
                for user, route in self.routes.items() if shard in (None, route["shard"])], None

    def routes_import(self, csv, replace=None, dry_run=None):
        assert replace in (None, "yes") and dry_run in (None, "yes")
        return [self._import_line([field.strip() for field in line.split(",")], replace, dry_run)
                for line in csv.splitlines()], None

    def _import_line(self, fields, replace, dry_run):
        user, to = fields[0], fields[1] if len(fields) > 1 else None
        old = self.routes.get(user, {}).get("shard")
        why = ("no shard" if to is None else f'there is no shard "{to}"' if to not in self.shards else
               "has another route" if old not in (None, to) and not replace else None)
        action = "refused" if why else "new" if old is None else "same" if old == to else "changed"
        if not why and not dry_run:
            self.routes.setdefault(user, {"state": "active", "epoch": 0}).update(shard=to)
        return {"user": user, "action": action, "from": old or "", "to": to or "", "why": why or ""}


def lose(arguments, carry_out):
    """It is carried out, and nobody hears of it."""
    carry_out()
    raise Lost


def vanish(arguments, carry_out):
    raise Lost


def refuse(text, again=False):
    def refuse_so(arguments, carry_out):
        raise Refused(text, again)
    return refuse_so
