"""
The pages in Markdown: what they name exists, their links lead somewhere, and what they show to be typed or written is
taken by the programs.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import servers  # noqa: E402
from authority import Authority  # noqa: E402

TOP = pathlib.Path(__file__).resolve().parent.parent
IMAPMUX = TOP / os.environ.get("IMAPMUX", "build/imapmux")
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").glob("*.md")), *sorted((TOP / "deploy").rglob("*.md"))]
SECTIONS = dict(re.findall(r"SECTION\((\w+), (?:ONE|MANY), (SETTINGS_\w+)", (TOP / "proxy/base/settings.def").read_text()))


def blocks(page, language):
    """The fenced blocks of this language, each as (line number, text)."""
    text = page.read_text()
    return [(text[:found.start()].count("\n") + 1, found.group(1))
            for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def each_block(language):
    return [pytest.param(text, id=f"{page.relative_to(TOP)}:{line}") for page in PAGES for line, text in blocks(page, language)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_blocks_say_what_they_are(page):
    fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"c", "conf", "console", "ini", "json", "sh", "text", "yaml"} and set(fences[1::2]) <= {""}


def settings():
    text, found = (TOP / "proxy/base/settings.def").read_text(), set()
    for section, macro in SECTIONS.items():
        rows = re.search(rf"#define {macro}\(X\)(.*?)\n\n", text, re.DOTALL).group(1)
        for kind, name in re.findall(r"X\((\w+), (\w+),", rows):
            found |= {f"{section}.{name}"} | ({f"{section}.{name}_file"} if kind == "SECRET" else set())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_settings_that_are_named_exist(page):
    known, named = settings(), re.findall(r"`(\w+\.\w+)[`\s=]", page.read_text())
    assert [name for name in named if name.split(".")[0] in SECTIONS and name not in known
            and not name.endswith((".c", ".h", ".def", ".conf"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_metrics_that_are_named_exist(page):
    known = re.findall(r'"(imapmux_\w+)', "".join(path.read_text() for path in (TOP / "proxy").rglob("*.[cd]*")))
    named = re.findall(r"\b(imapmux_[a-z_]+[a-z])\b", page.read_text())
    assert [name for name in named if re.sub("_(bucket|sum|count)$", "", name) not in known] == []


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


# What a snippet may leave out, and what it may bring along.
AROUND = {"oauth": 'oauth { keys = "https://sso.example.org/keys" issuer = "https://sso.example.org" audience = { "imap" } }\n',
          "listener": 'listener around { address = "127.0.0.1:1143" tls = none plaintext_login = yes }\n',
          "certificate": 'certificate around { chain = "CHAIN" key = "KEY" }\n',
          "shard": "".join(f'shard "{name}" {{ address = "{name}.example.org:143" tls = none }}\n'
                           for name in ("blue", "green")),
          "route": "route { sources = { default } default_shard = blue }\n",
          "auth": "auth { sources = { passwd } }\n",
          "passwd": 'passwd { file = "FOLDER/passwd" }\n'}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder in the place of those that snippets name files in."""
    folder = tmp_path_factory.mktemp("snippets")
    chain, key = servers.make_certificate(folder)
    (folder / "passwd").write_text("ann:$6$salt$" + "x" * 86 + "\n")
    (folder / "secret").write_text("secret\n")
    return {"CHAIN": str(chain), "KEY": str(key), "CRL": str(Authority(folder / "ca", "Campus").crl()), "FOLDER": str(folder)}


def in_folder(text, files):
    """The snippet with the files of this folder in the place of those that it names."""
    kinds = [(r'chain|client_certificate|\w*ca_file|ocsp_file', files["CHAIN"]), (r"key|client_key", files["KEY"]),
             (r"\w*_crl_file", files["CRL"]), (r"\w*password_file", files["FOLDER"] + "/secret")]
    for names, path in kinds:
        text = re.sub(rf'\b({names}) = "/[^"]*"', rf'\1 = "{path}"', text)
    text = text.replace('group = "mailadmin"', 'group = "mail"').replace('user = "imapmux"', 'user = "nobody"')
    return re.sub(r'"/(?:etc/imapmux|var/lib|run)/(?:[^"]*/)?([^"/]+)"', rf'"{files["FOLDER"]}/\1"', text)


def sections_in_comments():
    """Those of proxy.conf, which show how to go on."""
    for section in re.findall(r"^#(?=\w+ .*\{$)(.*?^#\}\n)", (TOP / "proxy.conf").read_text(), re.MULTILINE | re.DOTALL):
        text = re.sub("^#", "", section, flags=re.MULTILINE)
        yield pytest.param(text, id="proxy.conf:" + text.partition(" {")[0])


@pytest.mark.parametrize("text", [*each_block("conf"), *sections_in_comments()])
def test_configurations_are_good(text, files, tmp_path):
    there = set(re.findall(r"^\s*(\w+)(?: \"?[\w-]+\"?)? \{", text, re.MULTILINE))
    whole = in_folder(text, files) + "".join(part for name, part in AROUND.items() if name not in there)
    first = re.search(r'^shard "?([\w-]+)', whole, re.MULTILINE).group(1)
    for name, value in {**files, "default_shard = blue }": f"default_shard = {first} }}"}.items():
        whole = whole.replace(name, value)
    path = tmp_path / "proxy.conf"
    path.write_text(whole)
    checked = subprocess.run([IMAPMUX, "-t", "-c", path], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr + whole


def commands_in(text):
    """The lines of a shell that call imapmuxctl, continued ones joined, prompts and comments taken away."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [words for line in joined.splitlines() if (words := shlex.split(line.removeprefix("$ "), comments=True))
            and pathlib.Path(words[0]).name == "imapmuxctl"] if "imapmuxctl" in text else []


def in_sentences():
    """Commands within the text that are more than a name, if the sentence leaves nothing out."""
    names = re.findall(r'^    X\(\w+, "([^"]+)"', (TOP / "proxy/ctl/commands.def").read_text(), re.MULTILINE)
    names = {name[:end] for name in names for end in [*(blank.start() for blank in re.finditer(" ", name)), None]}
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        calls = [" ".join(call.split()) for call in re.findall(r"`imapmuxctl ([^`]+)`", text)]
        lines = [f"imapmuxctl {call.replace('COMMAND', 'status')}\n" for call in calls
                 if call not in names and "..." not in call]
        yield pytest.param("".join(lines), id=f"{page.relative_to(TOP)}:text")


@pytest.mark.parametrize("text", [block for block in each_block("sh") + each_block("console") + list(in_sentences())
                                  if commands_in(block.values[0])])
def test_commands_are_well_formed(text, tmp_path):
    """Nobody listens, so each of them fails for that reason, and not for its words (2)."""
    for words in commands_in(text):
        asked = subprocess.run([IMAPMUX.with_name("imapmuxctl"), "-s", tmp_path / "none", *words[1:]],
                               capture_output=True, text=True, timeout=30, cwd=tmp_path, stdin=subprocess.DEVNULL)
        assert asked.returncode in (0, 1, 3), (words, asked.stderr)
        assert asked.returncode != 1 or "No such file" in asked.stderr, (words, asked.stderr)
