"""
What many logins cost the directory, and what its silence costs those who are in already. IMAPMUX_LDAP_USERS says how
many users log in for the first time, IMAPMUX_LDAP_SESSIONS how many sessions there are while the directory hangs.
"""
import contextlib
import os
import statistics
import time

import pytest

import servers
from crowd import Crowd, CrowdStore, size_of, wait_for_metrics
from stage import PASSWORD, Proxy, directory_settings, shard

BASE = f"ou=people,{servers.LDAP_BASE}"
USERS = int(os.environ.get("IMAPMUX_LDAP_USERS", 2000))
TOGETHER = 200
WORKERS, SEARCH_HANDLES, BIND_HANDLES = 2, 2, 3
TEMPLATE = {"dn_template": "uid=%{user}," + BASE}
HANGING = 300  # logins that meet the silence
OVERALL_SECONDS = 60 + USERS / 20


class Site:
    def __init__(self, folder, certificate):
        self.folder, self.certificate, self.count = folder, certificate, 0
        self.stack = contextlib.ExitStack()
        self.people = [f"user{number}" for number in range(USERS)]
        self.slapd = self.stack.enter_context(servers.Slapd(folder / "load-slapd",
                                                            users={user: PASSWORD for user in self.people}))
        self.store = self.stack.enter_context(CrowdStore())

    def proxy(self, workers=WORKERS, more="", **settings):
        self.count += 1
        settings = {"uri": self.slapd.uri, "search_handles": SEARCH_HANDLES, "bind_handles": BIND_HANDLES, **settings}
        proxy = Proxy(self.folder / f"load-{self.count}", certificate=self.certificate, workers=workers, more=more,
                      shards=shard("store", self.store.port, more="max_logins_in_flight = 1000"),
                      sources=directory_settings(**settings))
        self.stack.callback(proxy.stop)
        return proxy

    def log_in(self, proxy, users, meanwhile=lambda: None):
        """All at once, and out again; returns how many are in."""
        crowd = Crowd(proxy.port["plain"])
        crowd.rush(users, seconds=OVERALL_SECONDS)

        def answered():
            meanwhile()
            return crowd.counts["answered"] == len(users)
        crowd.turn_until(answered, "answers", OVERALL_SECONDS)
        crowd.say_goodbye(OVERALL_SECONDS)
        return crowd.counts["in"]


@pytest.fixture(scope="module")
def site(folder, certificate):
    site = Site(folder, certificate)
    with site.stack:
        yield site
        site.store.check()


@pytest.mark.parametrize("settings,searches,binds", [({"base": BASE}, 1, 1), (TEMPLATE, 0, 1),
                                                     ({**TEMPLATE, "shard_attribute": "description"}, 1, 1)],
                         ids=["search", "template", "template and attributes"])
def test_operations_of_first_logins(site, settings, searches, binds):
    """So many for each login, and no more: as the proxy counts them, and as the directory does."""
    proxy = site.proxy(**settings)
    before = [site.slapd.operations(kind) for kind in ("Search", "Bind")]
    started = time.monotonic()
    for start in range(0, USERS, TOGETHER):
        batch = site.people[start:start + TOGETHER]
        assert site.log_in(proxy, batch) == len(batch)
    print(f"\n{USERS} logins within {time.monotonic() - started:.1f} s")
    metrics = proxy.metrics()
    after = [site.slapd.operations(kind) for kind in ("Search", "Bind")]
    assert metrics["imapmux_ldap_searches_total"] == searches * USERS
    assert metrics["imapmux_ldap_binds_total"] == binds * USERS
    # Each question about this costs one of each.
    assert after[0] - before[0] - 2 == searches * USERS
    assert after[1] - before[1] - 2 == binds * USERS
    assert metrics['imapmux_ldap_lookups_total{result="verified"}'] == USERS
    assert metrics["imapmux_ldap_bind_seconds_count"] == binds * USERS
    assert metrics["imapmux_ldap_waiting"] == metrics["imapmux_ldap_operations_in_flight"] == 0


def test_the_directory_does_not_hear_of_the_next_logins(site):
    """Who was verified before is in the cache."""
    proxy = site.proxy(base=BASE, more="auth_cache { ttl = 1h }\n")
    operations = []
    for _ in range(3):
        started = time.monotonic()
        for start in range(0, USERS, TOGETHER):
            batch = site.people[start:start + TOGETHER]
            assert site.log_in(proxy, batch) == len(batch)
        seconds = time.monotonic() - started
        operations.append([site.slapd.operations(kind) for kind in ("Search", "Bind")])
    print(f"\n{USERS} cached logins within {seconds:.1f} s: {USERS / seconds:.0f} a second")
    assert operations[2][0] - operations[1][0] == operations[2][1] - operations[1][1] == 2  # of these questions
    metrics = proxy.metrics()
    assert metrics["imapmux_ldap_searches_total"] == metrics["imapmux_ldap_binds_total"] == USERS
    assert metrics['imapmux_auth_cache_total{result="hit"}'] == 2 * USERS


