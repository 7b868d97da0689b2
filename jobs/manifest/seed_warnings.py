"""Warnings of seeds that draw the same noise.

torch's generator on the CPU, a Mersenne Twister, takes the low 32 bits of a seed. diffusers draws
from the same one, so that the pictures are those that it would make.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs.image_settings import SETTINGS
from jobs.manifest.entries import Entry
from jobs.manifest.problems import Place
from jobs.manifest.warnings import WarningList

_DISTINCT = 2**32
_NOISE = SETTINGS.index("noise")

_MOST_SEEDS = 200_000  # that are looked at in a job: a few dozen megabytes
_MOST_SHOWN = 3


class SeedWatch:
    """Looks for one prompt's seeds that give one picture; what it finds goes to `warnings`.

    Seeds are kept from the first one on that does not fit into 32 bits, and no further than
    200,000 of them: most jobs have none.
    """

    def __init__(self, entries: Iterable[Entry], warnings: WarningList) -> None:
        """entries: those before the one that is looked at."""
        self._entries = entries
        self._warnings = warnings
        self._watching = False
        self._first: dict[int, int] = {}  # of the prompt's hash and the low bits -> seed

    def look(self, entry: Entry, place: Place) -> None:
        """Note the seeds of an entry that give a picture which others gave before."""
        if not self._watching:
            if _last(entry) < _DISTINCT:
                return
            self._watching = True
            for earlier in self._entries:
                self._keep(earlier)
        aliases = self._keep(entry)
        if aliases:
            count = sum(len(seeds) - 1 for seeds in aliases.values())
            self._warnings.at("seeds", place, (), lambda: _same(aliases), count=count)

    def _keep(self, entry: Entry) -> dict[int, list[int]]:
        """The first seed of each noise that the entry has again -> all such seeds."""
        aliases: dict[int, list[int]] = {}
        prompt, negative, seeds, settings, init_image, mask, *_ = entry
        if settings[_NOISE] != "cpu":  # which takes all bits
            return aliases
        weights = entry.model, entry.loras, entry.embeddings, entry.vae
        picture = hash((prompt, negative, settings, init_image, mask, weights))
        numbers = seeds if isinstance(seeds, list) else range(seeds[0], seeds[0] + seeds[1])
        for seed in numbers:
            key = hash((picture, seed % _DISTINCT))
            first = self._first.get(key)
            if first is not None and first != seed:
                aliases.setdefault(first, [first]).append(seed)
            elif len(self._first) >= _MOST_SEEDS:
                break
            else:
                self._first[key] = seed
        return aliases


def _last(entry: Entry) -> int:
    seeds = entry.seeds
    return max(seeds) if isinstance(seeds, list) else seeds[0] + seeds[1] - 1


def _same(aliases: dict[int, list[int]]) -> str:
    groups = [" = ".join(map(str, seeds[:_MOST_SHOWN])) for seeds in aliases.values()]
    shown = ", ".join(groups[:_MOST_SHOWN])
    return (
        f"seeds {shown} give the same picture: torch's generator on the CPU takes the low 32 bits "
        "of a seed, in diffusers too"
    )
