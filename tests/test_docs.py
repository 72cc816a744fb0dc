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


BAD_FILES = {"passwd": ("passwd", "ann:$6$salt$" + "x" * 86 + "\nbob\n", "passwd:2: expected name:hash"),
             "routes": ("routes", "# all\n* nowhere\n", 'routes:2: there is no shard "nowhere"'),
             "keys": ("keys.json", "{}", "proxy.conf:7: "),
             "filter": ("filter", "(uid=", 'proxy.conf:6: ldap.filter: found "(uid=", expected a search filter')}


@pytest.mark.parametrize("name", [None, *BAD_FILES])
def test_files_that_are_named_are_looked_at(name, tmp_path):
    """What is told to be good can start: nothing that a start reads is left out."""
    good = {"passwd": "ann:$6$salt$" + "x" * 86 + "\n", "routes": "* blue\n", "filter": "(uid=%{user})",
            "keys.json": '{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'}
    file, text, complaint = BAD_FILES.get(name, ("passwd", good["passwd"], ""))
    files = {**good, file: text}
    for path, content in files.items():
        (tmp_path / path).write_text(content)
    conf = tmp_path / "proxy.conf"
    conf.write_text("listener l { address = 127.0.0.1:1143 tls = none plaintext_login = yes }\n"
                    "shard blue { address = 127.0.0.1:143 tls = none }\n"
                    "auth { sources = { passwd, ldap } }\n"
                    "passwd { file = passwd }\n"
                    "route { sources = { file } file = routes }\n"
                    f'ldap {{ uri = {{ "ldap://127.0.0.1" }} base = "dc=example" filter = "{files["filter"]}" }}\n'
                    f'oauth {{ keys = "{tmp_path}/keys.json" issuer = "https://i.example" audience = {{ imap }} }}\n')
    checked = imapmux("-t", "-c", conf)
    if name is None:
        assert (checked.returncode, checked.stderr) == (0, "")
    else:
        assert checked.returncode == 1 and checked.stderr.startswith(f"imapmux: {tmp_path}/{complaint}"), checked.stderr


@pytest.mark.parametrize("words,status", [(["--help"], 0), (["--version"], 0), (["--print-defaults"], 0),
                                          (["--nonsense"], 2), (["surplus"], 2), (["-c", "/nonexistent"], 1)])
def test_command_line(words, status):
    assert imapmux(*words).returncode == status


def test_metrics_are_explained():
    names = re.findall(r'"(imapmux_\w+)', (TOP / "proxy/base/metrics.def").read_text())
    page = (TOP / "docs/operations.md").read_text()
    assert len(names) > 30 and [name for name in names if f"| `{name}`" not in page] == []


# What logs, and which of its arguments is the event.
LOGGERS = {"log_event": 1, "log_event_limited": 1, "log_begin": 2, "entry_log": 2, "log_peer": 1}
PASS_ON = {"proxy/base/log.c", "proxy/session/entry.c", "proxy/admin/admin.c"}  # where such functions are, for any event


def calls(text, name):
    """The arguments of each call of this function, as texts."""
    for call in re.finditer(rf"^ .*?\b{name}\(", text, re.MULTILINE):
        depth, arguments = 0, [""]
        for token in re.findall(r'"(?:[^"\\]|\\.)*"|.', text[call.end():], re.DOTALL):
            if token == ")" and depth == 0:
                break
            depth += (token in "([{") - (token in ")]}")
            if token == "," and depth == 0:
                arguments.append("")
            else:
                arguments[-1] += token
        yield arguments


def sources():
    for folder in "proxy", "auth", "routing":
        for path in sorted((TOP / folder).rglob("*.c")):
            yield str(path.relative_to(TOP)), path.read_text()


