"""
All clients come back at once: the store gets no more than it can take, everybody hears something in time, and who
leaves makes room. IMAPMUX_STORM says how many clients there are in the largest storm.
"""
import time

import pytest

import servers
from crowd import Crowd, CrowdStore, size_of, wait_for_metrics
from stage import PATIENCE_SECONDS, shard

USERS = [f"user{number}" for number in range(64)]
TIMEOUTS = {"connect_timeout": "10s", "login_timeout": "10s"}
BUSY = b"in NO [UNAVAILABLE] The mail store is busy, please try again in a moment.\r\n"
FULL = b"in NO [LIMIT] The mail store has no free connection, please try again later.\r\n"
AT_ONCE_SECONDS = 3  # well above what a busy machine needs, well below any time-out that is set here
SLACK_SECONDS = 5
WORKERS = 2


def worker_of(user):
    """FNV-1a of the name, as in proxy/process/worker.c."""
    value = 14695981039346656037
    for octet in user.encode():
        value = (value ^ octet) * 1099511628211 % 2**64
    return (value ^ value >> 32) % WORKERS


def of_worker(number):
    return [user for user in USERS if worker_of(user) == number]


def taking_turns(count):
    """So many users, of both workers in turn."""
    pairs = zip(of_worker(0), of_worker(1))
    return [user for pair in pairs for user in pair][:count]


@pytest.fixture
def store():
    with CrowdStore() as only:
        yield only
        only.check()


@pytest.fixture
def start_before(start, store):
    """Starts imapmux before the store with these settings of its shard; the time-outs above unless they are given."""
    def start_one(pool="warm = 0 park_time = 0s", stop_timeout="10s", **settings):
        more = " ".join(f"{name} = {value}" for name, value in {**TIMEOUTS, **settings}.items())
        return start(shard("store", store.port, more=more), users=USERS, workers=WORKERS, pool=pool,
                     stop_timeout=stop_timeout)
    return start_one


def milliseconds(seconds):
    return f"{int(seconds * 1000)}ms"


def at_rest(proxy, backends_open=0):
    return wait_for_metrics(proxy, leases_waiting=0, logins_in_flight=0, backends_open=backends_open)


def why_refused(proxy, count):
    """The reasons of all refused logins, of which there are `count`."""
    servers.wait_for(lambda: len(proxy.events("login refused")) >= count, f"{count} refused logins in the log")
    found = [event["reason"] for event in proxy.events("login refused")]
    assert len(found) == count
    return found


def test_all_get_in(store, start_before):
    """Thousands of clients, twenty logins at a time."""
    limit = 20
    store.login_seconds = 0.005
    proxy = start_before(max_logins_in_flight=limit, queue_timeout="60s")
    count = size_of(proxy, "IMAPMUX_STORM", 5000, 1000)
    crowd = Crowd(proxy.port["plain"])
    started = time.monotonic()
    crowd.rush((USERS[number % len(USERS)] for number in range(count)), seconds=60)
    crowd.answered(count, seconds=60)
    print(f"\n{count} logins in {time.monotonic() - started:.2f} s, slowest "
          f"{max(member.answered_at - member.greeted_at for member in crowd.members):.2f} s")
    assert crowd.counts["in"] == count, [member.answer for member in crowd.members if b"OK" not in member.answer][:3]
    assert limit / 2 < store.most_logging_in <= limit
    assert store.most_at_door <= limit
    assert store.accepted == count

    metrics = at_rest(proxy, backends_open=count)
    assert metrics['imapmux_leases_total{kind="new"}'] == metrics["imapmux_login_seconds_count"] == count
    assert 0 < metrics["imapmux_queue_wait_seconds_count"] <= count
    crowd.say_goodbye(seconds=60)
    metrics = at_rest(proxy)
    assert metrics["imapmux_sessions_opened_total"] == metrics["imapmux_sessions_closed_total"] == count


def test_store_never_answers_logins(store, start_before):
    """Those that are in flight and those that wait are all refused in time, and can try again."""
    count, limit, timeout = 200, 20, 1
    store.login_seconds = None
    proxy = start_before(max_logins_in_flight=limit, queue_timeout=milliseconds(timeout),
                         login_timeout=milliseconds(timeout))
    crowd = Crowd(proxy.port["plain"])
    crowd.rush(USERS[number % len(USERS)] for number in range(count))
    assert wait_for_metrics(proxy, logins_in_flight=limit)["imapmux_leases_waiting"] > 0
    crowd.answered(count)
    for member in crowd.members:
        assert member.answer.startswith(b"in NO [UNAVAILABLE] "), member.answer
        # Who waited until its time was nearly over may have got a place, and waited for the store then.
        assert timeout * 0.8 < member.answered_at - member.greeted_at < 2 * timeout + SLACK_SECONDS
    reasons = why_refused(proxy, count)
    assert set(reasons) == {"busy", "unavailable"} and reasons.count("unavailable") >= limit
    assert sum(member.answer == BUSY for member in crowd.members) == reasons.count("busy")
    at_rest(proxy)

    store.answer_logins(0)
    for member in crowd.members:
        member.log_in()
    crowd.answered(2 * count)
    assert crowd.counts["in"] == count
    crowd.say_goodbye()
    at_rest(proxy)


