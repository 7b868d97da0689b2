"""Rows of a .csv file, as programs and spreadsheets write them.

Commas, semicolons or tabs separate the columns: those that the header has, or a first line `sep=;`
names. A cell is read as a plain YAML scalar is; several seeds in one cell are separated by spaces.
Where pandas and spreadsheets write a whole number as 1.0, or 7.5 as 7,5 between semicolons, that is
read as it is meant; a number that has lost digits is a problem.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.formatting import counted, one_of, quote
from jobs.image_settings import SETTINGS, TYPES
from jobs.manifest.labels import PREFIX, from_columns
from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import ProblemList
from jobs.manifest.scalars import scalar
from jobs.manifest.schema import PROMPT_KEYS, TEXT_KEYS
from jobs.manifest.validation import known_key

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}

_STATED = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)  # what Excel writes and reads

_LISTS = ("loras", "embeddings")

WHOLE_KEYS = ("seed", "seeds", *(name for name in SETTINGS if TYPES[name] is int))
"""Keys of whole numbers."""

_WHOLE = re.compile(r"([0-9]+)\.00?")  # not 1.000, which may be a thousand
_DECIMAL_COMMA = re.compile(r"([-+]?[0-9]+),([0-9]+)")
_SHORTENED = re.compile(r"[0-9]([.,][0-9]+)?[eE]\+?[0-9]+")

EXACT = 2**53
"""Whole numbers up to here are exact in floating point."""


class CsvRow:
    """A row of a .csv file: the place of its cells."""

    path = ""

    def __init__(
        self, file: str, line: int, text: str, columns: Mapping[str, int], delimiter: str
    ) -> None:
        """line: the row's first; text: the row as written; columns: key -> number of the cell."""
        self.file = file
        self._line = line
        self._text = text
        self._columns = columns
        self._delimiter = delimiter

    def position(self, path: ValuePath, *, of_key: bool = False) -> tuple[int, int]:
        if not path:
            return self._line, 1
        column = ".".join(map(str, path[:2])) if path[0] == "meta" else str(path[0])
        return self.cell(self._columns.get(column, 0))

    def cell(self, number: int) -> tuple[int, int]:
        """Line and column where a cell starts."""
        line, column, quoted = self._line, 1, False
        for character in self._text:
            if number == 0:
                break
            column += 1
            if character == '"':
                quoted = not quoted
            elif character == "\n":
                line, column = line + 1, 1
            elif character == self._delimiter and not quoted:
                number -= 1
        return line, column


class CsvReader:
    """The rows of one file. Problems go to `problems`."""

    def __init__(self, lines: Iterator[tuple[int, str]], file: str, problems: ProblemList) -> None:
        """lines: numbers and texts with their ends. file: the path as messages show it."""
        self._lines = lines
        self._file = file
        self._problems = problems
        self._delimiter = ","
        self._record: list[str] = []  # lines of the row being read
        self._line = 0  # the last of them

    def rows(self) -> Iterator[tuple[CsvRow, dict[str, Any]]]:
        """Each row's place and the keys it sets, as they are written: types are not checked."""
        start = self._start()
        self._delimiter = _delimiter(start)
        reader = csv.reader(self._watched(start), delimiter=self._delimiter, strict=True)
        columns: dict[str, int] = {}
        width = 0
        while (cells := self._next(reader)) is not None:
            if not any(cell.strip() for cell in cells):
                continue
            row = self._row(columns)
            if not columns:
                header = [_key(cell) for cell in cells]
                if not self._check_header(header, row):
                    return
                columns = {key: number for number, key in enumerate(header) if key}
                width = len(header)
                continue
            while len(cells) > width and not cells[-1].strip():
                cells.pop()
            if len(cells) != width:
                message = f"the row has {counted(len(cells), 'cell')}, the header {width:,}"
                marks = _DELIMITERS.get(self._delimiter, "separators")
                self._problem(row, 0, f"{message}; a text with {marks} needs quotes")
                continue
            if not self._check_unnamed(cells, columns, row):
                return
            values = self._values(cells, columns, row)
            if values is not None:
                yield row, values

    def _start(self) -> list[tuple[int, str]]:
        """The lines up to the header: blank ones, then perhaps `sep=;`, then its first."""
        start: list[tuple[int, str]] = []
        for number, text in self._lines:
            start.append((number, text))
            if text.strip() and not (len(start) == 1 and _STATED.fullmatch(text)):
                break
        return start

    def _watched(self, start: list[tuple[int, str]]) -> Iterator[str]:
        """The texts of all lines but `sep=;`, noted as lines of the row that is being read."""
        if _STATED.fullmatch(start[0][1] if start else ""):
            start = start[1:]
        for number, text in itertools.chain(start, self._lines):
            self._line = number
            self._record.append(text)
            yield text

    def _next(self, reader: Iterator[list[str]]) -> list[str] | None:
        """The next row's cells; None at the end, and where the file is no CSV."""
        self._record.clear()
        try:
            return next(reader, None)
        except csv.Error as error:
            self._problem(self._row({}), 0, f"is not CSV: {error}")
            return None

    def _row(self, columns: Mapping[str, int]) -> CsvRow:
        line = max(self._line - len(self._record) + 1, 1)
        return CsvRow(self._file, line, "".join(self._record), columns, self._delimiter)

    def _check_header(self, header: list[str], row: CsvRow) -> bool:
        """True if the columns are keys of a prompt, each once, or have no name."""
        before = len(self._problems)
        for number, key in enumerate(header):
            if key and not (key in PROMPT_KEYS or key.startswith(PREFIX)):
                close = known_key(key, PROMPT_KEYS)
                hint = f"did you mean '{close}'?" if close else f"expected {one_of(PROMPT_KEYS)}"
                self._problem(row, number, f"unknown column {quote(key)}; {hint}")
            elif key and key in header[:number]:
                self._problem(row, number, f"column {quote(key)} is there twice")
        if "prompt" not in header and len(self._problems) == before:
            self._problem(row, 0, "there is no column 'prompt'")
        return len(self._problems) == before

    def _check_unnamed(self, cells: list[str], columns: Mapping[str, int], row: CsvRow) -> bool:
        """True if nothing is under a header that is empty, as pandas writes its index."""
        named = set(columns.values())
        for number, cell in enumerate(cells):
            if number not in named and cell.strip():
                message = (
                    f"{quote(cell)} is in a column without a name; name it or take it out (pandas "
                    "writes its index so: use to_csv(index=False))"
                )
                self._problem(row, number, message)
                return False
        return True

    def _values(
        self, cells: list[str], columns: Mapping[str, int], row: CsvRow
    ) -> dict[str, Any] | None:
        """Values of a row; None, and a problem, for a cell that nobody can read any more."""
        values = {}
        for key, number in columns.items():
            cell = cells[number]
            if not cell.strip():
                continue
            try:
                values[key] = _cell(key, cell, comma=self._delimiter != ",")
            except ValueError as error:
                self._problem(row, number, str(error), key)
                return None
        return from_columns(values)

    def _problem(self, row: CsvRow, cell: int, message: str, path: str = "") -> None:
        self._problems.add(self._file, *row.cell(cell), path, message)


