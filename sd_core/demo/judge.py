"""Tells from the pixels of a single-shape scene what it shows, without any model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sd_core.demo.scenes import COLOURS, SHAPES, SIZE, Item, Scene, draw

BORDER = 6  # pixels along the edge that show the background alone
DISTINCT = 70.0  # RGB distance from the background above which a pixel belongs to a shape
LEAST_PIXELS = 40  # fewer are no shape
_TEMPLATE_SIDE = 64

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """Content of a picture. shape and colour are None where there is no shape to see."""

    background: str
    colour: str | None
    shape: str | None
    overlap: float
    """Intersection over union of the shape with its template, 0 to 1."""


def judge(image: Image.Image) -> Seen:
    """Reads background, colour and shape off an RGB image of a single shape."""
    pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE)), dtype=np.float64)
    names = list(COLOURS)
    palette = np.array(list(COLOURS.values()), dtype=np.float64)
    nearest = np.linalg.norm(pixels[:, :, None] - palette, axis=-1).argmin(axis=-1)
    border = np.ones((SIZE, SIZE), dtype=bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    background = names[np.bincount(nearest[border]).argmax()]
    mask = np.linalg.norm(pixels - COLOURS[background], axis=-1) > DISTINCT
    if mask.sum() < LEAST_PIXELS:
        return Seen(background, None, None, 0.0)
    inner = _eroded(mask)
    colour = names[np.bincount(nearest[inner if inner.any() else mask]).argmax()]
    found = _normalised(mask)
    overlaps = {shape: _overlap(found, template) for shape, template in _templates().items()}
    shape = max(overlaps, key=overlaps.__getitem__)
    return Seen(background, colour, shape, overlaps[shape])


def _eroded(mask: Mask) -> Mask:
    """Pixels whose four neighbours belong too: without the blended edge."""
    padded = np.pad(mask, 1)
    return mask & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]


def _normalised(mask: Mask) -> Mask:
    """The mask's bounding box, stretched to a fixed square."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = Image.fromarray(box).resize((_TEMPLATE_SIDE, _TEMPLATE_SIDE))
    return np.asarray(scaled, dtype=bool)


@cache
def _templates() -> dict[str, Mask]:
    """A normalised mask of every shape, as the scenes draw it."""
    masks = {}
    for shape in SHAPES:
        scene = Scene("white", (Item(shape, "black", SIZE / 2, SIZE / 2, 50),))
        masks[shape] = _normalised(np.asarray(draw(scene).convert("L")) < 128)
    return masks


def _overlap(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())