def test_queue_is_full(store, start_before):
    """Who finds the queue full is refused at once, on whichever worker; those in the queue get in."""
    limit, places = 2, 10
    store.login_seconds = None
    proxy = start_before(max_logins_in_flight=limit, max_queue=places, queue_timeout="20s", login_timeout="20s")
    crowd = Crowd(proxy.port["plain"])
    crowd.rush(taking_turns(limit + places))
    wait_for_metrics(proxy, leases_waiting=places, logins_in_flight=limit)
    for user in of_worker(0)[-1], of_worker(1)[-1]:
        one_more = crowd.add(user)
        crowd.turn_until(lambda: one_more.answer, "an answer", AT_ONCE_SECONDS)
        assert one_more.answer == BUSY
    assert why_refused(proxy, 2) == ["busy", "busy"]
    assert store.most_logging_in == limit

    store.answer_logins(0)
    crowd.answered(limit + places + 2)
    one_more.log_in()
    crowd.answered(limit + places + 3)
    assert crowd.counts["in"] == limit + places + 1
    assert store.most_logging_in <= limit
    crowd.say_goodbye()
    at_rest(proxy)


@pytest.mark.parametrize("how", ["reset", "logout"])
def test_all_connections_in_use(store, start_before, how):
    """The sixth waits until one of five ends, or for queue_timeout."""
    limit, timeout = 5, 1
    proxy = start_before(max_connections=limit, queue_timeout=milliseconds(timeout))
    crowd = Crowd(proxy.port["plain"])
    crowd.rush(taking_turns(limit))
    crowd.answered(limit)
    assert crowd.counts["in"] == limit

    sixth = crowd.add(of_worker(1)[-1])
    crowd.turn_until(lambda: sixth.answer, "a refusal")
    assert sixth.answer == FULL
    assert timeout * 0.8 < sixth.answered_at - sixth.greeted_at < timeout + SLACK_SECONDS
    assert why_refused(proxy, 1) == ["full"]
    wait_for_metrics(proxy, leases_waiting=0, backends_open=limit)

    sixth.log_in()
    wait_for_metrics(proxy, leases_waiting=1)
    if how == "reset":
        crowd.members[0].leave()
    else:
        crowd.members[0].send(b"out LOGOUT\r\n")
    crowd.turn_until(lambda: sixth.answer, "a place")
    assert sixth.answer.startswith(b"in OK ")
    assert store.do(lambda: len(store.visitors)) <= limit
    crowd.say_goodbye()
    at_rest(proxy)


@pytest.mark.parametrize("worker", range(WORKERS))
def test_idle_connection_gives_way(store, start_before, worker):
    """What is only parked is ended for whoever needs its place, also on the other worker."""
    proxy = start_before(max_connections=1, queue_timeout="20s", pool="warm = 0 park_time = 1m")
    crowd = Crowd(proxy.port["plain"])
    parks = crowd.add(of_worker(0)[0])
    crowd.turn_until(lambda: parks.answer, "a login")
    parks.send(b"out LOGOUT\r\n")
    crowd.all_ended()
    wait_for_metrics(proxy, backends_parked=1, backends_open=1)

    other = crowd.add(of_worker(worker)[-1])
    crowd.turn_until(lambda: other.answer, "the place", AT_ONCE_SECONDS)
    assert other.answer.startswith(b"in OK ")
    metrics = wait_for_metrics(proxy, backends_parked=0, backends_open=1, leases_waiting=0)
    assert metrics['imapmux_backend_drops_total{reason="limit"}'] == 1
    assert metrics['imapmux_leases_total{kind="new"}'] == 2
    crowd.say_goodbye()


