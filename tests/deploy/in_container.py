"""
The Containerfile without an engine: `make container-test`, as root. Each stage is a copy of an empty Debian, in which
its instructions are carried out in their order; what comes out is then run as the user that it names.
"""
import os
import pathlib
import re
import shutil
import subprocess

import containerfile
import pytest
import servers
from in_chroot import base, package, run  # noqa: F401

TOP = servers.REPOSITORY


class Stage:
    """One stage; its folder is what its image would be."""

    def __init__(self, base, root, instructions, others):
        self.root, self.others, self.last = root, others, {}
        run("cp", "-a", "--reflink=auto", base, root)
        for name, arguments in instructions:
            self.last[name] = arguments
            getattr(self, "do_" + name.lower(), lambda arguments: None)(arguments)

    def do_run(self, arguments):
        self.run("sh", "-c", arguments)

    def do_copy(self, arguments):
        *options, source, target = arguments.split()
        target = self.root / target.strip("/")
        if options:
            others = self.others[options[0].removeprefix("--from=")].root
            for found in others.glob(source.strip("/")):
                shutil.copy(found, target)
        else:
            target.mkdir()
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=TOP, check=True, capture_output=True).stdout
            files = [".git", *listed.decode().split("\0")[:-1]]
            subprocess.run(["cp", "-a", "--parents", *files, target], cwd=TOP, check=True)

    def command(self, *words, user="0:0"):
        return ["chroot", f"--userspec={user}", str(self.root), *words]

    def run(self, *words, user="0:0"):
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return run(*self.command(*words, user=user), env={"PATH": path, "DEBIAN_FRONTEND": "noninteractive"})


@pytest.fixture(scope="module")
def image(base, tmp_path_factory):  # noqa: F811
    folder, stages = tmp_path_factory.mktemp("image"), {}
    for number, instructions in enumerate(containerfile.stages((TOP / "deploy/container/Containerfile").read_text())):
        name = re.search(r" AS (\w+)$", instructions[0][1])
        stage = Stage(base, folder / str(number), instructions[1:], stages)
        stages[name.group(1) if name else number] = stage
    yield stage
    shutil.rmtree(folder)


def test_it_runs_as_its_user_and_is_healthy(image):
    user, port = image.last["USER"], servers.free_port()
    page = (TOP / "deploy/container/README.md").read_text()
    shown = re.search(r"^```conf\n(.*?)^```", page, re.MULTILINE | re.DOTALL).group(1)
    chain, key = servers.make_certificate(image.root / "etc/imapmux")
    os.chmod(key, 0o644)
    (image.root / "etc/imapmux/proxy.conf").write_text(shown.replace("0.0.0.0:1993", f"{servers.HOST}:{port}") + """
certificate mail { chain = "server.crt" key = "server.key" }
passwd { file = "passwd" }
route { sources = { default } default_shard = store }
shard store { address = "127.0.0.1:143" tls = none }
""")
    (image.root / "etc/imapmux/passwd").chmod(0o644)
    started = image.command(*containerfile.words(image.last["ENTRYPOINT"]), *containerfile.words(image.last["CMD"]),
                            user=user)
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("event=ready" in line for line in process.stderr)
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"^Uid:\t(\d+)\t", status, re.MULTILINE).group(1) == user.partition(":")[0]
            image.run(*containerfile.words(image.last["HEALTHCHECK"].partition("CMD ")[2]), user=user)
        finally:
            process.terminate()
    assert process.returncode == 0
