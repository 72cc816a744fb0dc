"""What is shipped to be read and used: the settings page is current, the samples are good, the pages are well formed."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
IMAPMUX = TOP / os.environ.get("IMAPMUX", "build/imapmux")


def imapmux(*words):
    return subprocess.run([IMAPMUX, *words], cwd=TOP, capture_output=True, text=True, timeout=30)


def test_settings_page_is_what_the_program_prints():
    printed = imapmux("--print-settings")
    assert printed.returncode == 0
    assert (TOP / "docs/configuration.md").read_text() == printed.stdout, \
        "run: build/imapmux --print-settings >docs/configuration.md"


def test_sample_configuration_is_good():
    checked = imapmux("-t", "-c", "proxy.conf")
    assert (checked.returncode, checked.stdout) == (0, "proxy.conf: the configuration is good\n"), checked.stderr


def test_bad_configuration_names_file_and_line(tmp_path):
    path = tmp_path / "bad.conf"
    path.write_text((TOP / "proxy.conf").read_text() + "session {\n    idle_timeout = soon\n}\n")
    line = path.read_text().count("\n") - 1
    checked = imapmux("-t", "-c", path)
    assert checked.returncode == 1
    assert checked.stderr.startswith(f"imapmux: {path}:{line}: ") and '"soon"' in checked.stderr


@pytest.mark.parametrize("words,status", [(["--help"], 0), (["--version"], 0), (["--print-defaults"], 0),
                                          (["--nonsense"], 2), (["surplus"], 2), (["-c", "/nonexistent"], 1)])
def test_command_line(words, status):
    assert imapmux(*words).returncode == status


def test_metrics_are_explained():
    names = re.findall(r'"(imapmux_\w+)', (TOP / "proxy/base/metrics.def").read_text())
    page = (TOP / "docs/operations.md").read_text()
    assert len(names) > 30 and [name for name in names if f"| `{name}`" not in page] == []


def test_a_user_of_redis_may_do_all_that_is_asked_of_it():
    page = (TOP / "docs/operations.md").read_text()
    rights = set(re.findall(r" \+(\w+)", re.search(r"^ +ACL SETUSER .*$", page, re.MULTILINE).group()))
    sources = [path.read_text() for folder in ("proxy", "auth", "routing") for path in (TOP / folder).rglob("*.c")]
    used = {word.lower() for text in sources for word in re.findall(r"redis\.p?call\('(\w+)'", text)}
    used |= {word.lower() for text in sources if '/redis_link.h"' in text
             for word in re.findall(r'\{"([A-Z]+)"[,}]', text)}
    assert len(used) > 15 and used - rights == set()


def test_commands_are_explained():
    commands = re.findall(r'^    X\(\w+, "([^"]+)"', (TOP / "proxy/ctl/commands.def").read_text(), re.MULTILINE)
    page = (TOP / "docs/imapmuxctl.8").read_text()
    assert len(commands) >= 5 and commands == list(dict.fromkeys(commands))
    explained = re.findall(r"^\.It Ic (\w+(?: [a-z]\w*)*)(?: Op| Ar| Cm|$)", page, re.MULTILINE)
    assert explained == sorted(commands)


@pytest.mark.parametrize("page", ["imapmux.8", "imapmuxctl.8", "proxy.conf.5"])
def test_man_pages(page):
    assert shutil.which("mandoc"), "make deps installs it"
    checked = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", TOP / "docs" / page], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
