"""Prompts from .txt, .csv and .jsonl files, one row at a time, each with its place.

    .txt    one prompt a line; blank lines are skipped. A line that begins with an option, such as
            `--prompt`, is read as the web UI does (`jobs.manifest.webui`), and where there is one,
            lines that begin with # are comments
    .csv    a header of keys, then one prompt a row; an empty cell sets nothing
            (`jobs.manifest.csv_rows`)
    .jsonl  one object of a prompt's keys a line; null sets nothing, blank lines are skipped

`jobs.manifest.lines` reads the lines, and says in which encodings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs.formatting import quote
from jobs.manifest.csv_rows import EXACT, WHOLE_KEYS, CsvReader, CsvRow
from jobs.manifest.labels import from_columns
from jobs.manifest.lines import read_lines
from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import ProblemList
from jobs.manifest.scalars import unreadable
from jobs.manifest.webui import is_option_line, read_options

SUFFIXES = (".txt", ".csv", ".jsonl")

Row = tuple["LinePlace | CsvRow", dict[str, Any]]
"""A row's place and the keys it sets, as they are written: types are not checked."""


class LinePlace:
    """A line of a file. columns: where in it the value of each key is; others are at its start."""

    path = ""

    def __init__(self, file: str, line: int, columns: Mapping[str, int]) -> None:
        self.file = file
        self._line = line
        self._columns = columns

    def position(self, path: ValuePath, *, of_key: bool = False) -> tuple[int, int]:
        return self._line, self._columns.get(str(path[0]), 1) if path else 1


class ObjectPlace(LinePlace):
    """A line that is a JSON object."""

    def __init__(self, file: str, line: int, text: str) -> None:
        super().__init__(file, line, {})
        self._text = text

    def position(self, path: ValuePath, *, of_key: bool = False) -> tuple[int, int]:
        if not path or not isinstance(path[0], str):
            return self._line, 1
        for key in (".".join(map(str, path[:2])), path[0]):  # meta.name is a key, too
            at = self._text.find(json.dumps(key, ensure_ascii=False))
            if at >= 0:
                return self._line, at + 1
        return self._line, 1


class RowReader:
    """The rows of one file. Problems of the file itself go to `problems`."""

    def __init__(self, path: Path, file: str, problems: ProblemList) -> None:
        """file: the path as messages show it; its suffix is one of `SUFFIXES`."""
        self._path = path
        self._file = file
        self._problems = problems

    def rows(self) -> Iterator[Row]:
        read = {".txt": self._txt, ".csv": self._csv, ".jsonl": self._jsonl}
        yield from read[self._path.suffix.lower()]()

    def _txt(self) -> Iterator[Row]:
        unheard = ProblemList()  # what cannot be read is told the second time
        lines = read_lines(self._path, self._file, unheard)
        of_webui = any(is_option_line(text) for _, text in lines)
        for line, text in read_lines(self._path, self._file, self._problems):
            prompt = text.strip()
            if not prompt or (of_webui and prompt.startswith("#")):
                continue
            if not is_option_line(text):
                yield LinePlace(self._file, line, {}), {"prompt": prompt}
                continue
            options = read_options(text)
            for column, message in options.problems:
                self._problem(line, column, message)
            if not options.problems:
                yield LinePlace(self._file, line, options.columns), options.values

    def _csv(self) -> Iterator[Row]:
        lines = read_lines(self._path, self._file, self._problems)
        yield from CsvReader(lines, self._file, self._problems).rows()

    def _jsonl(self) -> Iterator[Row]:
        for line, text in read_lines(self._path, self._file, self._problems):
            if not text.strip():
                continue
            flaws: list[str] = []

            def unique(pairs: list[tuple[str, Any]], flaws: list[str] = flaws) -> dict[str, Any]:
                values = dict(pairs)
                if len(values) < len(pairs):
                    keys = [key for key, _ in pairs]
                    twice = next(key for key in keys if keys.count(key) > 1)
                    flaws.append(f"key {quote(twice)} is there twice")
                bad = unreadable("".join(values))
                if bad is not None:
                    flaws.append(f"a key has character {bad}, which is not allowed")
                return values

            try:
                row = json.loads(text, object_pairs_hook=unique)
            except json.JSONDecodeError as error:
                self._problem(line, error.colno, f"is not JSON: {error.msg.lower()}")
                continue
            except (ValueError, RecursionError) as error:
                # Integers of thousands of digits, and thousands of brackets.
                self._problem(line, 1, f"is not JSON that can be read: {error}")
                continue
            if not isinstance(row, dict):
                self._problem(line, 1, 'expected a JSON object, such as {"prompt": "a ring"}')
            elif flaws:
                self._problem(line, 1, flaws[0])
            else:
                values = {key: _plain(key, value) for key, value in row.items()}
                place = ObjectPlace(self._file, line, text)
                given = {key: value for key, value in values.items() if value is not None}
                yield place, from_columns(given)

    def _problem(self, line: int, column: int, message: str) -> None:
        self._problems.add(self._file, line, column, "", message)


def _plain(key: str, value: Any) -> Any:
    """A value of a JSON object: pandas writes whole numbers as 1.0 where a row has none."""
    if key in WHOLE_KEYS and type(value) is float and value.is_integer() and value <= EXACT:
        return int(value)
    return value
