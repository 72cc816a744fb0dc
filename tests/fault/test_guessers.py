"""
Somebody guesses passwords, from one address or from many: that gets slower, and those who know theirs do not notice.
IMAPMUX_GUESSES says how many guesses an attack is.
"""
import concurrent.futures
import itertools
import os
import statistics
import time

import pytest

import servers
from stage import PASSWORD, Store, shard

GUESSES = int(os.environ.get("IMAPMUX_GUESSES", 500))
AT_ONCE = 30
MAX_DELAY_SECONDS, MAX_USER_DELAY_SECONDS = 0.3, 0.1
SLOWNESS = "free_failures = 2 delay = 50ms max_delay = 300ms max_user_delay = 100ms forget = 1h max_parallel = 20"
SLACK_SECONDS = 2  # for a busy machine
GROWTH_BYTES = 4 << 20
ATTACKER, MANY = "127.0.0.66", [f"127.0.{high}.{low}" for high in range(1, 5) for low in range(1, 251)]


@pytest.fixture
def proxy(start):
    with Store() as store:
        yield start(shard("store", store.port), workers=2, throttle=SLOWNESS, more="auth_cache { ttl = 1h }\n")


def log_in(proxy, user, password, source=None):
    """The tagged answer, and how long it took."""
    begin = time.monotonic()
    with proxy.wire(source=source) as wire:
        answer = wire.command(f"LOGIN {user} {password}".encode(), tag=b"in")
    return answer, time.monotonic() - begin


def assert_quick(proxy, user, more_seconds=0):
    answer, seconds = log_in(proxy, user, PASSWORD)
    assert answer.startswith(b"in OK"), answer
    assert seconds < SLACK_SECONDS + more_seconds
    return seconds


def attack(proxy, user, sources):
    """So many guesses at once, and what is answered. Meanwhile others log in."""
    def guess(number, source):
        return log_in(proxy, user, f"guess{number}", source)[0]

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        under_way = [pool.submit(guess, number, source)
                     for number, source in zip(range(GUESSES), itertools.cycle(sources))]
        times = []
        while not all(one.done() for one in under_way):
            times += [assert_quick(proxy, "bob"), assert_quick(proxy, "alice")]
        print(f"\n{GUESSES} guesses; {len(times)} logins meanwhile: median {1000 * statistics.median(times):.1f} ms, "
              f"the slowest {1000 * max(times):.1f} ms")
        return [one.result() for one in under_way]


def delayed_and_refused(proxy):
    metrics = proxy.metrics()
    return tuple(metrics[f'imapmux_throttle_total{{what="{what}"}}'] for what in ("delayed", "refused"))


def assert_flat(proxy, before):
    if not proxy.sanitized:
        growth = proxy.resident_bytes() - before
        print(f"memory grew by {growth // 1024} KiB")
        assert growth < GROWTH_BYTES


def test_guesses_from_one_address(proxy):
    for user in "alice", "bob":
        assert_quick(proxy, user)
    before = proxy.resident_bytes()
    begin = time.monotonic()
    answers = attack(proxy, "alice", [ATTACKER])
    seconds = time.monotonic() - begin
    assert all(answer.startswith((b"in NO [AUTHENTICATIONFAILED]", b"in NO [LIMIT]")) for answer in answers)
    guesses = sum(answer.startswith(b"in NO [AUTHENTICATIONFAILED]") for answer in answers)
    delayed, refused = delayed_and_refused(proxy)
    assert refused == len(answers) - guesses > 0
    assert delayed >= guesses - 25  # the free ones, and those that came with them
    assert guesses <= 25 + 20 * (seconds / MAX_DELAY_SECONDS + 2)  # so many at once, each as slow as it gets
    answer, waited = log_in(proxy, "bob", "wrong", ATTACKER)
    assert answer.startswith(b"in NO") and waited >= MAX_DELAY_SECONDS
    assert_flat(proxy, before)


def test_guesses_from_a_thousand_addresses(proxy):
    for user in "alice", "bob":
        assert_quick(proxy, user)
    before = proxy.resident_bytes()
    answers = attack(proxy, "carol", MANY)
    assert all(answer.startswith(b"in NO [AUTHENTICATIONFAILED]") for answer in answers)
    delayed, refused = delayed_and_refused(proxy)
    assert delayed > GUESSES / 2 and refused == 0  # for the user, whom no address has tried often
    answer, waited = log_in(proxy, "carol", "wrong")
    assert answer.startswith(b"in NO") and MAX_USER_DELAY_SECONDS <= waited < MAX_DELAY_SECONDS + SLACK_SECONDS
    assert_flat(proxy, before)


def test_who_is_attacked_and_not_remembered_waits_within_bounds(proxy):
    for number in range(10):
        log_in(proxy, "alice", f"guess{number}", MANY[number])
    answer, waited = log_in(proxy, "alice", PASSWORD)
    assert answer.startswith(b"in OK") and waited >= MAX_USER_DELAY_SECONDS
    assert_quick(proxy, "alice")
    assert delayed_and_refused(proxy)[0] == 7 + 1  # and it is over with the login that went well


def test_a_telephone_with_the_old_password(proxy):
    for _ in range(10):
        assert log_in(proxy, "alice", "old")[0].startswith(b"in NO")
    assert_quick(proxy, "bob")
    assert_quick(proxy, "alice")
    assert delayed_and_refused(proxy) == (0, 0)


def test_unknown_users_are_guesses_too(proxy):
    for number in range(10):
        assert log_in(proxy, f"nobody{number}", "x", ATTACKER)[0].startswith(b"in NO [AUTHENTICATIONFAILED]")
    assert delayed_and_refused(proxy)[0] == 7  # two are free, and the third one finds no more than them


def test_proxies_that_share_count_together(start, tmp_path):
    with Store() as store, servers.Redis(tmp_path) as redis:
        proxies = [start(shard("store", store.port), throttle=SLOWNESS + " shared = yes",
                         more=f'redis {{ address = "{redis.address}" }}\n') for _ in range(2)]
        for number in range(10):
            assert log_in(proxies[number % 2], f"nobody{number}", "x", ATTACKER)[0].startswith(b"in NO")
        assert sum(delayed_and_refused(proxy)[0] for proxy in proxies) > 2 + 2  # more than each would see alone
        redis.stop()
        answer, waited = log_in(proxies[0], "nobody", "x", ATTACKER)  # what it has seen itself still counts
        assert answer.startswith(b"in NO [AUTHENTICATIONFAILED]") and waited >= MAX_DELAY_SECONDS / 2
        assert_quick(proxies[1], "bob")
