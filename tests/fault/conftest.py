"""The stage of the fault tests; see stage.py."""
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import stage  # noqa: E402


@pytest.fixture(scope="session")
def folder():
    with stage.servers.Folder("imapmux-fault-") as path:
        yield path


@pytest.fixture(scope="session")
def certificate(folder):
    return stage.servers.make_certificate(folder)


@pytest.fixture(scope="module")
def start(folder, certificate, request):
    """Starts proxies; each is stopped, in order, at the end of the module: `start(shards, kind=Proxy, **options)`."""
    running = []

    def start_one(shards, kind=stage.Proxy, **options):
        name = f"{request.module.__name__}-{len(running)}"
        running.append(kind(folder / name, shards=shards, certificate=certificate, **options))
        return running[-1]
    yield start_one
    for proxy in running:
        proxy.stop()
