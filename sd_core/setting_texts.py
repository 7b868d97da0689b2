"""Settings that are several numbers or names, each as one text: so they fit a line of .csv, and one
picture has one form of them.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class FreeU(NamedTuple):
    """Factors in the UNet's decoder (Si et al. 2023), of its two deepest levels. All 1 is nothing.

    b1, b2: of the first half of the channels that come from below.
    s1, s2: of the lowest frequencies of what the encoder hands over.
    """

    b1: float = 1.0
    b2: float = 1.0
    s1: float = 1.0
    s2: float = 1.0


class Projection(NamedTuple):
    """Adaptive projected guidance (Sadat et al. 2024, alg. 1). eta 1 alone is plain guidance.

    eta: share that is left of what points along the prompt's own clean latent.
    norm_threshold: largest norm of the difference that guidance adds; 0 is no limit.
    momentum: share of the differences before in each; below 0 it goes against them.
    """

    eta: float = 1.0
    norm_threshold: float = 0.0
    momentum: float = 0.0


MOST_FACTOR = 10.0
"""Largest factor of `FreeU`."""

MOST_ETA = 10.0
"""Largest `eta` of a `Projection`, either way of 0."""

MOST_NORM = 1000.0

FREEU_RANGE = f"four numbers b1 b2 s1 s2 within 0 to {MOST_FACTOR:g}"
PROJECTION_RANGE = (
    f"three numbers eta norm_threshold momentum within -{MOST_ETA:g} to {MOST_ETA:g}, "
    f"0 to {MOST_NORM:g}, and above -1 and below 1"
)
LAYERS_RANGE = (
    "of mid, down.0 to down.2, up.1 to up.3 (of the demo model: down.1, down.2, mid, up.0, up.1), "
    "or one attention of these, such as up.1.0"
)


def freeu_of(text: str) -> FreeU | None:
    """Factors from text; None for none of text "". Raises `ValueError`."""
    factors = FreeU(*_numbers("freeu", text, FREEU_RANGE, 4)) if text.strip() else FreeU()
    if not all(0 <= factor <= MOST_FACTOR for factor in factors):
        raise ValueError(f"freeu {text!r:.80} is not {FREEU_RANGE}")
    return None if factors == FreeU() else factors


def projection_of(text: str) -> Projection | None:
    """Projection from text; None for none of text "". Raises `ValueError`."""
    chosen = Projection(*_numbers("apg", text, PROJECTION_RANGE, 3)) if text.strip() else None
    if chosen is None or chosen == Projection():
        return None
    norm_allowed = 0 <= chosen.norm_threshold <= MOST_NORM
    if abs(chosen.eta) > MOST_ETA or not norm_allowed or not -1 < chosen.momentum < 1:
        raise ValueError(f"apg {text!r:.80} is not {PROJECTION_RANGE}")
    return chosen


def has_momentum(text: str) -> bool:
    """True for a projection that reads earlier differences. text: as `projection_of` takes it."""
    return (projection_of(text) or Projection()).momentum != 0


def text_of(numbers: FreeU | Projection | None) -> str:
    """The one text of these numbers."""
    return "" if numbers is None else " ".join(repr(n).removesuffix(".0") for n in numbers)


_ATTENTIONS = {
    **{f"down.{level}": 2 for level in range(3)},
    "mid": 1,
    **{f"up.{level}": 3 for level in range(4)},
}
"""Levels of the UNet in the order that a latent comes by them, and the attentions of each."""


def layers_called(text: str) -> str:
    """Names of attentions of the UNet, each once, in the order that a latent comes by them.

    text: names between spaces or commas, also as diffusers names blocks (`mid_block`,
    `up_blocks.1.attentions.0`), by whose numbers levels count. A level has all of its attentions.
    Raises `ValueError`.
    """
    chosen: dict[str, set[int]] = {level: set() for level in _ATTENTIONS}
    for name in re.split(r"[\s,]+", text.strip().lower()):
        short = re.sub(r"_blocks?|(?<=\.)attentions\.", "", name)
        level, _, index = (short, "", "") if short in _ATTENTIONS else short.rpartition(".")
        every = range(_ATTENTIONS.get(level, 0))
        wanted = [number for number in every if index in ("", str(number))]
        if not wanted:
            raise ValueError(f"pag_layers {name!r:.80} is none {LAYERS_RANGE}")
        chosen[level].update(wanted)
    found: list[str] = []
    for level, indexes in chosen.items():
        whole = len(indexes) == _ATTENTIONS[level]
        found += [level] if whole else [f"{level}.{index}" for index in sorted(indexes)]
    return " ".join(found)


def _numbers(name: str, text: str, allowed: str, count: int) -> list[float]:
    try:
        numbers = [float(part) + 0.0 for part in re.split(r"[\s,]+", text.strip())]  # no -0.0
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} {text!r:.80} is not {allowed}")
    return numbers
