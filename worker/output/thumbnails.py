"""Stores thumbnails beside large pictures, for pages that show thousands of them."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from jobs.errors import StoreError
from jobs.folder.layout import JobFolder
from worker.output.encode import THUMBNAIL_SIDE
from worker.output.encoders import Encoder

log = logging.getLogger(__name__)


class Thumbnails:
    """Thumbnails of a job's pictures; threads may share it.

    A picture never fails for want of one: where the store refuses them, this is said once.
    """

    def __init__(self, folder: JobFolder, encoder: Encoder) -> None:
        self._folder = folder
        self._encoder = encoder
        self._refused = False

    def put(self, pixels: NDArray[np.uint8], key: str) -> dict[str, str]:
        """Stores the thumbnail of a picture; the field of its record that names it. Empty for a
        picture that is no larger than its thumbnail would be, and where there can be none.

        pixels: (H, W, 3). key: of the picture.
        """
        height, width, _ = pixels.shape
        if self._refused or max(width, height) <= THUMBNAIL_SIDE:
            return {}
        place = self._folder.keys.thumbnail(key)
        try:
            self._folder.put(place, self._encoder.thumbnail(pixels), overwrite=True)
        except StoreError as error:
            self._refused = True
            log.warning("no thumbnails from now on, as they cannot be stored: %s", error)
            return {}
        return {"thumbnail": self._folder.keys.path(place)}
