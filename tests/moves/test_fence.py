"""
The old store is out of reach once a user is at the new one, also by a proxy that has not heard of it: one that is cut
off from Redis, one that was frozen meanwhile, and one that has crashed.
"""
import concurrent.futures
import contextlib
import signal

import campus
import people
import pytest
import servers
from imapwire import Closed, Wire

USER, OTHER = "ann", "bob"
UNAVAILABLE = "[UNAVAILABLE]"
KEEP_SECONDS = 4  # route.keep_while_down


@pytest.fixture
def place():
    with campus.Campus([USER, OTHER], sentinels=False, keep_while_down=f"{KEEP_SECONDS}s") as all_of_it:
        yield all_of_it


@contextlib.contextmanager
def moving(place):
    """imapmuxctl at the first proxy as it moves the user; the block gets a future of how it has ended."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        yield pool.submit(place.ctl, place.proxies[0], "move", USER, "--to", "green", "--sync", place.sync())


def at_the_old_store(proxy):
    wire = Wire(servers.HOST, proxy.port, timeout=60)
    assert b" XBLUE" in wire.login(USER, people.PASSWORD)
    return wire


def wait_until_held(place):
    servers.wait_for(lambda: place.redis.call_all([("HEXISTS", "imapmux:moving", USER)]) == [":1"], "the user to be held")


def test_a_proxy_that_is_cut_off_stops_before_the_flip(place):
    here, cut_off = place.proxies
    wire = at_the_old_store(cut_off)
    place.passages[1].hold()
    with moving(place) as move:
        wait_until_held(place)
        assert b" OK " in wire.command(b"NOOP")  # nobody has told it
        with pytest.raises(Closed) as end:
            wire.read_until(lambda _: False)
        assert b"* BYE [UNAVAILABLE]" in end.value.received
        assert not move.done()
        assert campus.login(cut_off, USER) == UNAVAILABLE
        assert move.result().returncode == 0, move.result()
    assert campus.login(here, USER) == "green"
    assert campus.login(cut_off, USER) == UNAVAILABLE
    place.passages[1].release()
    cut_off.wait_for_event("fence passed")
    servers.wait_for(lambda: campus.login(cut_off, USER) != UNAVAILABLE, "the proxy to serve again")
    assert campus.login(cut_off, USER) == "green"


def test_a_proxy_that_was_frozen_sends_nothing_more(place):
    here, frozen = place.proxies
    wire = at_the_old_store(frozen)
    frozen.pause()
    try:
        with moving(place) as move:
            wait_until_held(place)
            wire.send(b"late CREATE too-late\r\n")
            assert move.result().returncode == 0, move.result()
    finally:
        frozen.resume()
    with contextlib.suppress(Closed):
        assert b"late OK" not in wire.read_until(lambda response: response.startswith(b"late "))
    for store in place.stores.values():
        with Wire(servers.HOST, store.port) as direct:
            direct.login(USER, people.PASSWORD)
            assert b"too-late" not in direct.command(b'LIST "" *')
    servers.wait_for(lambda: campus.login(frozen, USER) != UNAVAILABLE, "the proxy to serve again")
    assert campus.login(frozen, USER) == "green"


def test_a_crashed_proxy_is_waited_for_until_it_cannot_serve_any_more(place):
    place.proxies[1].kill()
    with moving(place) as move:
        assert move.result().returncode == 0, move.result()
    assert campus.login(place.proxies[0], USER) == "green"


def test_an_operator_knows_that_a_proxy_is_dead(place):
    """It need not be waited for then; but one that lives is not forgotten."""
    here, dead = place.proxies
    records = place.rows(here, "proxies")[0]
    other = next(record["id"] for record in records if record["state"] == "live")
    assert place.ctl(here, "proxies", "forget", other).returncode == 1
    dead.kill()
    with moving(place) as move:
        wait_until_held(place)
        servers.wait_for(lambda: place.ctl(here, "proxies", "forget", other).returncode == 0, "it to be silent")
        assert move.result().returncode == 0, move.result()
    assert campus.login(here, USER) == "green"


def test_a_proxy_that_was_forgotten_has_lost_its_snapshot_too():
    """As the documentation has it: no move waits for it, so what it has left is of no use if it comes back, cut off."""
    with campus.Campus([USER], sentinels=False, keep_while_down="10m") as place:
        here, dead = place.proxies
        snapshot = dead.folder / "routes.snapshot"
        assert campus.login(dead, USER) == "blue"
        servers.wait_for(lambda: snapshot.exists() and f"\n{USER}\tblue\t" in snapshot.read_text(),
                         "her route in the snapshot", 60)
        record = next(record["id"] for record in place.rows(here, "proxies")[0] if record["state"] == "live")
        dead.kill()
        servers.wait_for(lambda: place.ctl(here, "proxies", "forget", record).returncode == 0, "it to be silent")
        snapshot.unlink()
        with moving(place) as move:
            assert move.result().returncode == 0, move.result()
        place.passages[1].close()
        dead.start()
        assert campus.login(dead, USER) == UNAVAILABLE


def test_a_proxy_that_is_started_again_speaks_for_the_one_before(place):
    """It has the snapshot of the one that has crashed, so that one does not run any more."""
    here, crashed = place.proxies
    assert campus.login(crashed, USER) == "blue"
    crashed.kill()
    with moving(place) as move:
        wait_until_held(place)
        crashed.start()
        assert move.result().returncode == 0, move.result()
    assert [record["state"] for record in place.rows(here, "proxies")[0]].count("silent") == 0
    assert campus.login(crashed, USER) == "green"


def test_a_snapshot_does_not_bring_the_old_store_back(place):
    """The proxy has consented to the move, crashes, and comes back while it is cut off from Redis."""
    here, crashed = place.proxies
    for user in (USER, OTHER):
        assert campus.login(crashed, user) == "blue"
    crashed.process.send_signal(signal.SIGTERM)  # writes its snapshot
    crashed.process.wait(30)
    crashed.process = None
    crashed.start()
    for user in (USER, OTHER):
        assert campus.login(crashed, user) == "blue"
    with moving(place) as move:
        assert move.result().returncode == 0, move.result()
    crashed.kill()
    place.passages[1].close()
    crashed.start()
    assert campus.login(crashed, USER) == UNAVAILABLE
