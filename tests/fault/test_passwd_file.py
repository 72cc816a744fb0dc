"""The password file changes while imapmux runs: in whatever way editors do that, and also for the worse."""
import itertools
import os
import signal
import subprocess
import time

import pytest

from servers import REPOSITORY, wait_for
from stage import PASSWORD, Store, password_line, shard
from test_admin import ctl, done

BOB = password_line("bob")
QUICK_SECONDS = 0.8  # less than what makes a file one that rests
passwords = (f"changed{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def proxy(start):
    with Store() as store:
        proxy = start(shard("store", store.port), workers=2, passwords={"alice": PASSWORD, "bob": PASSWORD})
        wait_for(lambda: proxy.events("passwd read"), "the file to be read once more, for it was new")
        yield proxy


def may_log_in(proxy, user, password=PASSWORD):
    with proxy.wire() as wire:
        answer = wire.command(f"LOGIN {user} {password}".encode(), tag=b"in")
    assert answer.startswith((b"in OK", b"in NO [AUTHENTICATIONFAILED]")), answer
    return answer.startswith(b"in OK")


def replace(path, text):
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def overwrite_in_secret(path, text):
    """Of the same size, and as old as before."""
    before = path.stat()
    assert len(text) == before.st_size
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def move_away_and_write(path, text):
    path.rename(path.with_suffix(".old"))
    path.write_text(text)


def events(proxy, name, level):
    return [event["detail"] for event in proxy.events(name) if event["level"] == level]


def test_a_change_counts_without_a_restart(proxy):
    old = PASSWORD
    for change in replace, overwrite_in_secret, move_away_and_write:
        read, new = len(proxy.events("passwd read")), next(passwords)
        change(proxy.folder / "passwd", password_line("alice", new) + BOB)
        wait_for(lambda: may_log_in(proxy, "alice", new), "the new password")
        assert not may_log_in(proxy, "alice", old) and may_log_in(proxy, "bob"), change
        assert len(proxy.events("passwd read")) == read + 1  # both workers have it by that
        old = new
    assert events(proxy, "passwd read", "info")[-1].endswith("/passwd: 2 users")


def test_a_bad_file_changes_nothing(proxy):
    new = next(passwords)
    replace(proxy.folder / "passwd", password_line("alice", new) + "bob:*\n")
    wait_for(lambda: events(proxy, "passwd not read", "error"), "the error")
    assert not may_log_in(proxy, "alice", new) and may_log_in(proxy, "bob")
    replace(proxy.folder / "passwd", password_line("alice", new) + BOB)
    wait_for(lambda: may_log_in(proxy, "alice", new), "the good one")
    complaint, = events(proxy, "passwd not read", "error")
    assert complaint.endswith("/passwd:2: expected a hash as crypt(5) describes them; the users read before stay")


def test_a_file_that_is_gone_is_missed_once(proxy):
    path = proxy.folder / "passwd"
    away = path.with_suffix(".away")
    path.rename(away)
    wait_for(lambda: events(proxy, "passwd not read", "warning"), "the warning")
    since = time.monotonic()
    while time.monotonic() < since + 2:  # in which it is missed twice again, and not told
        assert may_log_in(proxy, "bob")
    read, new = len(proxy.events("passwd read")), next(passwords)
    away.write_text(password_line("alice", new) + BOB)
    away.rename(path)
    wait_for(lambda: may_log_in(proxy, "alice", new), "the file that is back")
    assert len(proxy.events("passwd read")) == read + 1
    assert len(events(proxy, "passwd not read", "warning")) == 1


def test_a_file_is_left_alone_while_it_is_written(proxy):
    read, new = len(proxy.events("passwd read")), next(passwords)
    begin = written = time.monotonic()
    with open(proxy.folder / "passwd", "w") as file:
        file.write(password_line("alice", new))
        while written < begin + 3:
            file.write("# more is to come\n")
            file.flush()
            since, written = written, time.monotonic()
            known = may_log_in(proxy, "bob") and not may_log_in(proxy, "alice", new)
            if max(written - since, time.monotonic() - written) > QUICK_SECONDS:
                pytest.skip("this machine is too busy to write without a pause")
            assert known and len(proxy.events("passwd read")) == read
        file.write(BOB)
    wait_for(lambda: may_log_in(proxy, "alice", new), "the whole file")
    assert may_log_in(proxy, "bob")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """What is read from the file "others" of a process of the test waits while "others.held" is beside it."""
    library = tmp_path / "held_open.so"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["cc", *flags, "-o", library, REPOSITORY / "tests/fault/held_open.c"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("HELD_OPEN", "others")


def test_no_loop_waits_for_another_file(start, disk):
    """A reload names it, and its disk is slow: meanwhile everybody is served, and administration answers."""
    with Store() as store:
        proxy = start(shard("store", store.port), workers=2, more='admin { socket = "admin.sock" }\n')
        others, path = proxy.folder / "others", proxy.folder / "proxy.conf"
        others.write_text(password_line("alice", "another"))
        others.with_suffix(".held").touch()
        path.write_text(path.read_text().replace('file = "passwd"', 'file = "others"'))
        proxy.process.send_signal(signal.SIGHUP)
        wait_for(others.with_suffix(".waits").exists, "it to be read")
        assert may_log_in(proxy, "alice") and may_log_in(proxy, "bob")
        assert "under way" in ctl(proxy, "reload").stderr and '"running"' in done(proxy, "--json", "status")
        others.with_suffix(".held").unlink()
        proxy.wait_for_event("reloaded")
        assert may_log_in(proxy, "alice", "another") and not may_log_in(proxy, "bob")
        proxy.stop()
