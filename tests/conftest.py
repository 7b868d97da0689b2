"""What tests of several packages need."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from tests.servers import Valkey
from tests.servers_s3 import aws, s3_address, s3_server  # noqa: F401 - fixtures

_load_file = JSONFileLoader.load_file

# Tests run side by side, one a core; more threads each would only wait for one another. Set before
# torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it runs in the background with SIGINT ignored, and nohup does so with SIGHUP;
# tests are about what a terminal starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Where no cluster is. Else one that the developer runs would take the tests' jobs.
os.environ["SDBATCH_LOCAL"] = f"{tempfile.gettempdir()}/sdbatch-no-cluster-{os.getpid()}"

# Where nothing is remembered of other tests' models, and nothing is left in the developer's.
os.environ["SDBATCH_CACHE"] = f"{tempfile.gettempdir()}/sdbatch-cache-{os.getpid()}"


# Each session of boto3 parses its descriptions of S3 and of all regions anew, a tenth of a second;
# tests open hundreds.
JSONFileLoader.load_file = lambda _, path: _described(path)  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from looking again and again through what lives to the end."""
    gc.collect()
    gc.freeze()


@functools.cache
def _described(path: str) -> Any:
    return _load_file(JSONFileLoader(), path)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_left() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["SDBATCH_CACHE"], ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A real Valkey server, one for each process that runs tests; `FLUSHALL` it before use."""
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()
