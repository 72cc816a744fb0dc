"""
imapmuxctl's own commands, against a process that speaks the protocol and misbehaves on purpose: what is asked of it,
what people and programs are told, what happens when a step fails, is lost, or is given up.
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
    assert names(process) == ["version", "shard list", "route", "cutover begin", "cutover look", "cutover verify", "cutover commit"]
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


def test_what_the_environment_says_already_counts_for_nothing(process):
    """As in a shell in which a command was tried out, or in a command that moves somebody else."""
    stale = {f"IMAPMUX_{name}": "stale" for name in ("USER", "BACKEND_USER", "FROM", "TO", "EPOCH")}
    tool = ctl(process, "move", "ann", "--to", "green", "--sync", "env",
               env={**os.environ, **stale, "IMAPMUX_USERS": "kept"})
    assert tool.returncode == DONE and "stale" not in tool.stderr_text
    assert {"ann: IMAPMUX_BACKEND_USER=ann", "ann: IMAPMUX_EPOCH=1", "ann: IMAPMUX_FROM=blue", "ann: IMAPMUX_TO=green",
            "ann: IMAPMUX_USER=ann", "ann: IMAPMUX_USERS=kept"} <= set(tool.stderr_text.splitlines())


def test_output_is_harmless(process):
    tool = ctl(process, "move", "ann", "--to", "green", "--sync",
               r"printf '\033[2J\n'; head -c 3000 /dev/zero | tr '\0' x")
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
    assert failed(process, "move", "ann", "--to", "red") == 'imapmuxctl: there is no shard "red"\n'
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
    process.missing = [{"id": f"mx{number}:17", "host": f"mx{number}", "pid": 17, "seen_seconds": 3}
                       for number in range(9)]
    told = failed(process, "move", "ann", "--to", "green", "--timeout", "500ms")
    assert "not all have let go of the user in time: mx0:17 (mx0, seen 3 s ago), mx1:17" in told
    assert "and 6 more" in told
    assert place(process, "ann") == ("blue", "active")


@pytest.mark.parametrize("step", ["begin", "look", "verify", "commit"])
@pytest.mark.parametrize("how", [lose, vanish], ids=["answer", "request"])
def test_a_step_is_lost(process, step, how):
    """Each may be repeated: whether it had been carried out or not, the user is moved in the end."""
    process.misbehave[f"cutover {step}"] = [how, how]
    assert json.loads(done(process, "move", "ann", "--to", "green", "-j"))["state"] == "moved"
    assert place(process, "ann") == ("green", "active")
    assert len({arguments["move"] for arguments in process.asked("cutover begin")}) == 1


@pytest.mark.parametrize("step", ["route", "cutover begin", "cutover look", "cutover verify", "cutover commit"])
def test_what_passes_is_waited_for(process, step):
    """As a master of Redis that is elected, or too many connections; what is refused for good is not asked again."""
    process.misbehave[step] = [refuse("redis: no master", again=True)] * 3
    done(process, "move", "ann", "--to", "green")
    assert len(process.asked(step)) >= 4


def test_what_does_not_pass_is_told(process):
    """Before the time is up, for a Redis that is down may be started."""
    tried = refuse("redis: no master", again=True)
    process.misbehave["cutover begin"] = [tried] * 1000
    tool = start(process, "move", "ann", "--to", "green")
    lines = iter(tool.stderr.readline, "")
    assert "ann: trying again: redis: no master\n" in lines
    with process.lock:
        process.misbehave["cutover begin"].clear()
    assert (tool.wait(60), place(process, "ann")) == (DONE, ("green", "active"))
    tool.stdout.close()
    tool.stderr.close()


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


def lose_move(process, user):
    """As a new master of Redis that had not heard of it yet."""
    with process.lock:
        process.routes[user].update(state="active", epoch=process.routes[user]["epoch"] + 1)
        del process.routes[user]["move"], process.routes[user]["target"]


def test_the_move_is_lost_while_the_command_runs(process):
    """It and all that it has started is ended, and the move begun anew; but not for ever."""
    tool = start(process, "move", "ann", "--to", "green", "--sync", "echo pid $$; sleep 100 & echo child $!; wait")
    for attempt in range(3):
        pid = int(lines_until(tool.stderr, "ann: pid").split()[-1])
        child = int(lines_until(tool.stderr, "ann: child").split()[-1])
        lose_move(process, "ann")
        if attempt < 2:
            assert lines_until(tool.stderr, "ann: the move is lost: ").endswith("under way; it is begun anew\n")
            assert not is_alive(pid) and not is_alive(child)
    told = tool.communicate(timeout=60)[1]
    assert tool.returncode == FAILED and "ann: the move is lost: ann: no such move is under way" in told
    assert not is_alive(pid) and not is_alive(child) and place(process, "ann") == ("blue", "active")


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
        return vanish(arguments, carry_out)

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


def test_a_commit_that_is_done_and_not_answered(process):
    """As without a replica: she is at the new shard, though nobody promises it, and so not at the old one."""
    def unanswered(arguments, carry_out):
        carry_out()
        return refuse("redis: 0 replicas have it, and 1 must", again=True)(arguments, carry_out)

    process.misbehave["cutover commit"] = [unanswered] * 20
    told = failed(process, "move", "ann", "--to", "green", "--timeout", "500ms")
    assert told == ("imapmuxctl: ann: the commit failed: redis: 0 replicas have it, and 1 must; "
                    "it is committed, or may be: if so it goes on by itself, to green\n")
    assert place(process, "ann") == ("green", "active") and "cutover abort" not in names(process)


def test_a_commit_that_is_refused_goes_back(process):
    def over(arguments, carry_out):
        lose_move(process, "ann")
        return refuse("no such move is under way")(arguments, carry_out)

    process.misbehave["cutover commit"] = [over]
    tool = ctl(process, "move", "ann", "--to", "green")
    assert tool.returncode == DONE
    assert tool.stderr_text == "ann: the commit failed: no such move is under way; it is begun anew\n"
    process.misbehave["cutover commit"] = [over] * 3
    told = failed(process, "move", "ann", "--to", "blue")
    assert "ann: the commit failed: no such move is under way; there was no move any more" in told
    assert place(process, "ann") == ("green", "active")


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


@pytest.mark.parametrize("words", [["move", "ann", "--to", "green"], ["shard", "empty", "blue", "--to", "green"]])
def test_the_process_ends_meanwhile(process, words):
    def end(arguments, carry_out):
        process.close()
        return carry_out()

    process.misbehave["version"] = [end]
    assert "No such file or directory" in failed(process, *words, status=NO_CONNECTION)


# Waves

def write_users(tmp_path, text):
    path = tmp_path / "users.txt"
    path.write_text(text)
    return path


def wave_of(process):
    """The id of the only wave, and what is kept of its users."""
    (wave, (users, _)), = process.waves.items()
    return wave, users


def states(process):
    return {user: record["state"] for user, record in wave_of(process)[1].items()}


def test_a_wave(process, tmp_path):
    path = write_users(tmp_path, "# the first ones\nuser0\n\n  user1  # a comment\r\nuser2\nuser1\nuser3")
    tool = ctl(process, "move", "--from-file", path, "--to", "green", "--parallel", "3", "--sync", "echo copying")
    *lines, total = json_lines(tool.stdout_text)
    wave, users = wave_of(process)
    assert tool.returncode == DONE
    assert {line.pop("user") for line in lines} == {"user0", "user1", "user2", "user3"}
    assert all(line.pop("hold_ms") >= 0 for line in lines)
    assert lines == [{"from": "blue", "to": "green", "state": "moved", "mailboxes": 3, "messages": 17}] * 4
    assert total.pop("median_hold_ms") <= total.pop("worst_hold_ms") and total.pop("elapsed_seconds") >= 0
    assert total == {"users": 4, "moved": 4, "there": 0, "failed": 0, "left": 0, "wave": wave}
    assert sorted(tool.stderr_text.splitlines()) == [f"user{number}: copying" for number in range(4)]
    assert all(place(process, f"user{number}") == ("green", "active") for number in range(4))
    assert {(record["state"], record["from"]) for record in users.values()} == {("moved", "blue")}
    parameters = process.waves[wave][1]
    assert parameters.pop("created") > 1e9
    assert parameters == {"to": "green", "parallel": "3", "sync": "echo copying"}


def test_users_as_words(process):
    lines = json_lines(done(process, "move", "ann", "bob", "--to", "green"))
    assert [line.get("user") for line in lines] == ["ann", "bob", None]


def test_bad_names_are_told_before_anything_begins(process, tmp_path):
    path = write_users(tmp_path, "user0\na b\nuser1\n" + "x" * 256 + "\n")
    path.write_bytes(path.read_bytes() + b"\xff\xfe\nuser2\0\n")
    told = failed(process, "move", "--from-file", path, "--to", "green")
    assert told == "".join(f"{path}:{line}: this cannot be the name of a user\n" for line in (2, 4, 5, 6))
    assert names(process) == ["version", "shard list"]
    assert "No such file or directory" in failed(process, "move", "--from-file", tmp_path / "none", "--to", "green")


def test_at_most_so_many_at_a_time(process, tmp_path):
    path = write_users(tmp_path, "\n".join(USERS))
    done_lines = json_lines(ctl(process, "move", "--from-file", path, "--to", "green", "--parallel", "4", "--sync",
                                "sleep 0.2").stdout_text)
    assert done_lines[-1]["moved"] == len(USERS) and process.most_at_once == 4


def test_the_rate(process, tmp_path):
    path = write_users(tmp_path, "\n".join(USERS[:6]))
    begin = time.monotonic()
    done(process, "move", "--from-file", path, "--to", "green", "--parallel", "6", "--rate", "4/s")
    assert time.monotonic() - begin > 5 * 0.25  # from the first beginning to the sixth


def test_failures_and_resumption(process, tmp_path):
    """Those that fail are told of, the others are moved; after --resume all are."""
    path = write_users(tmp_path, "\n".join(USERS))
    sync = 'case $IMAPMUX_USER in user[37]) test -e ' + str(tmp_path / "repaired") + ' ;; esac'
    tool = ctl(process, "move", "--from-file", path, "--to", "green", "--stop-if-errors", "10%", "--sync", sync)
    *lines, total = json_lines(tool.stdout_text)
    wave = total["wave"]
    assert tool.returncode == FAILED and (total["moved"], total["failed"], total["left"]) == (18, 2, 0)
    assert [line["user"] for line in lines if line["state"] == "failed"] == ["user3", "user7"]
    assert "with exit status 1; the user is at blue, as before" in lines[3]["why"]
    assert f"imapmuxctl: not all were moved; to go on: imapmuxctl move --resume {wave}\n" in tool.stderr_text
    assert states(process)["user3"] == "failed" and place(process, "user3") == ("blue", "active")
    (tmp_path / "repaired").touch()
    *lines, total = json_lines(done(process, "move", "--resume", wave))
    assert [line["user"] for line in lines] == ["user3", "user7"] and total["moved"] == 2
    assert set(states(process).values()) == {"moved"}


@pytest.mark.parametrize("percent,begun", [("0%", 1), ("5%", 2), ("24%", 5), ("100%", 20)])
def test_too_many_failures_stop_it(process, tmp_path, percent, begun):
    path = write_users(tmp_path, "\n".join(USERS))
    tool = ctl(process, "move", "--from-file", path, "--to", "green", "--stop-if-errors", percent, "--sync", "false")
    total = json_lines(tool.stdout_text)[-1]
    assert tool.returncode == FAILED and (total["failed"], total["left"]) == (begun, 20 - begun)
    assert ("too many have failed" in tool.stderr_text) == (begun < 20)
    assert list(states(process).values()).count("waiting") == 20 - begun


def test_the_tool_is_killed(process, tmp_path):
    """A user under way is looked at by whoever goes on: not moved yet, or moved without a note of it."""
    path = write_users(tmp_path, "\n".join(USERS[:4]))

    def hang(arguments, carry_out):
        carry_out()
        process.hung.set()
        raise_later.wait(60)
        return {}

    process.hung, raise_later = threading.Event(), threading.Event()
    process.misbehave["cutover commit"] = [None, hang]
    tool = start(process, "move", "--from-file", path, "--to", "green", "--sync", "true")
    assert process.hung.wait(60)
    tool.kill()
    tool.communicate()
    raise_later.set()
    wave, users = wave_of(process)
    assert states(process) == {"user0": "moved", "user1": "moving", "user2": "waiting", "user3": "waiting"}
    assert place(process, "user1") == ("green", "active")  # but that is not noted
    process.cutover_begin("user2", "green", "0123456789abcdef")
    users["user2"].update(state="moving", move="0123456789abcdef", **{"from": "blue"})  # as if killed in the middle
    threading.Timer(1, process.holders.clear).start()  # in Redis they expire
    tool = ctl(process, "move", "--resume", wave)
    assert tool.returncode == DONE and "waiting for the wave: held by " in tool.stderr_text
    *lines, total = json_lines(tool.stdout_text)
    assert [(line["user"], line["state"]) for line in lines] == [("user1", "there"), ("user2", "moved"),
                                                                 ("user3", "moved")]
    assert set(states(process).values()) == {"moved"} and {record["from"] for record in users.values()} == {"blue"}
    assert process.asked("cutover abort") == [{"user": "user1", "move": users_move(process, "user1")},
                                              {"user": "user2", "move": "0123456789abcdef"}]


@pytest.mark.parametrize("words,state,at", [(["--resume"], "moved", "green"),
                                            (["--rollback", "--sync", "true"], "back", "blue")])
def test_what_cannot_be_found_out_is_not_forgotten(process, words, state, at):
    """Whether the one whom a killed imapmuxctl has left was moved, nobody can tell now: it is looked for again."""
    process.misbehave["cutover commit"] = [lose]
    process.misbehave["wave add"] = [None, None] + [vanish] * 1000
    tool = start(process, "move", "ann", "bob", "--to", "green")
    servers.wait_for(lambda: len(process.asked("wave add")) > 2, "ann to be moved")
    tool.kill()
    tool.communicate()
    process.holders.clear()
    process.misbehave["wave add"].clear()
    wave, users = wave_of(process)
    before = dict(users["ann"])
    assert before["state"] == "moving" and place(process, "ann") == ("green", "active")
    process.misbehave["route"] = [refuse("the directory does not answer")]
    option, *more = words
    tool = ctl(process, "move", option, wave, *more, "--stop-if-errors", "0%", "--json")
    line = json_lines(tool.stdout_text)[0]
    assert tool.returncode == FAILED and line["state"] == "unsure"
    assert line["why"] == "the directory does not answer; what became of an earlier move is not known"
    assert users["ann"]["move"] == before["move"] and users["ann"]["from"] == "blue"
    done_quietly(process, "move", option, wave, *more)
    assert users["ann"]["state"] == state and place(process, "ann") == (at, "active")


def users_move(process, user):
    """The id of the first move of this user."""
    return next(arguments["move"] for arguments in process.asked("cutover begin") if arguments["user"] == user)


def test_an_interrupted_wave(process, tmp_path):
    """Ctrl-C: those under way are finished, no others are begun."""
    path = write_users(tmp_path, "\n".join(USERS))
    go_on = tmp_path / "go-on"
    tool = start(process, "move", "--from-file", path, "--to", "green", "--parallel", "2", "--sync",
                 f"echo running; while ! test -e {go_on}; do sleep 0.05; done")
    for _ in range(2):
        assert tool.stderr.readline().endswith(": running\n")
    tool.send_signal(signal.SIGINT)
    assert tool.stderr.readline().startswith("no more are begun: interrupted")
    go_on.touch()
    told = tool.communicate(timeout=60)
    total = json_lines(told[0])[-1]
    assert tool.returncode == FAILED and (total["moved"], total["failed"], total["left"]) == (2, 0, 18)
    assert json_lines(done_quietly(process, "move", "--resume", total["wave"]))[-1]["moved"] == 18
    assert set(states(process).values()) == {"moved"}


def done_quietly(process, *words):
    tool = ctl(process, *words)
    assert tool.returncode == DONE, tool.stderr_text
    return tool.stdout_text


def test_interrupted_twice(process, tmp_path):
    path = write_users(tmp_path, "\n".join(USERS))
    tool = start(process, "move", "--from-file", path, "--to", "green", "--parallel", "2",
                 "--sync", "echo running; sleep 100")
    for _ in range(2):
        assert tool.stderr.readline().endswith(": running\n")
    tool.send_signal(signal.SIGINT)
    assert tool.stderr.readline().startswith("no more are begun: interrupted")
    tool.send_signal(signal.SIGINT)
    *lines, total = json_lines(tool.communicate(timeout=60)[0])
    assert tool.returncode == FAILED and (total["failed"], total["left"]) == (2, 18)
    assert all("it was given up; the user is at blue, as before" in line["why"] for line in lines)
    assert all(route["state"] == "active" and route["shard"] == "blue" for route in process.routes.values())


def test_who_is_there_already(process):
    process.routes["ann"]["shard"] = "green"
    lines = json_lines(done(process, "move", "ann", "bob", "--to", "green"))
    assert [line["state"] for line in lines[:-1]] == ["there", "moved"]
    assert states(process) == {"ann": "there", "bob": "moved"}


def test_a_dry_run(process):
    process.routes["ann"]["shard"] = "green"
    process.routes["user1"]["state"] = "moving"
    tool = ctl(process, "move", "ann", "bob", "nobody", "user1", "--to", "green", "--dry-run")
    assert tool.returncode == FAILED and "not all can be moved" in tool.stderr_text
    assert re.sub(" +", " ", tool.stdout_text) == (
        "user from to would be why\n"
        "ann green green left there \n"
        "bob blue green moved \n"
        "nobody green failed no source of routes knows this user\n"
        "user1 blue green failed the route is moving\n")
    assert json_lines(done(process, "move", "bob", "--to", "green", "--dry-run", "--json")) == [
        {"user": "bob", "from": "blue", "to": "green", "would_be": "moved", "why": ""}]
    assert set(names(process)) == {"version", "shard list", "route"} and process.waves == {}


def test_rollback(process):
    """Back to where each came from; and who was there before stays."""
    process.shards = ("blue", "green", "red")
    process.routes["bob"]["shard"], process.routes["user1"]["shard"] = "red", "green"
    total = json_lines(done(process, "move", "ann", "bob", "user1", "--to", "green", "--sync", "true"))[-1]
    told = failed(process, "move", "--rollback", total["wave"], status=WRONG_USAGE)
    assert told == "imapmuxctl: --sync must say how mail is copied on the way back; there it was: true\n"
    sync = 'echo "$IMAPMUX_FROM $IMAPMUX_TO"; test "$IMAPMUX_USER" != bob'
    tool = ctl(process, "move", "--rollback", total["wave"], "--sync", sync, "--stop-if-errors", "100%")
    assert tool.returncode == FAILED
    assert "ann: green blue\n" in tool.stderr_text and "bob: green red\n" in tool.stderr_text
    assert place(process, "ann") == ("blue", "active") and place(process, "bob") == ("green", "active")
    assert states(process) == {"ann": "back", "bob": "moved", "user1": "there"}
    *lines, total = json_lines(done(process, "move", "--rollback", total["wave"], "--sync", "none"))
    assert [(line["user"], line["to"]) for line in lines] == [("bob", "red")] and total["users"] == 1
    assert place(process, "bob") == ("red", "active") and place(process, "user1") == ("green", "active")


def test_a_wave_that_is_not_there(process):
    assert "there is no wave" in failed(process, "move", "--resume", "01234567")
    assert "there is no wave" in failed(process, "move", "--resume", "what?")
    assert "there is no wave" in failed(process, "waves", "01234567")


def test_what_cannot_be_noted_is_not_begun(process):
    process.misbehave["wave add"] = [None, refuse("Redis does not answer")]
    lines = json_lines(ctl(process, "move", "ann", "bob", "--to", "green", "--stop-if-errors", "100%").stdout_text)
    assert lines[0]["state"] == "failed" and "it could not be noted: Redis does not answer" in lines[0]["why"]
    assert place(process, "ann") == ("blue", "active") and place(process, "bob") == ("green", "active")


def test_shard_empty(process):
    process.routes["bob"]["shard"] = "green"
    total = json_lines(done(process, "shard", "empty", "blue", "--to", "green", "--parallel", "8"))[-1]
    assert (total["users"], total["moved"]) == (21, 21)
    assert {route["shard"] for route in process.routes.values()} == {"green"}
    waves = dict(process.waves)
    nobody = ctl(process, "shard", "empty", "blue", "--to", "green")
    assert (nobody.returncode, nobody.stdout_text, process.waves) == (DONE, "", waves)
    assert "there is nobody to move" in nobody.stderr_text
    assert 'there is no shard "red"' in failed(process, "shard", "empty", "blue", "--to", "red")
    assert 'there is no shard "red"' in failed(process, "move", "ann", "--to", "red", "--dry-run")


def test_waves(process):
    assert done(process, "waves") == ""
    wave = json_lines(done(process, "move", "ann", "bob", "--to", "green"))[-1]["wave"]
    row, = json_lines(done(process, "waves", "--json"))
    assert 0 <= row.pop("age_seconds") < 60
    assert row == {"wave": wave, "to": "green", "users": 2, "waiting": 0, "moving": 0, "moved": 2, "there": 0,
                   "failed": 0, "returning": 0, "back": 0, "holder": ""}
    rows = json_lines(done(process, "waves", wave, "--json"))
    assert [(row["user"], row["state"], row["from"]) for row in rows] == [("ann", "moved", "blue"),
                                                                          ("bob", "moved", "blue")]
    head, *table = done(process, "waves", wave).splitlines()
    assert head.split() == ["user", "state", "from", "hold", "ms"] and table[0].startswith("ann   moved  blue")


def test_a_bar_on_a_terminal(process, tmp_path):
    path = write_users(tmp_path, "\n".join(USERS))
    ours, theirs = pty.openpty()
    tool = subprocess.Popen([IMAPMUXCTL, "-s", process.path, "move", "--from-file", path, "--to", "green",
                             "--rate", "20/s", "--stop-if-errors", "100%", "--sync", 'test "$IMAPMUX_USER" != user9'],
                            stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    assert tool.wait(60) == FAILED
    text = seen.decode()
    assert re.search(r"\r\x1b\[K\[#+\.+\] \d+/20 done, \d failed, \d under way, \d+/min, held", text)
    assert "\r\x1b[Kuser9: the sync command failed" in text and re.search(r"\nmoved +19\r\n", text)


# Routes

def test_import(process, tmp_path):
    path = tmp_path / "routes.csv"
    path.write_text("# routes\nann,blue\n\n  bob , green\nnew,green\nodd,red\r\nline\n")
    tool = ctl(process, "import", path, "--dry-run")
    assert tool.returncode == FAILED and tool.stderr_text == "imapmuxctl: not all were taken\n"
    assert tool.stdout_text == (f"! bob: has another route ({path}:4)\n+ new -> green\n"
                                f'! odd: there is no shard "red" ({path}:6)\n! line: no shard ({path}:7)\n'
                                "new      1\nchanged  0\nsame     1\nrefused  3\n")
    assert "new" not in process.routes
    path.write_text("ann,blue\nbob,green\nnew,green\n")
    assert done(process, "import", path, "--replace") == ("~ bob blue -> green\n+ new -> green\n"
                                                          "new      1\nchanged  1\nsame     1\nrefused  0\n")
    *lines, totals = json_lines(done(process, "import", path, "--json"))
    assert [line["action"] for line in lines] == ["same"] * 3 and totals["same"] == 3
    path.write_bytes(b"ann,blue\n\xff,blue\n")
    assert f"{path}:2: this is no line of text" in failed(process, "import", path)
    assert "No such file" in failed(process, "import", tmp_path / "none")


def test_a_large_import_comes_in_chunks(process, tmp_path):
    path = tmp_path / "routes.csv"
    path.write_text("".join(f'user-"{number}",green\n' for number in range(5000)))
    assert json_lines(done(process, "import", path, "-j"))[-1]["new"] == 5000
    assert len(process.asked("routes import")) >= 5
    process.misbehave["routes import"] = [None, refuse("Redis does not answer")]
    tool = ctl(process, "import", path, "-j")
    assert tool.returncode == FAILED and 0 < json_lines(tool.stdout_text)[-1]["same"] < 5000


def test_export(process):
    process.routes = {"ann": {"shard": "blue", "state": "active", "epoch": 3},
                      "b,ob": {"shard": "green", "state": "active", "epoch": 0, "backend_user": 'the "real" bob'},
                      "#1": {"shard": "blue", "state": "active", "epoch": 0}}
    assert done(process, "export", "--csv") == 'ann,blue\n"b,ob",green,"the ""real"" bob"\n"#1",blue\n'
    assert done(process, "export", "--csv", "--shard", "green") == '"b,ob",green,"the ""real"" bob"\n'
    assert [line["user"] for line in json_lines(done(process, "export", "--json"))] == ["ann", "b,ob", "#1"]
    assert done(process, "export", "--shard", "blue").splitlines()[0].split() == ["user", "shard", "state", "backend",
                                                                                   "user", "epoch"]
    process.misbehave["routes export"] = [refuse("Redis does not answer")]
    assert failed(process, "export", "--csv") == "imapmuxctl: Redis does not answer\n"


# A trace

def test_a_trace_that_one_proxy_refuses_is_over_at_the_others(process):
    """Else it would be in the way of the next one, until its time is up."""
    def refused_elsewhere(arguments, carry_out):
        items, result = carry_out()
        return [*items, {"proxy": "elsewhere", "refused": "somebody else traces this user"}], result
    process.misbehave["trace fetch"] = [refused_elsewhere, refused_elsewhere]
    assert failed(process, "trace", "ann") == "imapmuxctl: somebody else traces this user\n"
    assert [arguments.get("end") for arguments in process.asked("trace fetch")] == [None, "yes"]
    assert process.listened_to == {}
    done(process, "trace", "ann", "--lines", "1")
    assert process.listened_to == {}
