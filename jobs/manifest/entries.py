"""Entries: checked prompts, kept small, and their expansion into tasks.

An entry is one prompt with all its settings; its tasks are one a combination of the matrix and
seed. A million entries as objects would take a gigabyte, so they are kept in compressed blocks:
a few dozen bytes each.
"""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobs.manifest.naming import fill
from jobs.task import Task
from sd_core.spec import FIRST_SETTINGS, Sampling

_BEFORE_SEED = FIRST_SETTINGS.index("seed")

_BLOCK_WEIGHT = 2000  # entries and listed seeds


class Entry(NamedTuple):
    """One prompt, resolved up to the matrix.

    seeds: a list, or (first, count). settings: values of `SETTINGS`. template: of image names.
    init_image, mask: names in the job's `inputs/`. dynamic: of `jobs.manifest.schema.Dynamic`, for
    an entry whose choices are still to be made. written: the prompt with its choices, for one whose
    choices were made.
    """

    prompt: str
    negative: str
    seeds: list[int] | tuple[int, int]
    settings: tuple[Any, ...]
    init_image: str | None
    mask: str | None
    template: str
    dynamic: str = "none"
    written: str | None = None

    @property
    def seed_count(self) -> int:
        return len(self.seeds) if isinstance(self.seeds, list) else self.seeds[1]


class EntryLog:
    """Entries in the order they were appended; can be iterated any number of times."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[Entry] = []
        self._weight = 0

    def append(self, entry: Entry) -> None:
        self._open.append(entry)
        self._weight += 1 + (len(entry.seeds) if isinstance(entry.seeds, list) else 0)
        if self._weight >= _BLOCK_WEIGHT:
            self._blocks.append(zlib.compress(marshal.dumps([tuple(e) for e in self._open]), 1))
            self._open = []
            self._weight = 0

    def __iter__(self) -> Iterator[Entry]:
        for block in self._blocks:
            for values in marshal.loads(zlib.decompress(block)):
                yield Entry(*values)
        yield from self._open


@dataclass(frozen=True)
class Combination:
    """One combination of a matrix.

    changes: values by position in `SETTINGS`. replaced: a text in the prompt, and what takes its
    place.
    """

    changes: tuple[tuple[int, Any], ...] = ()
    negative: str | None = None
    replaced: tuple[str, str] | None = None

    def apply(self, settings: tuple[Any, ...]) -> tuple[Any, ...]:
        """The settings of an entry with this combination's values."""
        if not self.changes:
            return settings
        changed = list(settings)
        for position, value in self.changes:
            changed[position] = value
        return tuple(changed)

    def prompt(self, text: str) -> str:
        """The prompt of an entry with this combination's text in it."""
        return text if self.replaced is None else text.replace(*self.replaced)


def expand(
    entries: Iterator[Entry], combinations: Sequence[Combination], job: str, format: str
) -> Iterator[Task]:
    """The tasks of all entries: prompt by prompt, combination by combination, seed by seed."""
    index = 0
    for entry in entries:
        prompt, negative, seeds, settings, init_image, mask, template, _, written = entry
        numbers = seeds if isinstance(seeds, list) else range(seeds[0], seeds[0] + seeds[1])
        for combination in combinations:
            if combination.negative is not None:
                negative = combination.negative
            values, words = combination.apply(settings), combination.prompt(prompt)
            before, after = values[:_BEFORE_SEED], values[_BEFORE_SEED:]
            for seed in numbers:
                fields = *before, seed, *after
                sampling = Sampling(*fields)
                name = fill(template, job, index, words, sampling)
                yield Task(
                    *(index, name, words, negative, sampling, init_image, mask, format, written)
                )
                index += 1