@pytest.mark.parametrize("how", ["reset", "closed"])
@pytest.mark.parametrize("worker", range(WORKERS))
def test_waiting_client_leaves(store, start_before, worker, how):
    """Its place in the queue is free at once, for clients of both workers."""
    store.login_seconds = None
    proxy = start_before(max_logins_in_flight=1, max_queue=1, queue_timeout="20s", login_timeout="20s")
    crowd = Crowd(proxy.port["plain"])
    first = crowd.add(of_worker(0)[0])
    wait_for_metrics(proxy, logins_in_flight=1)
    impatient = crowd.add(of_worker(worker)[1])
    wait_for_metrics(proxy, leases_waiting=1)
    refused = crowd.add(of_worker(1)[0])
    crowd.turn_until(lambda: refused.answer, "a refusal", AT_ONCE_SECONDS)
    assert refused.answer == BUSY

    impatient.leave(how)
    wait_for_metrics(proxy, AT_ONCE_SECONDS, leases_waiting=0, logins_in_flight=1)
    assert not first.answer
    refused.log_in()
    wait_for_metrics(proxy, leases_waiting=1)
    store.answer_logins(0)
    crowd.turn_until(lambda: first.answer and refused.answer, "both to get in")
    assert first.answer.startswith(b"in OK ") and refused.answer.startswith(b"in OK ")
    assert store.accepted == 2
    crowd.say_goodbye()
    at_rest(proxy)


def test_client_that_logs_in_leaves(store, start_before):
    """Who leaves while the store works on its login frees the place for the next one."""
    store.login_seconds = None
    proxy = start_before(max_logins_in_flight=1, queue_timeout="20s", login_timeout="20s")
    crowd = Crowd(proxy.port["plain"])
    impatient = crowd.add(of_worker(0)[0])
    wait_for_metrics(proxy, logins_in_flight=1)
    patient = crowd.add(of_worker(1)[0])
    wait_for_metrics(proxy, leases_waiting=1)
    impatient.leave()
    wait_for_metrics(proxy, AT_ONCE_SECONDS, leases_waiting=0, logins_in_flight=1, backends_open=1)
    store.answer_logins(0)
    crowd.turn_until(lambda: patient.answer, "a login")
    assert patient.answer.startswith(b"in OK ")
    crowd.say_goodbye()
    at_rest(proxy)


def test_slow_start(store, start_before):
    """A store that has just come back gets few logins at first, even if all clients have waited for it."""
    count, limit, seconds = 500, 40, 2
    store.login_seconds = 0.1
    proxy = start_before(max_logins_in_flight=limit, queue_timeout="60s", slow_start=f"{seconds}s")
    store.lose_all("closed")
    crowd = Crowd(proxy.port["plain"])
    scout = crowd.add(USERS[0])
    crowd.turn_until(lambda: scout.answer, "a refusal")
    assert scout.answer.startswith(b"in NO [UNAVAILABLE] ")

    store.listen()
    crowd.rush(USERS[number % len(USERS)] for number in range(count))
    crowd.answered(count + 1)
    assert crowd.counts["in"] == count
    began = store.history[0][0]
    for until in 0.25, 0.5, 0.75:
        most = max(seen for when, seen in store.history if when < began + until * seconds)
        assert most <= limit * until + 2, f"{most} of {limit} logins at once within {until * seconds} s"
    assert limit / 2 < store.most_logging_in <= limit
    crowd.say_goodbye()
    at_rest(proxy)


def test_no_slow_start_without_need(store, start_before):
    """A store that was never down gets all its logins from the start."""
    limit = 20
    store.login_seconds = None
    proxy = start_before(max_logins_in_flight=limit, slow_start="1h")
    crowd = Crowd(proxy.port["plain"])
    crowd.rush(taking_turns(limit))
    servers.wait_for(lambda: store.most_logging_in == limit, "all logins to reach the store")
    store.answer_logins(0)
    crowd.answered(limit)
    crowd.say_goodbye()
    at_rest(proxy)


def test_stop_under_the_storm(store, start_before):
    """An orderly stop is not held up by those that wait: they hear no more than a refusal and one BYE."""
    limit = 5
    store.login_seconds = None
    proxy = start_before(max_logins_in_flight=limit, queue_timeout="60s", login_timeout="60s", stop_timeout="500ms")
    crowd = Crowd(proxy.port["plain"])
    crowd.rush(USERS)
    wait_for_metrics(proxy, leases_waiting=len(USERS) - limit, logins_in_flight=limit)
    proxy.process.terminate()
    crowd.all_ended()
    assert proxy.process.wait(PATIENCE_SECONDS) == 0
    assert proxy.stop() == 0
    for member in crowd.members:
        assert member.answer is None or member.answer.startswith(b"in NO [UNAVAILABLE] "), member.answer
        assert [line[:6] for _, line in member.lines] in ([], [b"* BYE "]), member.lines
    metrics = proxy.metrics()
    for gauge in "backends_open", "leases_waiting", "logins_in_flight":
        assert metrics["imapmux_" + gauge] == 0
