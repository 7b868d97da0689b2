"""Files that images bring along: by whom they are read, and until when."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from sd_core.engine.held_files import HeldFiles
from sd_core.engine.request import EngineClosedError


@dataclass(frozen=True)
class File:
    file: Path
    sha256: str


class Content:
    """Thread that read a file, and its niceness."""

    nbytes = 1

    def __init__(self, file: File) -> None:
        self.thread = threading.get_ident()
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def files(tmp_path) -> list[File]:
    made = [File(tmp_path / name, name) for name in ("one", "other")]
    for one in made:
        one.file.write_bytes(b"0")
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_reading_gives_way_and_nothing_else_does(files):
    held = HeldFiles(10, Content)
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    one, other = held.hold(files)
    assert one.thread == other.thread != threading.get_ident()
    assert before < one.niceness == other.niceness
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    held.close()


def test_once_closed_nothing_is_read_and_what_is_there_is_held(files):
    read: list[File] = []

    def content(file: File) -> Content:
        read.append(file)
        return Content(file)

    held = HeldFiles(10, content)
    first = held.hold(files[:1])
    held.close()
    with pytest.raises(EngineClosedError):
        held.hold(files[1:])
    assert held.hold(files[:1]) == first
    assert read == files[:1]


def test_a_file_that_cannot_be_read_says_so_to_the_one_who_asked(files):
    def content(file: File) -> Content:
        if file.sha256 == "one":
            raise MemoryError("too large")
        return Content(file)

    held = HeldFiles(10, content)
    with pytest.raises(MemoryError, match="too large"):
        held.hold(files)
    assert held.nbytes == 0
    assert len(held.hold(files[1:])) == 1
    held.close()
