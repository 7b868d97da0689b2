"""Warnings of settings that go together, but may not be meant so."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.image_settings import SETTINGS
from jobs.manifest.entries import Combination, Entry
from jobs.manifest.problems import Place
from jobs.manifest.warnings import WarningList
from sd_core.sampler_table import ALIGNED_STEPS, SAMPLER_TABLE
from sd_core.spec import Sampling

MOST_GUIDANCE = 2.0
"""Above, pictures of distilled models burn out; 1 is what most of them are made for."""


class SamplingWatch:
    """Looks at the settings of entries; what it finds goes to `warnings`."""

    def __init__(self, combinations: Sequence[Combination], warnings: WarningList) -> None:
        self._combinations = combinations
        self._warnings = warnings
        self._found = functools.lru_cache(maxsize=4096)(self._all)

    def look(self, entry: Entry, place: Place) -> None:
        """Note what any combination of a matrix makes of an entry's settings, once a kind."""
        for kind, message in self._found(entry.settings).items():
            self._warnings.at(kind, place, (), lambda message=message: message)  # type: ignore[misc]

    def _all(self, settings: tuple[Any, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for combination in self._combinations:
            values = dict(zip(SETTINGS, combination.apply(settings), strict=True))
            with contextlib.suppress(ValueError):  # of what does not go together, which is told
                for kind, message in _flaws(Sampling(**values)):
                    found.setdefault(kind, message)
        return found


def _flaws(sampling: Sampling) -> Iterator[tuple[str, str]]:
    """Kinds of warnings, and what they say."""
    if SAMPLER_TABLE[sampling.sampler].grid == "lcm" and sampling.guidance > MOST_GUIDANCE:
        yield (
            "guidance",
            f"{sampling.sampler} with guidance {sampling.guidance:g}: models of few steps want 1, "
            f"which also takes half the time, and at most {MOST_GUIDANCE:g}; only full LCM "
            "checkpoints, which are told their guidance, are made for more",
        )
    if sampling.schedule == "ays" and sampling.steps != ALIGNED_STEPS:
        yield (
            "schedule",
            f"schedule ays is published for {ALIGNED_STEPS} steps; for {sampling.steps} it is "
            "interpolated, as its authors do",
        )
