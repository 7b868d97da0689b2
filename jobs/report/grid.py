"""A grid: a job's images by two axes, and a section for each value of a third."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.report.axes import Axis, Value, value_of
from jobs.task import Task


@dataclass(frozen=True)
class Picture:
    """An image in a grid.

    thumbnail: its file, relative to the grid's folder; None for one that is not there, and missing
    says why. original: the image's own path from there, on this machine.
    """

    task: Task
    thumbnail: str | None = None
    original: str | None = None
    missing: str = "not there yet"


@dataclass(frozen=True)
class Section:
    """The cells of one value of the third axis, which title says. cells: by column and row."""

    title: str | None
    cells: Mapping[tuple[int, int], Sequence[Picture]]


@dataclass
class Grid:
    """A grid as it was written. shown, missing: images. pages: names of PNG files."""

    folder: Path
    job: str
    x: Axis | None
    y: Axis | None
    z: Axis | None
    sections: Sequence[Section]
    shown: int = 0
    missing: int = 0
    pages: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Texts above the columns."""
        return _texts(self.x)

    @property
    def rows(self) -> list[str]:
        """Texts beside the rows."""
        return _texts(self.y)


def _texts(axis: Axis | None) -> list[str]:
    return [""] if axis is None else axis.labels


def arranged(
    pictures: Sequence[Picture], x: Axis | None, y: Axis | None, z: Axis | None
) -> list[Section]:
    """The sections of these pictures, those that have any."""

    def places(axis: Axis | None) -> Mapping[Value, int]:
        return {} if axis is None else {value: n for n, value in enumerate(axis.values)}

    columns, rows = places(x), places(y)
    by_section: dict[Value, dict[tuple[int, int], list[Picture]]] = {}
    for value in ("",) if z is None else z.values:
        by_section[value] = defaultdict(list)
    for picture in pictures:
        of = "" if z is None else value_of(picture.task, z.name)
        column = 0 if x is None else columns[value_of(picture.task, x.name)]
        row = 0 if y is None else rows[value_of(picture.task, y.name)]
        by_section[of][column, row].append(picture)
    titles = [None] if z is None else [f"{z.name}: {label}" for label in z.labels]
    return [
        Section(title, cells)
        for title, cells in zip(titles, by_section.values(), strict=True)
        if cells
    ]
