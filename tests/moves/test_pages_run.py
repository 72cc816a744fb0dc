"""
What README.md and the pages of docs and deploy show to be typed is typed: each line that calls imapmuxctl, in the order
of its page, at a pair of proxies of which the stores and users are called as on the pages. Its exit status must be 0.
"""
import contextlib
import os
import re
import subprocess

import campus
import pytest
import servers

TOP = servers.REPOSITORY
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md")),
         *sorted((TOP / "deploy").rglob("*.md"))]
USERS = ["ann", "bob", "carl"]
WAVE = "5f3c11a0"
ENDLESS = {"imapmuxctl top": "--count 1", "imapmuxctl trace": "--for 1s"}  # and what ends them
# After these another process is there, or none: they are typed at one of their own.
LAST_WORDS = ("imapmuxctl drain", "imapmuxctl upgrade", "imapmuxctl --all", "imapmuxctl -s")
# Lines that begin like this are not for here, and why.
ELSEWHERE = {
    "make": "the targets of the Makefile, by themselves; `make deb-test` makes and installs the package",
    "build/imapmux": "tests/test_docs.py",
    "imapmux ": "tests/test_docs.py; the configurations of the pages: tests/test_pages.py",
    "build-fuzz/": "a finding of a fuzzer, which there should not be",
    "IMAPMUX=": "other tests",
    "deploy/convert/": "tests/deploy/test_convert.py",
    "./director-map": "tests/deploy/test_convert.py",
    "promtool": "tests/deploy/test_prometheus.py",
    "fail2ban-regex": "tests/fault/test_fail2ban.py",
    "openssl ocsp": "asks an authority, of which there is none here",
    'echo "ann:$(mkpasswd': "Debian's package whois is not installed; its hashes: tests/unit/test_passwd.c",
    "podman": "no engine is here; what the Containerfile says: `make container-test`",
    "kubectl": "no cluster is here; the manifests: tests/deploy/test_kubernetes.py",
    "for pod in": "no cluster is here",
    "systemctl": "wants systemd; `make deb-test` has one",
    "journalctl": "wants journald; the fields: tests/fault/test_log.py",
    "apt": "`make deb-test`",
    "useradd": "`make deb-test`: the package's own user",
    "doveadm director": "wants the director of a Dovecot that had one",
}


def typed(page):
    """The lines that are typed, continued ones joined: not those of scripts, nor what comes out."""
    for kind, text in re.findall(r"^```(sh|console)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        if kind == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        elif not text.startswith("#!"):
            yield from lines


WALKED = [page for page in PAGES if page.name != "quick-start.md"]  # that one: `make quick-start-test`
CALLS = [pytest.param(line, id=f"{page.relative_to(TOP)}:{line.partition('#')[0].strip()}")
         for page in WALKED for line in typed(page) if line.startswith("imapmuxctl ")]


@pytest.mark.parametrize("page", WALKED, ids=lambda page: str(page.relative_to(TOP)))
def test_every_line_is_typed_somewhere(page):
    known = ("imapmuxctl ", "#", 'echo "ann:$(openssl', *ELSEWHERE)
    assert [line for line in typed(page) if line and not line.startswith(known)] == []


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


class Place:
    """The proxies, and a folder with what the lines name."""

    def __init__(self, all_of_it):
        self.campus, self.folder = all_of_it, all_of_it.folder / "typed"
        self.folder.mkdir()
        self.first, self.second = all_of_it.proxies
        (self.folder / "users.txt").write_text("bob\ncarl\n")
        (self.folder / "routes.csv").write_text("emma,blue\nfred,green,fred\n")
        (self.folder / "all.csv").write_text("".join(f"{user},blue\n" for user in USERS))
        script(self.folder / "copy-mail", f"exec {all_of_it.sync()}\n")
        self.tools = {}

    def tool(self, proxy):
        """A folder with an imapmuxctl that speaks with this proxy."""
        folder = self.folder / proxy.folder.name
        if not folder.exists():
            folder.mkdir()
            socket = proxy.folder / "admin.sock"
            script(folder / "imapmuxctl", f'exec {proxy.binary.with_name("imapmuxctl")} -s {socket} "$@"\n')
        return folder

    def start(self, line, proxy):
        line = line.replace("/usr/local/libexec/copy-mail", f"{self.folder}/copy-mail").replace(WAVE, self.wave())
        environment = {**proxy.environment(), "PATH": f"{self.tool(proxy)}:{os.environ['PATH']}"}
        return subprocess.Popen(["sh", "-c", line], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wave(self):
        """The one that was begun last."""
        waves = self.campus.rows(self.first, "waves")
        return waves[-1]["wave"] if waves else WAVE

    def prepare(self, line):
        """Users whom the line moves to the other store are at this one, and both are open."""
        for shard in campus.BOTH:
            self.campus.ctl(self.first, "shard", "up", shard)
        if "--to green" in line and "empty" not in line:
            ended = self.campus.ctl(self.first, "import", "--replace", f"{self.folder}/all.csv")
            assert ended.returncode == 0, ended


@pytest.fixture(scope="module")
def place():
    with campus.Campus(USERS, sentinels=False) as all_of_it:
        yield Place(all_of_it)


@contextlib.contextmanager
def own_proxy(place):
    """One more, which may be another process afterwards, or none."""
    way = f'address = "{servers.HOST}:{place.campus.redis.port}"'
    proxy = place.campus.start_proxy("own", way)
    yield proxy
    ended = place.campus.ctl(proxy, "drain", "0s")
    assert ended.returncode == 0 or proxy.process.poll() is not None, ended
    servers.wait_for(lambda: not servers.accepts(proxy.port), "the process to be gone")


def wait(process):
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, "Sanitizer" in errors) == (0, False), output + errors
    return output


@pytest.mark.parametrize("line", [call for call in CALLS if not call.values[0].startswith(LAST_WORDS)])
def test_it_does_what_the_page_says(place, line):
    place.prepare(line)
    with campus.session(place.first, "ann"):
        ends = [option for name, option in ENDLESS.items() if line.startswith(name)]
        wait(place.start(" ".join([line.partition("#")[0], *ends]), place.first))


def test_last_words(place):
    with own_proxy(place) as proxy:
        lines = [call.values[0] for call in CALLS if call.values[0].startswith(LAST_WORDS)]
        for line in sorted(lines, key=lambda line: "drain" in line):
            wait(place.start(line, proxy))


def test_a_line_for_the_password_file(tmp_path):
    for page in WALKED:
        for line in typed(page):
            if line.startswith('echo "ann:$(openssl'):
                line = line.replace("openssl passwd", "openssl passwd -stdin").replace("/etc/imapmux", str(tmp_path))
                ended = subprocess.run(["sh", "-c", line], input="secret\n", capture_output=True, text=True, check=True)
                made = ended.stdout or (tmp_path / "passwd").read_text()
                assert re.fullmatch(r"ann:\$6\$\S{90,}\n", made)
