"""
Several directory servers: logins go on with the next one while one is dead or frozen, and come back to it. And servers
that lead to others.
"""
import contextlib
import re
import threading

import pytest

import servers
from stage import PASSWORD, Proxy, Store, directory_settings, good, shard

PEOPLE = [f"user{number:02}" for number in range(20)]
BASE = f"ou=people,{servers.LDAP_BASE}"
AT_ONCE = 4
OTHER_HOST = "127.0.0.2"  # the certificate does not name it
UNAVAILABLE, REFUSED, OK = rb"in NO \[UNAVAILABLE\] ", rb"in NO \[AUTHENTICATIONFAILED\] ", rb"in OK "
CONFIG = rb"in NO \[CONTACTADMIN\] The server is misconfigured"


def log_in(proxy, user, password=PASSWORD):
    with proxy.wire() as wire:
        return wire.command(f"LOGIN {user} {password}".encode(), tag=b"in")


class Traffic:
    """Logins from some threads without a pause; `answers` are all that came."""

    def __init__(self, proxy):
        self.proxy, self.answers, self.stopped = proxy, [], False
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(AT_ONCE)]

    def _run(self, number):
        while not self.stopped:
            answer = log_in(self.proxy, PEOPLE[number])
            with self.changed:
                self.answers.append(answer)
                self.changed.notify_all()

    def wait_for_ok(self, count=50):
        """So many more that went well; returns what did not, from now on."""
        with self.changed:
            start = len(self.answers)

            def enough():
                return sum(bool(re.match(OK, answer)) for answer in self.answers[start:]) >= count
            assert self.changed.wait_for(enough, 30), self.answers[start:]
            return [answer for answer in self.answers[start:] if not re.match(OK, answer)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped = True
        for thread in self.threads:
            thread.join()


@pytest.fixture
def pair(folder, certificate, request):
    """Two servers, and a proxy that prefers the first."""
    with contextlib.ExitStack() as stack:
        name, users = request.node.name.replace("[", "-").rstrip("]"), {user: PASSWORD for user in PEOPLE}
        directories = [stack.enter_context(servers.Slapd(folder / f"{name}-{number}", users=users)) for number in "12"]
        uris = ", ".join(f'"{directory.uri}"' for directory in directories)
        store = stack.enter_context(Store(good))
        settings = directory_settings(uri=f"{{{uris}}}", base=BASE, fail_back="200ms", timeout="500ms",
                                      connect_timeout="500ms")
        proxy = Proxy(folder / name, shards=shard("store", store.port), certificate=certificate, sources=settings,
                      workers=2)
        stack.callback(proxy.stop)
        yield proxy, *directories


def changes(proxy, what):
    return proxy.metrics()[f'imapmux_ldap_server_changes_total{{what="{what}"}}']


def die(server):
    server.kill()


def live(server):
    server.start()


@pytest.mark.parametrize("fall,rise", [(die, live), (servers.Slapd.pause, servers.Slapd.resume)],
                         ids=["dead", "frozen"])
def test_next_server_serves_until_the_first_is_back(pair, fall, rise):
    proxy, first, second = pair
    with Traffic(proxy) as traffic:
        assert traffic.wait_for_ok() == []
        assert servers.connections_to(second.port, proxy.process) == 0
        fall(first)
        failed = traffic.wait_for_ok()
        assert len(failed) <= AT_ONCE and all(re.match(UNAVAILABLE, answer) for answer in failed), failed
        servers.wait_for(lambda: changes(proxy, "fail-over") >= 2, "both workers to fail over")
        assert traffic.wait_for_ok() == []
        assert servers.connections_to(second.port, proxy.process) > 0
        over = second.operations("Search")
        rise(first)
        with traffic.changed:
            back_from = len(traffic.answers)
        servers.wait_for(lambda: servers.connections_to(second.port, proxy.process) == 0, "the second to be let go")
        traffic.wait_for_ok()
        failed = [answer for answer in traffic.answers[back_from:] if not re.match(OK, answer)]
        assert failed == []
        assert servers.connections_to(first.port, proxy.process) > 0
        assert over > 20
        assert changes(proxy, "fail-back") == changes(proxy, "fail-over") >= 2
    assert proxy.metrics()["imapmux_ldap_down"] == 0


def test_dead_server_is_not_tried_by_each_login(pair):
    """It hangs, so that each attempt would take connect_timeout: only the first ones do, and probes."""
    proxy, first, second = pair
    first.pause()
    with Traffic(proxy) as traffic:
        traffic.wait_for_ok(100)
    lost = [event for event in proxy.events() if event["event"] in ("ldap connect failed", "ldap server is down")]
    assert len(lost) <= 4, lost  # one for each worker, and for a probe that another operation has put in doubt
    first.resume()


def test_no_server_at_all(pair):
    """All are gone: each login hears it at once, and the first one that is back is used."""
    proxy, first, second = pair
    assert re.match(OK, log_in(proxy, PEOPLE[0]))
    first.kill()
    second.kill()
    for user in PEOPLE[:4]:
        assert re.match(UNAVAILABLE, log_in(proxy, user))
    servers.wait_for(lambda: proxy.metrics()["imapmux_ldap_down"] == 2, "both workers to know")
    second.start()
    servers.wait_for(lambda: re.match(OK, log_in(proxy, PEOPLE[0])), "the second to be used")
    assert servers.connections_to(second.port, proxy.process) > 0


# Referrals

class Realm:
    """Two directories: the first one refers to the second for a part of its tree, and for all that it does not hold."""

    def __init__(self, stack, folder, certificate):
        self.stack, self.folder, self.certificate, self.count = stack, folder, certificate, 0
        enter = stack.enter_context
        self.far = enter(servers.Slapd(folder / "far", users={"far": PASSWORD, "both": PASSWORD}, base="dc=far,dc=org"))
        referral = (f"dn: ou=far,{BASE}\nobjectClass: referral\nobjectClass: extensibleObject\nou: far\n"
                    f"ref: {self.far.uri}/ou=people,dc=far,dc=org\n")
        tls = "".join(f"TLS{name} {path}\n" for name, path in
                      zip(("CertificateFile", "CertificateKeyFile"), certificate))
        secure_port = servers.free_port()
        self.secure_uri, self.other_uri = (f"ldaps://{host}:{secure_port}" for host in (servers.HOST, OTHER_HOST))
        self.near = enter(servers.Slapd(folder / "near", users={"near": PASSWORD, "both": PASSWORD}, entries=referral,
                                        settings=f"referral {self.far.uri}\n{tls}",
                                        uris=[self.secure_uri, self.other_uri]))
        self.store = enter(Store(good))

    def proxy(self, **settings):
        self.count += 1
        settings = {"uri": self.near.uri, "base": BASE, "timeout": "1s", "connect_timeout": "1s", **settings}
        proxy = Proxy(self.folder / f"realm-{self.count}", shards=shard("store", self.store.port),
                      certificate=self.certificate, sources=directory_settings(**settings))
        self.stack.callback(proxy.stop)
        return proxy


@pytest.fixture(scope="module")
def realm(folder, certificate):
    with contextlib.ExitStack() as stack:
        yield Realm(stack, folder, certificate)


def test_referrals_are_not_followed_unless_asked_for(realm):
    proxy = realm.proxy()
    assert re.match(OK, log_in(proxy, "near"))
    assert re.match(OK, log_in(proxy, "both"))
    assert re.match(REFUSED, log_in(proxy, "far"))
    elsewhere = realm.proxy(base="dc=far,dc=org")
    assert re.match(CONFIG, log_in(elsewhere, "far"))
    assert all(servers.connections_to(realm.far.port, one.process) == 0 for one in (proxy, elsewhere))


def test_referrals_are_followed(realm):
    proxy = realm.proxy(referrals="yes")
    elsewhere = realm.proxy(base="dc=far,dc=org", referrals="yes")
    for _ in range(3):
        assert re.match(OK, log_in(proxy, "near"))
        assert re.match(OK, log_in(proxy, "far"))
        assert re.match(OK, log_in(elsewhere, "far"))
        assert re.match(REFUSED, log_in(proxy, "far", "wrong"))
        assert re.match(REFUSED, log_in(proxy, "nobody"))
        assert re.match(REFUSED, log_in(elsewhere, "nobody"))
    for one in proxy, elsewhere:
        assert servers.connections_to(realm.far.port, one.process) == 2  # one of each kind; they are kept
    realm.far.kill()
    for _ in range(3):
        assert re.match(UNAVAILABLE, log_in(proxy, "far"))
        assert re.match(OK, log_in(proxy, "near"))
    realm.far.start()
    servers.wait_for(lambda: re.match(OK, log_in(proxy, "far")), "the far directory to be used again")


def test_referral_does_not_lead_out_of_tls(realm):
    """The first way is encrypted; the far directory speaks no TLS, and so hears no password."""
    binds = realm.far.operations("Bind")
    proxy = realm.proxy(uri=realm.secure_uri, ca_file=realm.certificate[0], referrals="yes")
    assert re.match(OK, log_in(proxy, "near"))
    assert re.match(UNAVAILABLE, log_in(proxy, "far"))
    assert "cannot start TLS" in proxy.events("ldap connect failed")[0]["detail"]
    assert realm.far.operations("Bind") == binds + 1  # of the question before


def test_host_name_is_verified(realm):
    trusted = {"uri": realm.other_uri, "ca_file": realm.certificate[0]}
    assert re.match(UNAVAILABLE, log_in(realm.proxy(**trusted), "near"))
    assert re.match(OK, log_in(realm.proxy(**trusted, verify="no"), "near"))
