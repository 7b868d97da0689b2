"""Lines of a text file, one at a time, each with its number.

Files are UTF-8, with or without a byte order mark, or UTF-16 with one, as spreadsheets write it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from jobs.formatting import reason
from jobs.limits import MAX_LINE_BYTES
from jobs.manifest.problems import ProblemList
from jobs.manifest.scalars import not_utf8

_TOO_LONG = f"the line is longer than {MAX_LINE_BYTES // 1024} KiB"

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: Path, file: str, problems: ProblemList) -> Iterator[tuple[int, str]]:
    """Line number, from 1, and text with its line end. file: the path as messages show it.

    Stops at what cannot be read, which is then a problem.
    """
    try:
        with path.open("rb") as stream:
            utf16 = stream.read(2) in _UTF16
        yield from (_utf16_lines if utf16 else _utf8_lines)(path, file, problems)
    except OSError as error:
        problems.add(file, 0, 0, "", f"cannot be read: {reason(error)}")


def _utf8_lines(path: Path, file: str, problems: ProblemList) -> Iterator[tuple[int, str]]:
    number = 0
    with path.open("rb") as stream:
        # Lines are read with a limit: a file without line ends would fill the memory.
        while data := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            if len(data) > MAX_LINE_BYTES:
                problems.add(file, number, 1, "", _TOO_LONG)
                return
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                column = len(data[: error.start].decode("utf-8")) + 1
                problems.add(file, number, column, "", not_utf8(error))
                return
            yield number, text


def _utf16_lines(path: Path, file: str, problems: ProblemList) -> Iterator[tuple[int, str]]:
    number = 1
    with path.open(encoding="utf-16", newline="") as stream:
        try:
            while text := stream.readline(MAX_LINE_BYTES + 1):
                if len(text) > MAX_LINE_BYTES:
                    problems.add(file, number, 1, "", _TOO_LONG)
                    return
                yield number, text
                number += 1
        except UnicodeDecodeError as error:
            problems.add(file, number, 1, "", f"is not UTF-16 as it begins: {error.reason}")
