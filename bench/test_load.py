"""The load must not count what was not done: it meets stores that answer wrongly, and the benchmark's own one."""
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent / "tests")]
import servers  # noqa: E402
import tools  # noqa: E402

GOOD = {
    b"LOGIN": b"%s OK in\r\n",
    b"SELECT": b"* 1 EXISTS\r\n%s OK selected\r\n",
    b"FETCH": b"* 1 FETCH (BODY[]<0> {8}\r\n12345678)\r\n%s OK fetched\r\n",
    b"LOGOUT": b"* BYE\r\n%s OK out\r\n",
}


class ScriptedStore(threading.Thread):
    """Serves one connection with one answer for each command; None closes it."""

    def __init__(self, answers, greeting=b"* OK hello\r\n"):
        super().__init__(daemon=True)
        self.answers, self.greeting = answers, greeting
        self.listener = socket.create_server((servers.HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        connection = self.listener.accept()[0]
        with connection, self.listener, connection.makefile("rb") as lines:
            connection.sendall(self.greeting)
            for line in lines:
                tag, verb = line.split()[:2]
                if self.answers[verb] is None:
                    return
                connection.sendall(self.answers[verb].replace(b"%s", tag))
                if verb == b"LOGOUT":
                    return


def load(workload, port, *words):
    command = [tools.FOLDER / "load", workload, str(port), "--plain", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def session(port):
    return load("webmail", port, "--units", "1", "--size", "8")


def test_a_good_session_counts():
    done = session(ScriptedStore(GOOD).port)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["units"], result["errors"]) == (1, 0) and result["p50_ms"] > 0


@pytest.mark.parametrize("verb,answer,complaint", [
    (b"LOGIN", b"%s NO who are you\r\n", "answer"),
    (b"LOGIN", b"x%s OK in\r\n", "answer"),
    (b"LOGIN", None, "connection closed"),
    (b"SELECT", b"* 1 FETCH (BODY[]<0> {8}\r\n12345678)\r\n%s OK selected\r\n", "literal"),
    (b"FETCH", b"* 1 FETCH (BODY[]<0> {9}\r\n123456789)\r\n%s OK fetched\r\n", "literal of another size"),
    (b"FETCH", b"* 1 FETCH (BODY[]<0> {8}\r\n1234567)\r\n%s OK fetched\r\n", "not the end of FETCH"),
    (b"FETCH", b"* 1 FETCH (BODY[]<0> {8}\r\n123456789)\r\n%s OK fetched\r\n", "not the end of FETCH"),
    (b"FETCH", b"* 1 FETCH (FLAGS ())\r\n%s OK fetched\r\n", "not one body"),
    (b"FETCH", 2 * b"* 1 FETCH (BODY[]<0> {8}\r\n12345678)\r\n" + b"%s OK fetched\r\n", "not one body"),
    (b"LOGOUT", b"* BYE\r\n%s OK out\r\n%s OK out\r\n", "answer"),
])
def test_a_wrong_answer_is_an_error(verb, answer, complaint):
    done = session(ScriptedStore({**GOOD, verb: answer}).port)
    assert done.returncode == 1 and f"load: {complaint}" in done.stderr
    assert json.loads(done.stdout)["units"] == 0


def test_a_greeting_that_refuses_is_an_error():
    assert session(ScriptedStore(GOOD, b"* BYE full\r\n").port).returncode == 1


@pytest.mark.parametrize("workload", ["login", "webmail", "fetch", "append", "noop"])
def test_the_store_answers_each_workload(tmp_path, workload):
    with tools.Store(tmp_path / "store") as store:
        done = load(workload, store.port, "--clients", "3", "--units", "30", "--size", "100000")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["units"] == 30
        counts = store.counts()
        assert counts["logins"] == (30 if workload in ("login", "webmail") else 3)
        assert (counts["fetches"], counts["appends"]) == (30 if workload in ("webmail", "fetch") else 0,
                                                          30 if workload == "append" else 0)


def test_the_store_wakes_who_idles(tmp_path):
    with tools.Store(tmp_path / "store") as store:
        done = load("idle", store.port, "--clients", "50", "--wake", str(store.process.pid))
        assert done.returncode == 0 and json.loads(done.stdout)["units"] == 50


def test_cpu_time_is_that_of_the_process():
    import measure
    import resource
    sum(number * number for number in range(1000000))
    used = resource.getrusage(resource.RUSAGE_SELF)
    ended = os.times()
    own = used.ru_utime + used.ru_stime + ended.children_user + ended.children_system
    assert abs(measure.cpu_seconds(os.getpid()) - own) < 0.05
