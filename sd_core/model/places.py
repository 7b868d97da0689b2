"""Places in the UNet where the results of some rows of a batch are changed, and those changes.

Perturbed-attention guidance and FreeU are what a few images ask for, in a batch that they share
with others. So the layers give the same to all rows, and what is another for some is put there row
by row: the bits of a row depend on no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from sd_core.model.beside import Change, change
from sd_core.setting_texts import FreeU
from sd_core.transfer import to_device


class Place:
    """A place in the model whose result may be changed in some rows.

    change: of it, at the next evaluations; mostly None. place: where compiled programs look for it
    (`sd_core.model.beside`); None, as mostly, where it is in `change`.
    """

    def __init__(self) -> None:
        self.change: Change | None = None
        self.place: str | None = None

    def changed(self, out: Tensor, x: Tensor) -> Tensor:
        """`out`, changed in place. x: what it was made of."""
        if self.place is not None:
            change(out, x, self.place)
        elif self.change is not None:
            self.change(out, x)
        return out


@contextmanager
def changing(places: Mapping[str, Place], changes: Mapping[str, Change]) -> Iterator[None]:
    """Has places change their results meanwhile. changes: by the names of the places."""
    try:
        for name, own in changes.items():
            places[name].change = own
        yield
    finally:
        for name in changes:
            places[name].change = None


def attentions_called(attentions: Iterable[str], layers: str) -> tuple[str, ...]:
    """Names of those of a model's attentions that are meant. Raises `ValueError` where it has none
    of a name.

    layers: as `sd_core.setting_texts.layers_called` gives them.
    """
    known = [*attentions]
    found: list[str] = []
    for layer in layers.split():
        names = [name for name in known if name == layer or name.startswith(f"{layer}.")]
        if not names:
            raise ValueError(f"pag_layers {layer} is none of this model's: {', '.join(known)}")
        found += names
    return tuple(found)


def identity(rows: Sequence[int]) -> Change:
    """Makes a self-attention leave every token to itself in these rows (Ahn et al. 2024, eq. 15):
    its outcome is the values.
    """
    return partial(_take_over, rows)


def _take_over(rows: Sequence[int], out: Tensor, values: Tensor) -> None:
    for row in rows:
        out[row] = values[row]


def freeu_changes(rows: Iterable[tuple[int, FreeU]]) -> dict[str, Change]:
    """FreeU of these rows, by the names that `UNet.places` has for backbones and skips."""
    rows = [*rows]
    if not rows:
        return {}
    changes: dict[str, Change] = {}
    for level in range(2):
        changes[f"backbone.{level}"] = partial(_scale_backbone, [(r, f[level]) for r, f in rows])
        changes[f"skip.{level}"] = partial(_scale_lowest, [(r, f[2 + level]) for r, f in rows])
    return changes


def _scale_backbone(rows: Sequence[tuple[int, float]], x: Tensor, skip: Tensor) -> None:
    """x: (B, C, h, w)"""
    for row, factor in rows:
        x[row, : x.shape[1] // 2] *= factor


def _scale_lowest(rows: Sequence[tuple[int, float]], skip: Tensor, x: Tensor) -> None:
    """Scales the frequencies 0 and -1 of either axis, as the authors' filter does.

    These are four of a whole spectrum, of which the real part is kept: so a product with their
    seven waves is all of the two Fourier transforms that changes something.
    """
    waves = lowest_waves(skip.shape[2], skip.shape[3], skip.device)
    for row, factor in rows:
        own = skip[row].float().flatten(1)  # (C, h·w)
        lowest = (own @ waves.t()) @ waves
        skip[row] += ((factor - 1) * lowest).view_as(skip[row]).to(skip.dtype)


@cache  # for good: captured evaluations know it by its address
def lowest_waves(height: int, width: int, device: torch.device) -> Tensor:
    """(n, height · width) float32: the product with these and with their transpose is the real part
    of the frequencies 0 and -1 of either axis.
    """
    found = []
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for down in {0, -1 % height}:
        for across in {0, -1 % width}:
            angle = 2 * math.pi * (y.double() * down / height + x.double() * across / width)
            found += [angle.cos(), angle.sin()] if down or across else [torch.ones_like(angle)]
    waves = torch.stack(found).flatten(1) / math.sqrt(height * width)
    return to_device(waves.float(), device)
