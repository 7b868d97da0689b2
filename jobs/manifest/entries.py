"""Entries: checked prompts, kept small, and their expansion into tasks.

An entry is one prompt with all its settings; its tasks are one a combination of the matrix and
seed. A million entries as objects would take a gigabyte, so they are kept in compressed blocks:
a few dozen bytes each.
"""

from __future__ import annotations

import itertools
import marshal
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jobs.image_settings import SETTINGS
from jobs.manifest.embeddings import Listing, known_by_name, uses_in
from jobs.manifest.labels import Labels
from jobs.manifest.lora_tags import split_tags
from jobs.manifest.loras import Use, use_of
from jobs.manifest.named_files import KnownFile
from jobs.manifest.naming import fill
from jobs.manifest.vaes import Choice
from jobs.task import LoraUse, Task, VaeUse
from sd_core.spec import FIRST_SETTINGS, Sampling

_BEFORE_SEED = FIRST_SETTINGS.index("seed")
_SYNTAX = SETTINGS.index("syntax")

_BLOCK_WEIGHT = 2000  # entries and listed seeds


class Entry(NamedTuple):
    """One prompt, resolved up to the matrix.

    seeds: a list, or (first, count). settings: values of `SETTINGS`. template: of image names.
    init_image, mask: names in the job's `inputs/`. dynamic: of `jobs.manifest.schema.Dynamic`, for
    an entry whose choices are still to be made. written: the prompt with its choices, for one whose
    choices were made. loras: besides those of tags in the prompt. embeddings: that the prompts
    may name. vae: that draws the image. model: by its name in the model list. meta: its labels.
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
    loras: tuple[Use, ...] = ()
    embeddings: tuple[Listing, ...] = ()
    vae: Choice = ()
    model: str = ""
    meta: Labels = ()

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


class EntryLogs:
    """The entries of a job, model by model: loading one costs more than anything else that changes.

    images: of each model, in the order in which they came first.
    """

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self._logs: defaultdict[str, EntryLog] = defaultdict(EntryLog)

    def append(self, entry: Entry, images: int) -> None:
        self._logs[entry.model].append(entry)
        self.images[entry.model] += images

    def of(self, model: str) -> EntryLog:
        """The entries of one model."""
        return self._logs[model]

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self._logs.values())


@dataclass(frozen=True)
class Combination:
    """One combination of a matrix.

    changes: values by position in `SETTINGS`. replaced: a text in the prompt, and what takes its
    place. loras, vae: instead of an entry's.
    """

    changes: tuple[tuple[int, Any], ...] = ()
    negative: str | None = None
    replaced: tuple[str, str] | None = None
    loras: tuple[Use, ...] | None = None
    vae: Choice | None = None

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
    entries: Iterable[Entry],
    combinations: Sequence[Combination],
    job: str,
    format: str,
    loras: Mapping[str, KnownFile],
    embeddings: Mapping[str, KnownFile],
    *,
    first: int = 0,
    model: str | None = None,
) -> Iterator[Task]:
    """The tasks of entries: prompt by prompt, combination by combination, seed by seed.

    loras: by the names that prompts may have in tags. embeddings: by the names that prompts with
    syntax a1111 may have. first: index of the first task. model: as tasks have it.
    """
    index = first
    for entry in entries:
        prompt, negative, seeds, settings, init_image, mask, template, *_ = entry
        numbers = seeds if isinstance(seeds, list) else range(seeds[0], seeds[0] + seeds[1])
        named = known_by_name(entry.embeddings)
        for combination in combinations:
            if combination.negative is not None:
                negative = combination.negative
            values, words = combination.apply(settings), combination.prompt(prompt)
            used = entry.loras if combination.loras is None else combination.loras
            if values[_SYNTAX] == "a1111":
                words, tags = split_tags(words)
                used = (*used, *(use_of(tag, loras[tag.name]) for tag in tags))
                known = {**embeddings, **named} if embeddings else named
            else:
                known = named
            vectors = uses_in((words, negative), known) if known else ()
            of_image = tuple([LoraUse(*use) for use in used])
            chosen = entry.vae if combination.vae is None else combination.vae
            autoencoder = VaeUse(*chosen[0]) if chosen else None
            before, after = values[:_BEFORE_SEED], values[_BEFORE_SEED:]
            for seed in numbers:
                fields = *before, seed, *after
                sampling = Sampling(*fields)
                name = fill(template, job, index, words, sampling, entry.model, entry.meta)
                yield Task(
                    *(index, name, words, negative, sampling, init_image, mask, format),
                    *(entry.written, of_image, vectors, autoencoder, model, entry.meta),
                )
                index += 1
