"""
Redis is away for a while: whoever is known works on as if nothing had happened, whoever is not is told to come back,
and afterwards all is as it should be. IMAPMUX_AWAY_SECONDS=60 makes the while longer.
"""
import threading
import time

import campus
import people
import pytest
import servers
from imapwire import Wire

KNOWN, UNKNOWN, WORKERS = ["ann", "bob"], "eve", [f"worker{number}" for number in range(8)]
SECONDS = campus.size("IMAPMUX_AWAY_SECONDS", 5)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_redis_is_away(how):
    with campus.Campus([*KNOWN, UNKNOWN, *WORKERS], sentinels=False, keep_while_down="10m") as place:
        over, ports = threading.Event(), [proxy.port for proxy in place.proxies]
        clients = [people.Client(user, number, [port], over) for user in WORKERS for number, port in enumerate(ports)]
        for client in clients:
            client.start()
        for proxy in place.proxies:
            for user in KNOWN:
                assert campus.login(proxy, user)
        servers.wait_for(lambda: all(client.kept for client in clients), "every client to work")
        place.redis.kill() if how == "killed" else place.redis.pause()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for proxy in place.proxies:
                assert all(campus.login(proxy, user) == "blue" for user in KNOWN)
                assert campus.login(proxy, UNKNOWN) == "[UNAVAILABLE]"
        stays = {client: len(client.stays) for client in clients}
        place.redis.start() if how == "killed" else place.redis.resume()
        place.redis.route({user: "blue" for user in place.users})
        servers.wait_for(lambda: all(campus.login(proxy, UNKNOWN) == "blue" for proxy in place.proxies),
                         "unknown users to be served")
        assert place.ctl(place.proxies[0], "move", "ann", "--to", "green", "--sync", place.sync()).returncode == 0
        assert all(campus.login(proxy, "ann") == "green" for proxy in place.proxies)
        kept = {client: len(client.kept) for client in clients}
        servers.wait_for(lambda: all(len(client.kept) > kept[client] for client in clients), "every client to work on")
        over.set()
        for client in clients:
            client.join()
            assert (client.faults, client.refusals, client.byes, client.uncertain) == ([], [], [], set())
            assert len(client.stays) == stays[client] == 1
