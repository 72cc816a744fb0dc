"""The units: systemd takes them, what they allow is little, and what the page beside them says is so."""
import pathlib
import re
import subprocess

import pytest
import servers

UNITS = servers.REPOSITORY / "deploy/systemd"
BINARIES = servers.REPOSITORY / "build"


def settings(unit):
    """All assignments, of a name with several in one text."""
    found = {}
    for line in (UNITS / unit).read_text().splitlines():
        name, is_one, value = line.partition("=")
        if is_one and not line.startswith("#"):
            found[name] = f"{found.get(name, '')} {value}".strip()
    return found


def milliseconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 1, "s": 1000, "m": 60000}[unit]


@pytest.fixture
def units(tmp_path):
    """The units as systemd would load them, with programs that are there."""
    for unit in ("imapmux.service", "imapmux.socket"):
        text = re.sub(r"=/usr/s?bin/", f"={BINARIES}/", (UNITS / unit).read_text())
        (tmp_path / unit).write_text(text)
    return tmp_path


def test_systemd_takes_them(units):
    paths = sorted(map(str, units.iterdir()))
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
                             capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_exposure_is_as_the_page_says(units):
    said = re.search(r"\*\*([0-9.]+)\*\*", (UNITS / "README.md").read_text()).group(1)
    checked = subprocess.run(["systemd-analyze", "security", "--offline=yes", units / "imapmux.service"],
                             capture_output=True, text=True)
    found = re.search(r"exposure level for imapmux.service: ([0-9.]+) ", checked.stdout).group(1)
    assert float(found) <= 2.0 and found == said


def test_an_orderly_stop_has_its_time():
    defaults = subprocess.run([BINARIES / "imapmux", "--print-defaults"], capture_output=True, text=True).stdout
    stop_timeout = re.search(r"stop_timeout = (\w+)", defaults).group(1)
    assert milliseconds(settings("imapmux.service")["TimeoutStopSec"]) > milliseconds(stop_timeout)


def test_the_socket_is_what_the_service_can_take():
    socket = settings("imapmux.socket")
    assert socket["ListenStream"] == "0.0.0.0:993 [::]:993" and socket["ReusePort"] == "yes"
    assert socket["BindIPv6Only"] == "ipv6-only"  # as imapmux binds them itself


def test_installed_units_name_installed_programs(tmp_path):
    subprocess.run(["make", "-s", "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/imapmux", "SYSCONF=/opt/etc",
                    "UNITDIR=/etc/systemd/system"], check=True, cwd=servers.REPOSITORY, capture_output=True)
    unit = (tmp_path / "etc/systemd/system/imapmux.service").read_text()
    programs = re.findall(r"^Exec\w+=(\S+)", unit, re.MULTILINE)
    assert programs == ["/opt/imapmux/sbin/imapmux", "/opt/imapmux/bin/imapmuxctl"]
    assert all(pathlib.Path(f"{tmp_path}{program}").exists() for program in programs)
    assert "-c /opt/etc/proxy.conf" in unit
