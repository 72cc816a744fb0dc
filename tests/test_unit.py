"""Runs the cmocka tests: all of them under ASan and UBSan, the threaded ones under TSan too."""
import pathlib
import re
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (TOP / "tests/unit").glob("test_*.c"))
THREADED = re.search(r"^THREADED_TESTS := (.+)$", (TOP / "Makefile").read_text(), re.MULTILINE).group(1).split()


def run(binary):
    command = ["timeout", "--signal=ABRT", "100", TOP / binary]  # ABRT: the sanitizers show where it hangs
    result = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout.decode(errors="replace")[-8000:]


@pytest.mark.parametrize("name", NAMES)
def test_under_asan(name):
    run(f"build-asan/tests/unit/{name}")


@pytest.mark.parametrize("name", THREADED)
def test_under_tsan(name):
    run(f"build-tsan/tests/unit/{name}")
