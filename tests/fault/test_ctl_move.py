"""
imapmuxctl's own commands, against a process that speaks the protocol and misbehaves on purpose: what is asked of it, what
people and programs are told, what happens when a step fails, is lost, or is given up.
"""
import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import threading
import time

import pytest

import servers
from fake_process import Process, lose, refuse, vanish

DONE, FAILED, WRONG_USAGE, NO_CONNECTION = range(4)
IMAPMUXCTL = (servers.REPOSITORY / os.environ.get("IMAPMUX", "build/imapmux")).with_name("imapmuxctl")
USERS = [f"user{number}" for number in range(20)]


@pytest.fixture
def process(tmp_path):
    only = Process(tmp_path / "admin.sock", users=["ann", "bob", *USERS])
    yield only
    with contextlib.suppress(OSError):
        only.close()
    assert not only.failures


def start(process, *words, **options):
    return subprocess.Popen([IMAPMUXCTL, "-s", process.path, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)


def ctl(process, *words, **options):
    tool = start(process, *words, **options)
    tool.stdout_text, tool.stderr_text = tool.communicate(timeout=60)
    return tool


def done(process, *words):
    tool = ctl(process, *words)
    assert (tool.returncode, tool.stderr_text) == (DONE, ""), tool.stderr_text
    return tool.stdout_text


def failed(process, *words, status=FAILED):
    tool = ctl(process, *words)
    assert tool.returncode == status, (tool.returncode, tool.stdout_text, tool.stderr_text)
    return tool.stderr_text


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def names(process):
    return [command for command, _ in process.requests]


def place(process, user):
    return process.routes[user]["shard"], process.routes[user]["state"]


def is_alive(pid):
    with contextlib.suppress(FileNotFoundError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    return False


# One user

def test_a_move(process):
    process.routes["ann"]["backend_user"] = "u17"
    result = json.loads(done(process, "move", "ann", "--to", "green", "--json"))
    assert result.pop("hold_ms") >= 0
    assert result == {"user": "ann", "from": "blue", "to": "green", "state": "moved", "mailboxes": 3, "messages": 17}
    assert place(process, "ann") == ("green", "active")
    assert names(process) == ["version", "route", "cutover begin", "cutover look", "cutover verify", "cutover commit"]
    assert re.fullmatch("[0-9a-f]{16}", process.asked("cutover begin")[0]["move"])
    assert process.asked("cutover verify") == [{"user": "ann", "from": "blue", "to": "green"}]
    table = done(process, "move", "ann", "--to", "blue")
    assert re.search(r"^user +ann\nfrom +green\nto +blue\nstate +moved\n", table)
    assert json.loads(done(process, "move", "ann", "--to", "blue", "--json"))["state"] == "there"


def test_commands_of_a_move(process, tmp_path):
    """Who it is comes by the environment; output comes line by line; the commands have their order."""
    process.routes["ann"]["backend_user"] = "u17"
    order = tmp_path / "order"
    command = ('echo "$IMAPMUX_USER $IMAPMUX_BACKEND_USER $IMAPMUX_FROM $IMAPMUX_TO $IMAPMUX_EPOCH" >&2; '
               'printf "half a line"; echo %s >>' + str(order))
    tool = ctl(process, "move", "ann", "--to", "green", "--presync", command % "before", "--sync", command % "sync",
               "--verify", command % "verify")
    assert tool.returncode == DONE
    assert tool.stderr_text == ("ann: ann u17 blue green 0\nann: half a line\n" +
                                "ann: ann u17 blue green 1\nann: half a line\n" * 2)
    assert order.read_text() == "before\nsync\nverify\n"
    assert "cutover verify" not in names(process)


def test_output_is_harmless(process):
    tool = ctl(process, "move", "ann", "--to", "green", "--sync", r"printf '\033[2J\n'; head -c 3000 /dev/zero | tr '\0' x")
    assert tool.stderr_text == "ann: \\x1b[2J\n" + f"ann: {'x' * 1024}\n" * 2 + f"ann: {'x' * (3000 - 2048)}\n"


@pytest.mark.parametrize("user", ["$(touch${IFS}pwned)", "a;touch${IFS}pwned", "a'b\"c", "-rf"])
def test_a_name_is_never_part_of_a_command(process, user, tmp_path):
    process.routes[user] = {"shard": "blue", "state": "active", "epoch": 0}
    tool = ctl(process, "move", "--to", "green", "--sync", 'printf "%s\\n" "$IMAPMUX_USER"', "--", user, cwd=tmp_path)
    assert tool.returncode == DONE and tool.stderr_text == f"{user}: {user}\n"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("options,reason,steps", [
    (["--sync", "exit 3"], "the sync command failed with exit status 3; the user is at blue, as before", "abort"),
    (["--sync", "kill -9 $$"], "the sync command was ended by signal 9; the user is at blue, as before", "abort"),
    (["--verify", "false"], "the verify command failed with exit status 1; the user is at blue, as before", "abort"),
    (["--presync", "exit 7"], "the presync command failed with exit status 7; the user is at blue", "route"),
    (["--sync", "/nonexistent/program"], "failed with exit status 127", "abort"),
])
def test_a_command_fails(process, options, reason, steps):
    told = failed(process, "move", "ann", "--to", "green", *options)
    assert f"imapmuxctl: ann: the " in told and reason in told
    assert place(process, "ann") == ("blue", "active") and names(process)[-1].endswith(steps)


def test_stores_differ(process):
    process.misbehave["cutover verify"] = [refuse("INBOX has 3 messages at blue, 2 at green")]
    told = failed(process, "move", "ann", "--to", "green")
    assert told == ("imapmuxctl: ann: the comparison failed: INBOX has 3 messages at blue, 2 at green; "
                    "the user is at blue, as before\n")
    assert place(process, "ann") == ("blue", "active")


def test_what_cannot_begin(process):
    assert "ann: it could not begin: there is no shard \"red\"; the user is at blue" in \
        failed(process, "move", "ann", "--to", "red")
    assert "nobody: no source of routes knows" in failed(process, "move", "nobody", "--to", "green")
    process.routes["bob"]["state"] = "disabled"
    assert failed(process, "move", "bob", "--to", "green") == "imapmuxctl: bob: the route is disabled\n"
    assert "cutover abort" not in names(process)


def test_it_waits_for_proxies_and_says_for_whom(process):
    process.missing = [{"id": "mx2:17", "host": "mx2", "pid": 17, "seen_seconds": 3, "until_seconds": 50}]
    tool = start(process, "move", "ann", "--to", "green")
    assert tool.stderr.readline() == "ann: waiting for mx2:17 (mx2, seen 3 s ago)\n"
    process.missing = []
    assert tool.wait(60) == DONE and place(process, "ann") == ("green", "active")
    tool.communicate()


def test_a_proxy_that_does_not_let_go(process):
    process.missing = [{"id": f"mx{number}:17", "host": f"mx{number}", "pid": 17, "seen_seconds": 3} for number in range(9)]
    told = failed(process, "move", "ann", "--to", "green", "--timeout", "500ms")
    assert "not all have let go of the user in time: mx0:17 (mx0, seen 3 s ago), mx1:17" in told and "and 6 more" in told
    assert place(process, "ann") == ("blue", "active")


@pytest.mark.parametrize("step", ["begin", "look", "verify", "commit"])
@pytest.mark.parametrize("how", [lose, vanish], ids=["answer", "request"])
def test_a_step_is_lost(process, step, how):
    """Each may be repeated: whether it had been carried out or not, the user is moved in the end."""
    process.misbehave[f"cutover {step}"] = [how, how]
    assert json.loads(done(process, "move", "ann", "--to", "green", "-j"))["state"] == "moved"
    assert place(process, "ann") == ("green", "active")
    assert len({arguments["move"] for arguments in process.asked("cutover begin")}) == 1


def test_too_many_connections_pass(process):
    process.misbehave["cutover begin"] = process.misbehave["cutover commit"] = [refuse("too many connections")] * 2
    done(process, "move", "ann", "--to", "green")


@pytest.mark.parametrize("step", ["look", "verify", "commit"])
def test_the_process_restarts(process, step):
    def restart(arguments, carry_out):
        process.close()
        threading.Timer(1, process.listen).start()
        return vanish(arguments, carry_out)

    process.misbehave[f"cutover {step}"] = [restart]
    done(process, "move", "ann", "--to", "green")
    assert place(process, "ann") == ("green", "active")


def lines_until(stream, start):
    for line in stream:
        if line.startswith(start):
            return line
    raise AssertionError(f"no line {start}")


def test_the_move_is_lost_while_the_command_runs(process):
    tool = start(process, "move", "ann", "--to", "green", "--sync", "echo pid $$; sleep 100 & echo child $!; wait")
    pid = int(lines_until(tool.stderr, "ann: pid").split()[-1])
    child = int(lines_until(tool.stderr, "ann: child").split()[-1])
    with process.lock:
        process.routes["ann"].update(state="active", epoch=2)
        del process.routes["ann"]["move"]
    told = tool.communicate(timeout=60)[1]
    assert tool.returncode == FAILED and "ann: the move is lost: ann: no such move is under way" in told
    assert not is_alive(pid) and not is_alive(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_command_runs(process, number):
    tool = start(process, "move", "ann", "--to", "green", "--sync", "echo pid $$; sleep 100 & echo child $!; wait")
    pid = int(lines_until(tool.stderr, "ann: pid").split()[-1])
    child = int(lines_until(tool.stderr, "ann: child").split()[-1])
    tool.send_signal(number)
    told = tool.communicate(timeout=60)[1]
    assert (tool.returncode, told) == (FAILED, "imapmuxctl: ann: it was given up; the user is at blue, as before\n")
    assert not is_alive(pid) and not is_alive(child) and place(process, "ann") == ("blue", "active")


def test_a_command_that_will_not_end_is_killed(process):
    tool = start(process, "move", "ann", "--to", "green", "--sync",
                 "trap '' TERM; echo pid $$; while :; do sleep 1; done")
    pid = int(lines_until(tool.stderr, "ann: pid").split()[-1])
    tool.send_signal(signal.SIGINT)
    tool.communicate(timeout=60)
    assert tool.returncode == FAILED and not is_alive(pid)


def test_what_a_command_leaves_behind_is_ended(process):
    """It might go on copying after the flip."""
    tool = ctl(process, "move", "ann", "--to", "green", "--sync", "sleep 100 >/dev/null 2>&1 & echo pid $!")
    assert tool.returncode == DONE
    pid = int(tool.stderr_text.split()[-1])
    servers.wait_for(lambda: not is_alive(pid), "its end")


def test_a_signal_while_proxies_are_waited_for(process):
    process.missing = [{"id": "mx2:17", "host": "mx2", "pid": 17, "seen_seconds": 3}]
    tool = start(process, "move", "ann", "--to", "green")
    assert "waiting" in tool.stderr.readline()
    tool.send_signal(signal.SIGINT)
    assert "given up; the user is at blue" in tool.communicate(timeout=60)[1] and tool.returncode == FAILED
    assert place(process, "ann") == ("blue", "active")


def test_a_signal_while_stores_are_compared(process):
    comparing, over = threading.Event(), threading.Event()

    def hang(arguments, carry_out):
        comparing.set()
        over.wait(60)
        return carry_out()

    process.misbehave["cutover verify"] = [hang]
    tool = start(process, "move", "ann", "--to", "green")
    assert comparing.wait(60)
    tool.send_signal(signal.SIGTERM)
    assert "given up; the user is at blue" in tool.communicate(timeout=60)[1]
    over.set()


def test_the_move_is_kept_alive(process):
    """While a command runs, and while stores are compared: look is asked again at least each 5 s."""
    def slow(arguments, carry_out):
        before = len(process.asked("cutover look"))
        servers.wait_for(lambda: len(process.asked("cutover look")) > before, "a look", seconds=20)
        return carry_out()

    process.misbehave["cutover verify"] = [slow]
    tool = start(process, "move", "ann", "--to", "green", "--sync", "echo running; read line </dev/stdin; sleep 5.5")
    lines_until(tool.stderr, "ann: running")
    before = len(process.asked("cutover look"))
    tool.communicate(timeout=60)
    assert tool.returncode == DONE
    assert len(process.asked("cutover look")) >= before + 2


def test_a_commit_in_part_goes_forward(process):
    def in_part(arguments, carry_out):
        process.routes["ann"]["state"] = "committed"
        return refuse("fewer replicas than redis.replicas have it")(arguments, carry_out)

    process.misbehave["cutover commit"] = [in_part, in_part, lose]
    done(process, "move", "ann", "--to", "green")
    assert place(process, "ann") == ("green", "active") and "cutover abort" not in names(process)


def test_a_commit_that_is_refused_goes_back(process):
    def over(arguments, carry_out):
        process.routes["ann"].update(state="active")
        del process.routes["ann"]["move"]
        return refuse("no such move is under way")(arguments, carry_out)

    process.misbehave["cutover commit"] = [over]
    told = failed(process, "move", "ann", "--to", "green")
    assert "ann: the commit failed: no such move is under way; there was no move any more" in told


def test_a_proxy_that_starts_before_the_commit(process):
    late = [{"id": "mx3:1", "host": "mx3", "pid": 1, "seen_seconds": 0}]

    def start_one(arguments, carry_out):
        process.missing = late
        threading.Timer(0.5, process.missing.clear).start()
        return carry_out()

    process.misbehave["cutover commit"] = [start_one]
    done(process, "move", "ann", "--to", "green")
    assert len(process.asked("cutover commit")) == 2


@pytest.mark.parametrize("words,reason", [
    (["move", "--to", "green"], "whom? Name users"), (["move", "ann"], "--to is missing"),
    (["move", "ann", "--resume", "01234567"], "exclude each other"),
    (["move", "--resume", "01234567", "--to", "green"], "--to is known from the wave"),
    (["move", "ann", "--to", "green", "--parallel", "33"], "--parallel is \"33\", expected 1 to 32"),
    (["move", "ann", "--to", "green", "--parallel", "0"], "expected 1 to 32"),
    (["move", "ann", "--to", "green", "--rate", "60"], "--rate is \"60\", expected one like 60/min"),
    (["move", "ann", "--to", "green", "--timeout", "soon"], "--timeout is \"soon\""),
    (["move", "ann", "--to", "green", "--stop-if-errors", "1"], "expected 0% to 100%"),
    (["move", "ann", "--to", "green", "--dry-run=yes"], "doesn't allow an argument"),
    (["shard", "empty", "blue"], "--to is missing"), (["shard", "empty", "blue", "--to", "blue"], "moved to itself"),
    (["shard", "empty"], '"shard empty" needs "shard"'),
])
def test_wrong_usage(process, words, reason):
    assert reason in failed(process, *words, status=WRONG_USAGE) and process.requests == []


def test_nobody_listens(process):
    process.close()
    for words in ["move", "ann", "--to", "green"], ["shard", "empty", "blue", "--to", "green"], ["waves"], ["export"]:
        assert "No such file or directory" in failed(process, *words, status=NO_CONNECTION)
