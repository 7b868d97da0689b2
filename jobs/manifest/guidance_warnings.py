"""Warnings of guidance that models of few steps do not bear."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jobs.image_settings import SETTINGS
from jobs.manifest.entries import Combination, Entry
from jobs.manifest.problems import Place
from jobs.manifest.warnings import WarningList
from sd_core.sampler_table import SAMPLER_TABLE

MOST_GUIDANCE = 2.0
"""Above, pictures of distilled models burn out; 1 is what most of them are made for."""

_SAMPLER, _GUIDANCE = SETTINGS.index("sampler"), SETTINGS.index("guidance")


class GuidanceWatch:
    """Looks for samplers of few steps with much guidance; what it finds goes to `warnings`."""

    def __init__(self, combinations: Sequence[Combination], warnings: WarningList) -> None:
        self._combinations = combinations
        self._warnings = warnings
        self._too_much = functools.lru_cache(maxsize=4096)(self._find)

    def look(self, entry: Entry, place: Place) -> None:
        """Note an entry with too much guidance in any combination."""
        found = self._too_much(entry.settings)
        if found is not None:
            sampler, guidance = found
            self._warnings.at(
                "guidance",
                place,
                (),
                lambda: (
                    f"{sampler} with guidance {guidance:g}: models of few steps want 1, which also "
                    f"takes half the time, and at most {MOST_GUIDANCE:g}"
                ),
            )

    def _find(self, settings: tuple[Any, ...]) -> tuple[str, float] | None:
        for combination in self._combinations:
            values = combination.apply(settings)
            sampler = values[_SAMPLER].partition(" ")[0]  # behind it may be a schedule
            if SAMPLER_TABLE[sampler].grid == "lcm" and values[_GUIDANCE] > MOST_GUIDANCE:
                return sampler, values[_GUIDANCE]
        return None
