"""Init images and masks as arrays of exactly the size that a task renders."""

from __future__ import annotations

from functools import lru_cache

from jobs.errors import DamagedError
from jobs.folder.layout import JobFolder
from jobs.limits import MAX_IMAGE_BYTES
from jobs.pictures.pixels import Pixels
from jobs.pictures.rules import PictureError, read_picture
from jobs.storage import get_verified
from jobs.task import input_digest

KEPT = 8  # decoded inputs in memory; a sweep uses the same picture for many tasks in a row


class Inputs:
    """Reads a job's inputs from its store, keeping the last few."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder
        self._decoded = lru_cache(maxsize=KEPT)(self._load)

    def picture(self, name: str, width: int, height: int) -> Pixels:
        """(height, width, 3) uint8 of an init image. Raises `ValueError` for a damaged file."""
        return self._decoded(name, "RGB", width, height)

    def mask(self, name: str, width: int, height: int) -> Pixels:
        """(height, width) uint8 of a mask; white is painted over. Raises like `picture`."""
        return self._decoded(name, "L", width, height)

    def _load(self, name: str, mode: str, width: int, height: int) -> Pixels:
        data = self._read(name)
        try:
            return read_picture(data).fit(mode, width, height)
        except PictureError as error:
            raise ValueError(f"inputs/{name} {error}") from error

    def _read(self, name: str) -> bytes:
        """The file's bytes, of which its name is the digest. Raises like `picture`."""
        sha256, key = input_digest(name), self._folder.keys.input(name)
        try:
            return get_verified(self._folder.store, key, sha256, limit_bytes=MAX_IMAGE_BYTES)
        except DamagedError as error:
            raise ValueError(
                f"{error}; submit or run the job's manifest again, which writes it anew"
            ) from None
