"""Parts of a plan: the tasks of 10,000 images, a line of JSON each, compressed.

The same tasks give the same bytes. What is read is bounded.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator

from jobs.errors import InputError
from jobs.plan.gunzip import gunzip_lines
from jobs.plan.task_line import MAX_LINE_BYTES
from jobs.task import Task

PART_SIZE = 10_000
"""Tasks in one part of a plan: a few hundred kilobytes compressed."""

MAX_PART_BYTES = 64 * 2**20
"""One part of a plan, compressed."""

MAX_PART_TEXT_BYTES = 512 * 2**20
"""The lines of one part. Those of ordinary prompts are a few megabytes."""

_GZIP_LEVEL = 6

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def dump(tasks: Iterable[Task]) -> bytes:
    """The lines of a part."""
    return "".join(f"{_encode(task.to_json())}\n" for task in tasks).encode("ascii")


def pack(lines: bytes, number: int) -> bytes:
    """A part of these lines as it is stored. number: of the part, from 0.

    Raises `InputError` for prompts that are too long together.
    """
    data = gzip.compress(lines, _GZIP_LEVEL, mtime=0)
    if len(lines) > MAX_PART_TEXT_BYTES or len(data) > MAX_PART_BYTES:
        raise InputError(
            f"the prompts of {PART_SIZE:,} images in a row, from image {number * PART_SIZE:,} on, "
            f"are too long together: {len(lines):,} bytes, {len(data):,} compressed; at most "
            f"{MAX_PART_TEXT_BYTES:,} and {MAX_PART_BYTES:,} are allowed"
        )
    return data


def unpacked(data: bytes, most_lines: int) -> Iterator[bytes]:
    """The lines of a part. Raises `ValueError`."""
    return gunzip_lines(
        data, most_lines=most_lines, line_bytes=MAX_LINE_BYTES, total_bytes=MAX_PART_TEXT_BYTES
    )
