"""
What is served over HTTP: metrics that Prometheus takes, answers for those who start processes and balance load, and
nothing that a hostile client can make of it.
"""
import concurrent.futures
import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest

import servers
from stage import Store, shard

PATIENCE_SECONDS = 20
TIMEOUT_SECONDS = 1  # of section http, here
MAX_CONNECTIONS = 8
OPERATIONS = (servers.REPOSITORY / "docs/operations.md").read_text()


class Site:
    """The HTTP side of a proxy."""

    def __init__(self, start, more="", **options):
        self.port = servers.free_port()
        with_site = f'http {{ address = "{servers.HOST}:{self.port}" timeout = {TIMEOUT_SECONDS}s ' \
                    f'max_connections = {MAX_CONNECTIONS} names = {{"proxy.example"}} }}\n'
        self.proxy = start(more=with_site + more, **options)

    def connect(self):
        return socket.create_connection((servers.HOST, self.port), timeout=PATIENCE_SECONDS)

    def ask(self, path, method="GET", **headers):
        """Status, headers by lower-case name, and text."""
        connection = http.client.HTTPConnection(servers.HOST, self.port, timeout=PATIENCE_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text

    def json(self, path):
        status, headers, text = self.ask(path)
        assert headers["content-type"] == "application/json"
        return status, json.loads(text)

    def samples(self):
        lines = [line for line in self.ask("/metrics")[2].splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def say(self, data):
        """Sends this, and reads until the proxy closes."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := connection.recv(65536):
                    answer += piece
            return answer


@pytest.fixture(scope="module")
def store():
    with Store() as one:
        yield one


@pytest.fixture(scope="module")
def site(start, store):
    return Site(start, shards=shard("store", store.port) + shard("other", store.port), workers=2)


# For Prometheus

def test_prometheus_takes_the_metrics(site):
    with site.proxy.logged_in():
        status, headers, text = site.ask("/metrics")
    assert status == 200 and headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_each_metric_is_explained(site):
    names = re.findall(r"^# TYPE (\S+) (\S+)$", site.ask("/metrics")[2], re.MULTILINE)
    assert len(names) > 80
    for name, kind in names:
        row = next((line for line in OPERATIONS.splitlines() if line.startswith("| `") and f"`{name}`" in line), "")
        assert f"| {kind} |" in row, name


def test_each_shard_has_its_series(site):
    before = site.samples()
    with site.proxy.logged_in():
        during = site.samples()
        assert during['imapmux_shard_sessions{shard="store"}'] == 1
        assert during['imapmux_shard_connections{shard="store"}'] == 1
    ok = 'imapmux_shard_logins_total{shard="store",result="ok"}'
    assert during[ok] == before[ok] + 1
    servers.wait_for(lambda: site.samples()['imapmux_shard_sessions{shard="store"}'] == 0, "the end of the session")
    assert during['imapmux_shard_order{shard="store",order="up"}'] == 1
    assert during['imapmux_shard_up{shard="other"}'] == 1


def test_the_process_is_told_of(site):
    samples, pid = site.samples(), site.proxy.process.pid
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    assert abs(samples["process_start_time_seconds"] - started) < 10
    assert samples["process_resident_memory_bytes"] > 1 << 20
    assert abs(samples["process_open_fds"] - site.proxy.descriptors()) <= 3  # connections come and go
    assert samples["process_cpu_seconds_total"] > 0


def test_the_file_has_the_same_series(site):
    labelled = {re.sub(r" .*", "", line) for line in site.ask("/metrics")[2].splitlines()}
    in_file = {re.sub(r" .*", "", line) for line in (site.proxy.folder / "metrics.prom").read_text().splitlines()}
    assert labelled == in_file


# For those who start processes, and those who balance load

def test_health_and_readiness(site):
    assert site.json("/healthz") == (200, {"healthy": True, "reason": "all threads answer"})
    status, body = site.json("/readyz")
    assert status == 200 and body["ready"] and body["also"]["stores_down"] == 0
    assert site.samples()["imapmux_ready"] == 1


class FrozenThread:
    """One thread of a process, stopped by the debugger's interface while the others go on."""

    SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17

    def __init__(self, thread):
        self.thread, self.libc = thread, ctypes.CDLL(None, use_errno=True)

    def _do(self, request):
        null = ctypes.c_void_p(0)
        assert self.libc.ptrace(request, self.thread, null, null) == 0, os.strerror(ctypes.get_errno())

    def __enter__(self):
        self._do(self.SEIZE)
        self._do(self.INTERRUPT)
        os.waitpid(self.thread, 0x40000000)  # __WALL

    def __exit__(self, *_):
        self._do(self.DETACH)


def workers_of(proxy):
    """Threads that listen for clients: each has an epoll of its own; the process's first thread is the control one."""
    threads = [int(path.name) for path in pathlib.Path(f"/proc/{proxy.process.pid}/task").iterdir()]
    waits = {thread: pathlib.Path(f"/proc/{proxy.process.pid}/task/{thread}/syscall").read_text().split()[0]
             for thread in threads if thread != proxy.process.pid}
    epoll = {"232", "281", "22"}  # epoll_wait and epoll_pwait of x86-64, epoll_pwait of arm64
    return [thread for thread, call in waits.items() if call in epoll]


def test_a_worker_that_hangs_is_not_healthy(site):
    worker = servers.wait_for(lambda: workers_of(site.proxy), "a worker that waits")[0]
    with FrozenThread(worker):
        status, body = servers.wait_for(lambda: (site.json("/healthz") if site.json("/healthz")[0] == 503 else None),
                                        "the worker to be missed")
        assert body == {"healthy": False, "reason": "a worker does not answer"}
        assert site.json("/readyz")[0] == 503
    servers.wait_for(lambda: site.json("/healthz")[0] == 200, "the worker to be back")


def test_a_process_that_stops_is_not_ready(start, store):
    site = Site(start, shards=shard("store", store.port))
    with site.proxy.logged_in() as wire:
        wire.send(b"a NOOP {1}\r\n")  # in the middle of a command: it stays for now
        site.proxy.process.send_signal(signal.SIGTERM)
        site.proxy.wait_for_event("stopping")
        status, body = site.json("/readyz")
        assert (status, body["ready"], body["reason"]) == (503, False, "it stops")
        assert site.samples()["imapmux_ready"] == 0
        assert site.json("/healthz")[0] == 200  # it is not to be killed for that
    site.proxy.process.wait(PATIENCE_SECONDS)


# Hostile clients

def test_only_what_is_there_can_be_asked_for(site):
    assert site.ask("/")[0] in (200, 404)
    for path in ("/metrics/", "/../etc/passwd", "//", "/%2e%2e/metrics", "/HEALTHZ", "/favicon.ico"):
        assert site.ask(path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"):
        status, headers, _ = site.ask("/healthz", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD"), method
    status, headers, text = site.ask("/healthz", "HEAD")
    assert (status, text) == (200, "") and int(headers["content-length"]) > 0


def test_browsers_may_do_nothing_with_it(site):
    for path in ("/metrics", "/healthz", "/nowhere"):
        headers = site.ask(path)[1]
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer" and "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host,good", [("127.0.0.1", True), ("127.0.0.1:{port}", True), ("[::1]:80", True),
                                       ("localhost:{port}", True), ("LocalHost", True), ("proxy.example:1", True),
                                       (socket.gethostname(), True), ("evil.example", False), ("", False),
                                       ("evil.example:{port}", False), ("127.0.0.1.evil.example", False),
                                       ("localhost.", False), ("[evil]", False),
                                       pytest.param("x" * 2000, False, id="long")])
def test_another_name_is_not_answered(site, host, good):
    status, _, text = site.ask("/metrics", Host=host.format(port=site.port))
    assert (status == 200) == good and ("imapmux_" in text) == good
    assert good or status in (400, 421)


def test_a_client_of_old_needs_no_name(site):
    assert site.say(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_connections_are_kept_open(site):
    connection = http.client.HTTPConnection(servers.HOST, site.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        sockets = set()
        for _ in range(3):
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            sockets.add(connection.sock)
        assert len(sockets) == 1


GARBAGE = {
    "zeros": b"\0" * 100,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    "IMAP": b"a LOGIN alice secret\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "empty lines": b"\r\n" * 20000,
    "long path": b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20000 + b"\r\n",
    "long body": b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 300000,
    "body": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nsomething",
    "chunks": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_ends_the_connection_and_no_more(site, what):
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        answer = site.say(GARBAGE[what])
        assert answer == b"" or answer.startswith(b"HTTP/1.") and b"imapmux_" not in answer
    assert site.json("/healthz")[0] == 200


def test_slow_clients_are_let_go(site):
    started = time.monotonic()
    connections = [site.connect() for _ in range(MAX_CONNECTIONS)]
    with concurrent.futures.ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        def drip(connection):
            """A byte now and then: never silent, never done."""
            with connection, contextlib.suppress(ConnectionError):
                for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 1000:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.05)
                return False
            return True
        assert all(pool.map(drip, connections))
    assert time.monotonic() - started >= TIMEOUT_SECONDS
    assert site.json("/healthz")[0] == 200


def test_who_reads_slowly_is_let_go(site):
    with site.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with pytest.raises(ConnectionError):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100000)
    assert site.json("/healthz")[0] == 200


def test_connections_are_bounded(site):
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(site.connect()) for _ in range(4 * MAX_CONNECTIONS)]
        closed = servers.wait_for(lambda: [one for one in many if ended(one)], "connections that are one too many")
        assert len(closed) <= 3 * MAX_CONNECTIONS
    servers.wait_for(lambda: answers(site), "room for a connection")


def ended(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answers(site):
    try:
        return site.json("/healthz")[0] == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def test_a_bad_address_is_refused(tmp_path):
    path = tmp_path / "proxy.conf"
    path.write_text('listener a { address = "127.0.0.1:1143" tls = none }\nshard s { address = "x:1" }\n'
                    'http { address = "localhost:8080" }\n')
    binary = os.environ.get("IMAPMUX") or servers.REPOSITORY / "build/imapmux"
    checked = subprocess.run([binary, "-t", "-c", path], capture_output=True, text=True)
    assert checked.returncode == 1 and f"{path}:3: " in checked.stderr and "127.0.0.1:8080" in checked.stderr
