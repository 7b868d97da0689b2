"""Processes that encode images beside this one: the same files, and none lost whatever ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.output.encode import encode_image, encode_thumbnail
from worker.output.encoders import PROCESSES, EncoderProcesses, encoder
from worker.output.record import image_record

RECORD = image_record(a_task(), MODEL, RENDER)


@pytest.fixture
def processes() -> Iterator[EncoderProcesses]:
    processes = EncoderProcesses()
    yield processes
    processes.close()


def children(processes: EncoderProcesses) -> list[int]:
    assert processes._pool is not None
    return list(processes._pool._processes or {})


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_files_are_those_of_this_process(processes, format: str):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: processes.picture(pixels(), RECORD, format, 90), range(8)))
    assert set(found) == {encode_image(pixels(), RECORD, format, 90)}
    assert len(children(processes)) == PROCESSES


def test_what_does_not_fit_is_the_error_of_that_image(processes):
    long = RECORD | {"prompt": "long " * 20_000}
    with pytest.raises(ValueError, match="too long for a JPEG"):
        processes.picture(pixels(), long, "jpeg", 90)
    assert processes.picture(pixels(), RECORD, "png", 90)


def test_with_the_processes_killed_files_are_made_here(processes, caplog):
    wanted = processes.picture(pixels(), RECORD, "png", 90)
    for child in children(processes):
        os.kill(child, signal.SIGKILL)
    found = [processes.picture(pixels(), RECORD, "png", 90) for _ in range(3)]
    assert set(found) == {wanted}
    assert "in this process from now on" in caplog.text


def test_the_end_of_a_service_does_not_end_them(processes):
    wanted = processes.picture(pixels(), RECORD, "png", 90)
    before = children(processes)
    for child in before:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child, number)
    assert processes.picture(pixels(), RECORD, "png", 90) == wanted
    assert children(processes) == before


SCRIPT = """
import sys, time
from tests.worker.output.test_encoders import RECORD, children
from tests.worker.samples import pixels
from worker.output.encoders import EncoderProcesses

if __name__ == "__main__":
    processes = EncoderProcesses()
    processes.picture(pixels(), RECORD, "png", 90)
    print(*children(processes), flush=True)
    time.sleep(600)
"""


def test_they_end_with_a_process_that_is_killed(tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) >= 1
    parent.kill()
    parent.wait(60)
    until = time.monotonic() + 60
    while any(runs(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(runs(pid) for pid in pids)


def runs(pid: int) -> bool:
    """True for a process that is there and is not only waiting to be forgotten by its parent."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_on_a_cpu_the_threads_encode(processes):
    wanted = encode_image(pixels(), RECORD, "png", 90), encode_thumbnail(pixels())
    with encoder("cpu") as here:
        assert not isinstance(here, EncoderProcesses)
        assert (here.picture(pixels(), RECORD, "png", 90), here.thumbnail(pixels())) == wanted
    with encoder("cuda") as beside:
        assert isinstance(beside, EncoderProcesses)
        assert (beside.picture(pixels(), RECORD, "png", 90), beside.thumbnail(pixels())) == wanted
