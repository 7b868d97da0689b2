"""Init images and masks as arrays of exactly the size that a task renders."""

from __future__ import annotations

from functools import lru_cache

from jobs.picture_pixels import Pixels
from jobs.pictures import PictureError, read_picture
from jobs.storage.base import Store, is_segment
from jobs.storage.keys import JobKeys

KEPT = 8  # decoded inputs in memory; a sweep uses the same picture for many tasks in a row


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
            return read_picture(data).fit(mode, width, height)
        except PictureError as error:
            raise ValueError(f"inputs/{name} {error}") from error
