"""
docs/quick-start.md word for word in an empty Debian: `make quick-start-test`, as root. Its blocks are one script of a
shell, that ends at the first command that fails. The machine has no net: what the page installs was downloaded before,
and the repository is a copy of this working tree.
"""
import pathlib
import re
import shlex
import shutil
import subprocess
import time

import pytest
import servers
from in_chroot import Machine, empty_debian, run

TOP = servers.REPOSITORY
PAGE = (TOP / "docs/quick-start.md").read_text()
# A step's title, or a block with its commands.
PARTS = re.findall(r"^## ([^\n]*)\n|^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
STEP = "==== "


def field_of_control(name):
    """A list of packages of deploy/debian/control, without what the build will fill in."""
    text = re.search(rf"^{name}: (.*(?:\n .*)*)", (TOP / "deploy/debian/control").read_text(), re.MULTILINE).group(1)
    return ", ".join(word for word in re.split(r",\s*", text) if not word.startswith("$"))


def downloads():
    """The commands of the page that install packages; those of imapmux itself are for what it depends on."""
    script = re.sub(r"\\\n\s*", " ", "".join(block for _, block in PARTS))
    for line in re.findall(r"^(?:\w+=\w+ )?apt-get (?:install|build-dep) .*$", script, re.MULTILINE):
        words = [word for word in shlex.split(line, comments=True) if "=" not in word]
        if words[-1].startswith("./"):
            needed = field_of_control("Depends")
            if "build-dep" in words:
                needed = field_of_control("Build-Depends") + ", build-essential"
            words = ["apt-get", "satisfy", "--no-install-recommends", needed]
        yield tuple(words)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    machine = Machine(empty_debian(*downloads()), folder)
    yield machine
    machine.end()
    shutil.rmtree(folder)
    assert str(folder) not in pathlib.Path("/proc/mounts").read_text()


def place_repository(machine):
    """Where the page has the source from: this working tree, by another way."""
    source, there = re.search(r"^SOURCE=(.*)$", PAGE, re.MULTILINE).group(1), machine.root / "srv/imapmux"
    there.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, check=True, capture_output=True, text=True).stdout
    run("cp", "-a", "--parents", *listed.split("\0")[:-1], there, cwd=TOP)
    name = ["-c", "user.name=imapmux", "-c", "user.email=imapmux@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*name, "commit", "-q", "-m", "The working tree"]):
        run("git", "-C", there, *words)
    (machine.root / "etc/gitconfig").write_text(f'[url "/srv/imapmux"]\n\tinsteadOf = {source}\n')


def script():
    return "".join(f"echo '{STEP}{title}'\n" if title else block for title, block in PARTS)


def test_it_leads_to_reading_mail(machine, capsys):
    place_repository(machine)
    (machine.root / "root/quick-start.sh").write_text(script())
    command = machine.enter("env", "-u", "DEBIAN_FRONTEND", "HOME=/root",
                            "sh", "-c", "cd && exec sh -e quick-start.sh 2>&1")
    output, begun, title = {}, {}, None
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(STEP):
                title = line.removeprefix(STEP).strip()
                begun[title] = time.monotonic()
            output[title] = output.get(title, "") + line
    ended = time.monotonic()
    assert process.returncode == 0, output[title][-3000:]
    assert re.search(r"proxy\.conf: the configuration is good$", output["4. Configure"], re.MULTILINE)
    assert re.search(r"^verdict +gets in at shard blue as ann$", output["5. Start, and look"], re.MULTILINE)
    assert "Subject: Lunch" in output["6. Read mail"] and "At noon, as always?" in output["6. Read mail"]
    assert re.search(r"event=.(login ok|session end). .* user=ann .* shard=blue", output["6. Read mail"])
    with capsys.disabled():
        times = [*begun.values(), ended]
        print(*(f"\n{after - before:6.1f} s  {step}" for step, before, after in zip(begun, times, times[1:])),
              f"\n{ended - times[0]:6.1f} s  all of it, with everything downloaded")
