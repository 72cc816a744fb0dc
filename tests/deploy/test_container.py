"""The Containerfile can be read, runs without a shell, and names what the package needs. in_container.py builds it."""
import re

import containerfile
import servers

TOP = servers.REPOSITORY
BUILD, FINAL = containerfile.stages((TOP / "deploy/container/Containerfile").read_text())


def only(stage, name):
    (arguments,) = [arguments for kind, arguments in stage if kind == name]
    return arguments


def test_it_has_what_the_package_is_built_with():
    control = (TOP / "deploy/debian/control").read_text()
    needed = re.search(r"^Build-Depends: (.*?)^\S", control, re.MULTILINE | re.DOTALL).group(1)
    needed = {re.sub(r"-compat.*", "", name.strip()) for name in needed.split(",")}
    installed = set(BUILD[1][1].split())
    assert len(needed) > 10 and needed <= installed


def test_it_runs_without_a_shell_and_without_root():
    assert containerfile.words(only(FINAL, "ENTRYPOINT")) + containerfile.words(only(FINAL, "CMD")) == \
        ["/usr/sbin/imapmux", "-c", "/etc/imapmux/proxy.conf"]
    options, _, check = only(FINAL, "HEALTHCHECK").partition("CMD ")
    assert containerfile.words(check) == ["/usr/bin/imapmuxctl", "status"] and "--interval" in options
    user = only(FINAL, "USER")
    assert re.fullmatch(r"(\d+):\1", user) and f"--uid {user.partition(':')[0]} " in FINAL[1][1]
    assert [kind for kind, _ in FINAL].index("USER") > max(number for number, (kind, _) in enumerate(FINAL)
                                                           if kind in ("RUN", "COPY"))