def log_table():
    """The rows of the table of events: names, levels, fields."""
    page = (TOP / "docs/operations.md").read_text()
    table = re.search(r"^\| Event \| Level \| Fields .*?(?=\n\n)", page, re.MULTILINE | re.DOTALL).group()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_events_of_the_log_are_explained():
    logged, told = set(), [name for row in log_table() for name in re.findall(r"`([^`]+)`", row[0])]
    for path, text in sources():
        for name, place in LOGGERS.items():
            for arguments in calls(text, name):
                events = re.findall(r'"([^"]+)"', arguments[place])
                assert events or path in PASS_ON, f"{path}: {name}({', '.join(arguments)}): the event is not seen here"
                logged.update(events)
    assert len(logged) > 50 and sorted(set(told)) == sorted(logged)


def test_fields_of_the_log_are_explained():
    told = set(re.findall(r"\w+", " ".join(row[2] for row in log_table())))
    calls_of_all = [arguments for _, text in sources() for name in ("log_text", "log_span", "log_number", "log_address")
                    for arguments in calls(text, name)]
    keys = {arguments[1].strip('" \n') for arguments in calls_of_all if '"' in "".join(arguments[1:2])}
    assert len(keys) > 20 and keys - told - {"time", "level", "event"} == set()


def test_ends_of_sessions_are_explained():
    page = " ".join((TOP / "docs/operations.md").read_text().split())
    told = re.search(r"- `why` is one of: (.*?), or what OpenSSL", page).group(1).split(", ")
    ends = r'(?:\b(?:phase_gone|phase_linger|end_relay|say_last|cut_off)\([\w>-]+, |\[RELAY_\w+\] = )"([^"]+)"'
    used = {end for _, text in sources() for end in re.findall(ends, text)}
    assert len(used) > 15 and used - set(told) == set()


def test_reasons_of_refusals_are_explained():
    page = " ".join((TOP / "docs/operations.md").read_text().split())
    told = re.search(r"- `reason` is a word of \[err.def\]\(.*?\): (.*?)\.", page).group(1).split(", ")
    used = re.findall(r'^X\(\w+, "(\w+)"', (TOP / "proxy/base/err.def").read_text(), re.MULTILINE)
    assert len(used) > 10 and sorted(told) == sorted(used)


def test_a_user_of_redis_may_do_all_that_is_asked_of_it():
    page = (TOP / "docs/operations.md").read_text()
    rights = set(re.findall(r" \+(\w+)", re.search(r"^ +ACL SETUSER .*$", page, re.MULTILINE).group()))
    sources = [path.read_text() for folder in ("proxy", "auth", "routing") for path in (TOP / folder).rglob("*.c")]
    used = {word.lower() for text in sources for word in re.findall(r"redis\.p?call\('(\w+)'", text)}
    used |= {word.lower() for text in sources if '/redis_link.h"' in text
             for word in re.findall(r'\{"([A-Z]+)"[,}]', text)}
    assert len(used) > 15 and used - rights == set()


def print_man(template):
    return subprocess.run([IMAPMUX.with_name("imapmuxctl"), "--print-man"], input=template, capture_output=True, text=True,
                          timeout=30)


def test_manual_of_the_tool_is_what_the_program_prints():
    template = (TOP / "docs/imapmuxctl.1.in").read_text()
    printed = print_man(template)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert (TOP / "docs/imapmuxctl.1").read_text() == printed.stdout, \
        "run: build/imapmuxctl --print-man <docs/imapmuxctl.1.in >docs/imapmuxctl.1"
    commands = re.findall(r"^@command (.*)$", template, re.MULTILINE)
    assert len(commands) > 40 and commands == sorted(commands)


@pytest.mark.parametrize("old, new, reason", [("@command who\n", "", '"who" is left out'),
                                              ("@command who\n", "@command when\n", '"@command when" is no command'),
                                              ("@command who\n", "@command who\n@command who\n", "or there twice")])
def test_a_template_that_does_not_fit(old, new, reason):
    printed = print_man((TOP / "docs/imapmuxctl.1.in").read_text().replace(old, new))
    assert printed.returncode == 1 and reason in printed.stderr


@pytest.mark.parametrize("page", ["imapmux.8", "imapmuxctl.1", "proxy.conf.5"])
def test_man_pages(page):
    assert shutil.which("mandoc"), "make deps installs it"
    checked = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", TOP / "docs" / page], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
