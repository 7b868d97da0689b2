"""Compares a picture that was rendered again with the one in the store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.pictures.rules import PictureError, opened

LEAST_PSNR_DB = 25.0
"""Peak signal-to-noise ratio of the same picture by devices or number formats of two kinds, at
least. Pictures of the demo model by float32 and bfloat16 are at 34 dB and more (3 steps; at 52 with
50); those of another seed below 15, of the same seed with another guidance below 25.
"""

_KIND = ("device", "dtype", "execution", "batch_rows", "reproducible")


def same_kind(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two renderings must give the same pixels: exact ones, on devices and by libraries of
    the same kind. record, other: of images, or parsed from anywhere.
    """
    if record.get("reproducible") != "exact":
        return False
    alike = all(record.get(name) == other.get(name) for name in _KIND)
    return alike and _version(record, "torch") == _version(other, "torch")


def _version(record: Mapping[str, Any], package: str) -> Any:
    software = record.get("software")
    return software.get(package) if isinstance(software, dict) else None


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    """The pixels of an image file, (H, W, 3). Raises `PictureError`."""
    with opened(data) as image:
        return np.asarray(image.convert("RGB"))


def psnr_db(data: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two image files in dB: infinite for the same pixels, 0 for
    pictures of another size or none.
    """
    try:
        one, two = pixels_of(data), pixels_of(other)
    except PictureError:
        return 0.0
    if one.shape != two.shape:
        return 0.0
    error = np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
