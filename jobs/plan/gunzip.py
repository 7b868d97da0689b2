"""Lines out of gzip, a few megabytes of which may stand for as many gigabytes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator


def gunzip_lines(
    data: bytes, *, most_lines: int, line_bytes: int, total_bytes: int
) -> Iterator[bytes]:
    """The lines of a compressed file, one at a time, with the newlines at their ends.

    most_lines, line_bytes, total_bytes: allowed in the file, in a line, in all lines together.
    Raises `ValueError` where the data ends too early or is no gzip, or as soon as a limit is
    passed; no more is unpacked by then, and one line is in memory.
    """
    file = io.BufferedReader(gzip.GzipFile(fileobj=io.BytesIO(data)))
    lines = unpacked = 0
    while line := _next(file, line_bytes):
        lines += 1
        unpacked += len(line)
        if lines > most_lines:
            raise ValueError(f"it has more than {most_lines:,} lines")
        if len(line) > line_bytes:
            raise ValueError(f"line {lines} is longer than {line_bytes:,} bytes")
        if unpacked > total_bytes:
            raise ValueError(f"it unpacks to more than {total_bytes:,} bytes")
        yield line


def _next(file: io.BufferedReader[gzip.GzipFile], line_bytes: int) -> bytes:
    """The next line, or so much of it that it is too long; empty at the end."""
    try:
        return file.readline(line_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
