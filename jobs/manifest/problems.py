"""Words for what is wrong: collecting problems, "found …, expected …", "did you mean …?"."""

from __future__ import annotations

from typing import NoReturn, Protocol

from jobs.errors import ManifestError, Problem
from jobs.formatting import shorten
from jobs.limits import MAX_PROBLEMS

Path = tuple[str | int, ...]
"""Where a value lies in its mapping or list: keys and list indexes from the outside in."""


class Place(Protocol):
    """Place that a prompt's settings were read from: a problem can point at one of them."""

    @property
    def file(self) -> str: ...

    @property
    def path(self) -> str:
        """The path of the whole, such as `prompts[3]`; empty in a row of a file."""
        ...

    def position(self, path: Path, *, of_key: bool = False) -> tuple[int, int]:
        """Line and column of a value (or of its key), or of what encloses it if it is not there."""
        ...


class ProblemList:
    """Problems as they are found, so that one run reports all of them."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def __len__(self) -> int:
        return len(self._problems)

    def add(self, file: str, line: int, column: int, path: str, message: str) -> None:
        """Note a problem; raises `ManifestError` when there are too many to go on."""
        self._problems.append(Problem(file, line, column, path, message))
        if len(self._problems) >= MAX_PROBLEMS:
            stop = f"reading stopped here, after {MAX_PROBLEMS:,} problems"
            self._problems.append(Problem(file, line, column, "", stop))
            raise self._error()

    def fatal(self, file: str, line: int, column: int, path: str, message: str) -> NoReturn:
        """Raise `ManifestError` with this problem and all before it: reading cannot go on."""
        self.add(file, line, column, path, message)
        raise self._error()

    def at(self, place: Place, path: Path, message: str, *, of_key: bool = False) -> None:
        """Note a problem with the value at `path` inside `place`."""
        line, column = place.position(path, of_key=of_key)
        self.add(place.file, line, column, join_path(place.path, path), message)

    def raise_if_any(self) -> None:
        """Raise `ManifestError` with all that was found, if anything was."""
        if self._problems:
            raise self._error()

    def _error(self) -> ManifestError:
        """File by file, in the order of lines: settings are checked before what is above them."""
        files = list(dict.fromkeys(problem.file for problem in self._problems))
        order = {file: number for number, file in enumerate(files)}
        by_place = sorted(self._problems, key=lambda p: (order[p.file], p.line, p.column))
        return ManifestError(by_place)


def join_path(start: str, path: Path) -> str:
    """`prompts[3]` and ("seeds", 1) to `prompts[3].seeds[1]`."""
    for part in path:
        if isinstance(part, int):
            start += f"[{part}]"
        else:
            start += f".{shorten(part)}" if start else shorten(part)
    return start