def test_connections_are_limited(site):
    """However many log in together; the connections of both kinds are used."""
    proxy, most = site.proxy(base=BASE), []
    assert site.log_in(proxy, site.people[:TOGETHER],
                       lambda: most.append(servers.connections_to(site.slapd.port, proxy.process))) == TOGETHER
    limit = WORKERS * (SEARCH_HANDLES + BIND_HANDLES)
    assert WORKERS < max(most) <= limit
    metrics = proxy.metrics()
    assert sum(metrics[f'imapmux_ldap_connections{{kind="{kind}"}}'] for kind in ("search", "bind")) <= limit
    assert metrics["imapmux_ldap_failures_total"] == 0


class Pings:
    """NOOPs of sessions in turn, one at a time: how long each took, in ms."""

    def __init__(self, crowd, members):
        self.crowd, self.members, self.turn = crowd, members, 0

    def run(self, count):
        times = []
        for _ in range(count):
            member = self.members[self.turn % len(self.members)]
            self.turn += 1
            heard, started = len(member.lines), time.monotonic()
            member.send(b"n NOOP\r\n")
            self.crowd.turn_until(lambda: len(member.lines) > heard, "an answer to NOOP")
            assert member.lines[-1][1] == b"n OK NOOP done\r\n"
            times.append(1000 * (member.lines[-1][0] - started))
        return times


def described(times):
    return f"median {statistics.median(times):.2f} ms, 99 % {statistics.quantiles(times, n=100)[98]:.2f} ms"


def test_silence_is_not_heard_by_sessions(site):
    """The directory is frozen while hundreds want to log in; those who are in do not notice."""
    proxy = site.proxy(base=BASE, timeout="2s", connect_timeout="2s", more="auth_cache { ttl = 0s }\n")
    count = size_of(proxy, "IMAPMUX_LDAP_SESSIONS", 1000, 300)
    crowd = Crowd(proxy.port["plain"])
    crowd.rush([site.people[number % USERS] for number in range(count)], seconds=OVERALL_SECONDS)
    crowd.answered(count, seconds=OVERALL_SECONDS)
    assert crowd.counts["in"] == count
    assert proxy.metrics()["imapmux_ldap_failures_total"] == 0
    pings = Pings(crowd, list(crowd.members))
    before = pings.run(count)

    site.slapd.pause()
    try:
        crowd.rush(site.people[:HANGING], seconds=OVERALL_SECONDS)
        during = []
        while crowd.counts["answered"] < count + HANGING:
            during += pings.run(50)
        metrics = proxy.metrics()
    finally:
        site.slapd.resume()
    late = crowd.members[count:]
    assert all(member.answer.startswith(b"in NO [UNAVAILABLE] ") for member in late)
    assert len(during) >= 2 * 50  # they were answered while others waited
    assert metrics["imapmux_ldap_down"] >= 1
    assert metrics["imapmux_ldap_waiting"] == metrics["imapmux_ldap_operations_in_flight"] == 0
    longest = max(member.answered_at - member.greeted_at for member in late)
    print(f"\n{count} sessions, NOOP before: {described(before)}; while {HANGING} logins hang: {described(during)}, "
          f"{len(during)} of them; those logins were told after {longest:.1f} s at the most")

    def works():
        late[0].log_in()
        answers = crowd.counts["answered"]
        crowd.turn_until(lambda: crowd.counts["answered"] > answers, "an answer")
        return late[0].answer.startswith(b"in OK ")
    servers.wait_for(works, "logins to work again")
    wait_for_metrics(proxy, ldap_down=0)
    crowd.say_goodbye(OVERALL_SECONDS)


def test_who_is_remembered_does_not_wait(site):
    """While the directory hangs, stale_while_down lets users in that were verified before: at once, after a while."""
    proxy = site.proxy(base=BASE, timeout="500ms", connect_timeout="500ms", workers=1,
                       more="auth_cache { ttl = 1ms stale_while_down = 1h }\n")
    known, unknown = site.people[0], site.people[1]
    assert site.log_in(proxy, [known]) == 1
    site.slapd.pause()
    try:
        assert site.log_in(proxy, [known]) == 1
        wait_for_metrics(proxy, ldap_down=1)
        searches = proxy.metrics()["imapmux_ldap_searches_total"]
        for _ in range(10):
            assert site.log_in(proxy, [known, unknown]) == 1
        assert proxy.metrics()["imapmux_ldap_searches_total"] == searches  # nobody has been waited for
        assert proxy.metrics()['imapmux_auth_cache_total{result="stale"}'] == 11
    finally:
        site.slapd.resume()
    servers.wait_for(lambda: site.log_in(proxy, [unknown]), "logins to work again")
