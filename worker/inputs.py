"""Init images and masks as arrays of exactly the size that a task renders."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jobs.storage.base import Store, is_segment
from jobs.storage.keys import JobKeys

KEPT = 8  # decoded inputs in memory; a sweep uses the same picture for many tasks in a row

Pixels = NDArray[np.uint8]


class Inputs:
    """Reads a job's inputs from its store, keeping the last few."""

    def __init__(self, store: Store, keys: JobKeys) -> None:
        self._store = store
        self._keys = keys
        self._decoded = lru_cache(maxsize=KEPT)(self._load)

    def picture(self, name: str, width: int, height: int) -> Pixels:
        """(height, width, 3) uint8 of an init image. Raises `ValueError` for a damaged file."""
        return self._decoded(name, "RGB", width, height)

    def mask(self, name: str, width: int, height: int) -> Pixels:
        """(height, width) uint8 of a mask; white is painted anew. Raises like `picture`."""
        return self._decoded(name, "L", width, height)

    def _load(self, name: str, mode: str, width: int, height: int) -> Pixels:
        if "/" in name or not is_segment(name):  # of a plan that somebody changed
            raise ValueError(f"{name!r} is not valid as the name of an input")
        data = self._store.get(self._keys.input(name))
        try:
            with Image.open(io.BytesIO(data)) as image:
                return fit(image, mode, width, height)
        except (OSError, SyntaxError) as error:  # what Pillow raises for damaged files
            raise ValueError(f"inputs/{name} is no readable image: {error}") from error


def fit(image: Image.Image, mode: str, width: int, height: int) -> Pixels:
    """The image upright, without transparency, cropped about its centre to the aspect, resized.

    Transparent parts become white; as a mask (mode "L") they are kept, not painted anew.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        ground = "white" if mode == "RGB" else "black"
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, ground), upright)
    # A mask keeps its hard edges; a picture is averaged down.
    method = Image.Resampling.LANCZOS if mode == "RGB" else Image.Resampling.NEAREST
    return np.asarray(ImageOps.fit(upright.convert(mode), (width, height), method=method))
