"""Whatever is in a file, an object or a message: an error of ours, in bounded time and memory.

    python -m pytest -m slow tests/fuzz      200,000 cases
    python -m pytest tests/fuzz              a few of each kind

A failure is shown made small, and its bytes can be given to `tests.fuzz.targets` again.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS

MOST_S = 10
MOST_BYTES = 500_000_000
"""That a case may take beyond what was there and the length of its input."""

MANY = -(-200_000 // len(TARGETS))


class TooLongError(Exception):
    """A case took longer than any may."""


@contextlib.contextmanager
def bounded(input_bytes: int) -> Iterator[None]:
    """Time and memory end here, as they would on somebody's machine."""

    def ring(*_: object) -> None:
        raise TooLongError(f"longer than {MOST_S} s")

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES + input_bytes, hard))
    signal.setitimer(signal.ITIMER_REAL, MOST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.signal(signal.SIGALRM, handler)


def fuzz(name: str, folder: Path, cases: int) -> None:
    target, own = TARGETS[name], folder / "own"

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.cases)
    def case(data: bytes) -> None:
        own.mkdir()
        try:
            with bounded(len(data)), warnings.catch_warnings(), contextlib.suppress(*target.errors):
                warnings.simplefilter("ignore")
                target.read(data, own)
        finally:
            shutil.rmtree(own)

    case()


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_cases(name, tmp_path):
    fuzz(name, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_cases(name, tmp_path):
    fuzz(name, tmp_path, MANY)