def _delimiter(start: list[tuple[int, str]]) -> str:
    """The separator that a first line states, else the one that gives the header most keys."""
    if not start:
        return ","
    stated = _STATED.fullmatch(start[0][1])
    if stated is not None:
        return stated[1]

    def known(delimiter: str) -> int:
        try:
            cells = next(csv.reader([start[-1][1]], delimiter=delimiter), [])
        except csv.Error:  # told when the row is read
            return 0
        return sum(_key(cell) in PROMPT_KEYS for cell in cells)

    return max(_DELIMITERS, key=known)


def _key(cell: str) -> str:
    """A header's cell as a key: people write `Prompt` and `Init image`."""
    name = cell.strip()
    key = re.sub(r"[ -]", "_", name.lower())
    return key if key in PROMPT_KEYS else name


def _cell(key: str, cell: str, *, comma: bool) -> Any:
    """A cell's value: texts as they are, other keys as a plain YAML scalar, seeds as a list.

    comma: whether decimals may be written with one. Raises `ValueError` where digits are lost.
    """
    if key in TEXT_KEYS and key not in _LISTS:
        return cell
    text = cell.strip()
    if key.startswith(PREFIX):
        return text
    if key == "embeddings":
        return text.split()
    if key == "loras":
        return [_lora(part, comma=comma) for part in text.split()]
    if key == "seeds" and " " in text:
        return [_number(part) for part in text.split()]
    if comma and key != "seeds":  # 1,2 are two seeds, if anything
        text = _DECIMAL_COMMA.sub(r"\1.\2", text) if _DECIMAL_COMMA.fullmatch(text) else text
    return _number(text) if key in WHOLE_KEYS else scalar(text)


def _lora(text: str, *, comma: bool) -> Any:
    """`name`, `name:weight` or `name:weight:text_weight` as an item of `loras`."""
    name, *weights = text.split(":") if "://" not in text else [text]
    if not weights:
        return name
    if len(weights) > 2:
        raise ValueError(f"{quote(text)} has more than a name, a weight and a text_weight")
    numbers = [_cell("weight", weight, comma=comma) for weight in weights]
    return {"name": name, **dict(zip(("weight", "text_weight"), numbers, strict=False))}


def _number(text: str) -> Any:
    """A whole number, also written as 1.0; anything else as a plain YAML scalar."""
    whole = _WHOLE.fullmatch(text)
    if (whole and int(whole[1]) > EXACT) or _SHORTENED.fullmatch(text):
        raise ValueError(
            f"{quote(text)} has lost its last digits; write whole numbers out (in a spreadsheet "
            "format the cells as numbers without decimals, in pandas as UInt64) and export again"
        )
    return int(whole[1]) if whole else scalar(text)
