"""Warnings: what a manifest may not mean as it is written. They refuse nothing.

A million prompts may have the same flaw, so each kind is said once, with a count and the first
place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jobs.errors import ManifestWarning, Problem
from jobs.manifest.problems import Path, Place, join_path


class WarningList:
    """Warnings as they are found, by kind."""

    def __init__(self) -> None:
        self._first: dict[str, Problem] = {}
        self._count: dict[str, int] = {}

    def __iter__(self) -> Iterator[ManifestWarning]:
        for kind, first in self._first.items():
            yield ManifestWarning(kind, first, self._count[kind])

    def __len__(self) -> int:
        return len(self._first)

    def at(
        self, kind: str, place: Place, path: Path, describe: Callable[[], str], *, count: int = 1
    ) -> None:
        """Note as many with the value at `path` inside `place`. describe: asked the first time."""

        def first() -> Problem:
            line, column = place.position(path)
            return Problem(place.file, line, column, join_path(place.path, path), describe())

        self.add(kind, first, count)

    def add(self, kind: str, first: Callable[[], Problem], count: int = 1) -> None:
        """Note as many. first: asked the first time only."""
        if kind not in self._first:
            self._first[kind] = first()
        self._count[kind] = self._count.get(kind, 0) + count
