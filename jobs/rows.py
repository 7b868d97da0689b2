"""Prompts from .txt, .csv and .jsonl files, one row at a time, each with its place.

    .txt    one prompt a line; blank lines are skipped, everything else is a prompt
    .csv    a header of keys, then one prompt a row; an empty cell sets nothing
    .jsonl  one object of a prompt's keys a line; blank lines are skipped

Files are UTF-8, with or without a byte order mark. A cell of a .csv file is read as a plain YAML
scalar is; several seeds in one cell are separated by spaces.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.limits import MAX_LINE_BYTES
from jobs.problems import Path as ValuePath
from jobs.problems import ProblemList, one_of, quote, suggest
from jobs.schema import PROMPT_KEYS, TEXT_KEYS
from jobs.sources import reason
from jobs.text import not_utf8, scalar

SUFFIXES = (".txt", ".csv", ".jsonl")

_BOM = b"\xef\xbb\xbf"


class RowPlace:
    """A row of a file."""

    path = ""

    def __init__(self, file: str, line: int, text: str, columns: dict[str, int] | None) -> None:
        """line: the row's first; text: the row as written; columns: of a .csv, key -> cell."""
        self.file = file
        self._line = line
        self._text = text
        self._columns = columns

    def position(self, path: ValuePath, *, of_key: bool = False) -> tuple[int, int]:
        if not path or not isinstance(path[0], str):
            return self._line, 1
        if self._columns is None:
            return self._line, self._text.find(json.dumps(path[0], ensure_ascii=False)) + 1 or 1
        return _cell_position(self._text, self._columns.get(path[0], 0), self._line)


class RowReader:
    """The rows of one file. Problems of the file itself go to `problems`."""

    def __init__(self, path: Path, file: str, problems: ProblemList) -> None:
        """file: the path as messages show it; its suffix is one of `SUFFIXES`."""
        self._path = path
        self._file = file
        self._problems = problems

    def rows(self) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
        """Each row's place and the keys it sets, as they are written: types are not checked."""
        read = {".txt": self._txt, ".csv": self._csv, ".jsonl": self._jsonl}
        yield from read[self._path.suffix.lower()]()

    def _txt(self) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
        for line, text in self._lines():
            prompt = text.strip()
            if prompt:
                yield RowPlace(self._file, line, text, None), {"prompt": prompt}

    def _jsonl(self) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
        for line, text in self._lines():
            if not text.strip():
                continue
            repeated: list[str] = []

            def unique(
                pairs: list[tuple[str, Any]], repeated: list[str] = repeated
            ) -> dict[str, Any]:
                values = dict(pairs)
                if len(values) < len(pairs):
                    keys = [key for key, _ in pairs]
                    repeated += {key for key in keys if keys.count(key) > 1}
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
            elif repeated:
                self._problem(line, 1, f"key {quote(repeated[0])} is there twice")
            else:
                yield RowPlace(self._file, line, text, None), row

    def _csv(self) -> Iterator[tuple[RowPlace, dict[str, Any]]]:
        record: list[str] = []  # lines of the row being read
        line = 0

        def lines() -> Iterator[str]:
            nonlocal line
            for number, text in self._lines():
                line = number
                record.append(text)
                yield text

        reader = csv.reader(lines(), strict=True)
        header: list[str] | None = None
        columns: dict[str, int] = {}
        while True:
            record.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                self._problem(max(line - len(record) + 1, 1), 1, f"is not CSV: {error}")
                return
            if cells is None:
                break
            first_line = line - len(record) + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                columns = {key: number for number, key in enumerate(header)}
                if not self._check_header(header, first_line, record[0]):
                    return
                continue
            place = RowPlace(self._file, first_line, "".join(record), columns)
            if len(cells) != len(header):
                message = f"the row has {len(cells)} cells, the header {len(header)}"
                self._problem(first_line, 1, f"{message}; a text with commas needs quotes")
                continue
            pairs = zip(header, cells, strict=True)
            yield place, {key: _cell(key, cell) for key, cell in pairs if cell.strip()}

    def _check_header(self, header: list[str], line: int, text: str) -> bool:
        """Whether the columns are keys of a prompt, each once."""
        before = len(self._problems)
        for number, key in enumerate(header):
            message = None
            if key not in PROMPT_KEYS:
                close = suggest(key, PROMPT_KEYS)
                hint = f"did you mean '{close}'?" if close else f"expected {one_of(PROMPT_KEYS)}"
                message = f"unknown column {quote(key)}; {hint}"
                if len(header) == 1 and (";" in key or "\t" in key):
                    message = "columns are separated by commas here, not semicolons or tabs"
            elif key in header[:number]:
                message = f"column {quote(key)} is there twice"
            if message is not None:
                self._problem(*_cell_position(text, number, line), message)
        if "prompt" not in header and len(self._problems) == before:
            self._problem(line, 1, "there is no column 'prompt'")
        return len(self._problems) == before

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Line number and text, with its line end. Stops at a line that cannot be read."""
        number = 0
        try:
            with self._path.open("rb") as file:
                # Lines are read with a limit: a file without line ends would fill the memory.
                while data := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if number == 1:
                        data = data.removeprefix(_BOM)
                    if len(data) > MAX_LINE_BYTES:
                        limit = f"{MAX_LINE_BYTES // 1024} KiB"
                        self._problem(number, 1, f"the line is longer than {limit}")
                        return
                    try:
                        text = data.decode("utf-8")
                    except UnicodeDecodeError as error:
                        column = len(data[: error.start].decode("utf-8")) + 1
                        self._problem(number, column, not_utf8(error))
                        return
                    yield number, text
        except OSError as error:
            self._problem(0, 0, f"cannot be read: {reason(error)}")

    def _problem(self, line: int, column: int, message: str) -> None:
        self._problems.add(self._file, line, column, "", message)


def _cell(key: str, cell: str) -> Any:
    """A cell's value: texts as they are, other keys as a plain YAML scalar, seeds as a list."""
    if key in TEXT_KEYS:
        return cell
    text = cell.strip()
    if key == "seeds" and " " in text:
        return [scalar(part) for part in text.split()]
    return scalar(text)


def _cell_position(text: str, cell: int, line: int) -> tuple[int, int]:
    """Line and column where a cell of a .csv row starts."""
    column, quoted = 1, False
    for character in text:
        if cell == 0:
            break
        column += 1
        if character == '"':
            quoted = not quoted
        elif character == "\n":
            line, column = line + 1, 1
        elif character == "," and not quoted:
            cell -= 1
    return line, column
