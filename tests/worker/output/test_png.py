"""PNG files: every pixel comes back, whatever way was chosen, and files are small."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jobs.examples
from worker.output.png import png_file


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slope(height: int, width: int) -> np.ndarray:
    """Flat colour that changes slowly down the picture, and wraps."""
    rows = np.arange(height, dtype=np.uint8)[:, None, None]
    return np.broadcast_to(rows, (height, width, 3))


def grain(height: int, width: int) -> np.ndarray:
    wavy = 128 + 60 * np.sin(np.arange(width) / 40)[None, :, None]
    noisy = wavy + np.random.default_rng(0).normal(0, 2, (height, width, 3))
    return noisy.astype(np.uint8)


def rendered(height: int, width: int) -> np.ndarray:
    """Out of a sheet of the demo model's pictures."""
    path = Path(jobs.examples.__file__).with_name("quickstart.jpg")
    with Image.open(path) as sheet:
        return np.asarray(sheet.crop((100, 100, 100 + width, 100 + height)))


def filters(data: bytes) -> set[int]:
    """Of the rows of a file, whose one IDAT chunk comes last but one."""
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    with Image.open(io.BytesIO(data)) as image:
        step = image.width * 3 + 1
    return set(zlib.decompress(data[start : start + length])[::step])


@pytest.mark.parametrize("draw", [noise, slope, grain])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (16, 16), (17, 40), (120, 64)], ids=str)
def test_every_pixel_comes_back(draw, size):
    pixels = draw(*size)
    with Image.open(io.BytesIO(png_file(pixels))) as image:
        image.verify()  # the chunks' checksums
    with Image.open(io.BytesIO(png_file(pixels))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(("draw", "wanted"), [(slope, {2}), (grain, {3, 4}), (rendered, {3, 4})])
def test_the_way_suits_the_picture(draw, wanted):
    pixels = draw(256, 256)
    data = png_file(pixels)
    assert filters(data) == wanted
    theirs = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(theirs, "PNG")
    assert len(data) < 1.05 * theirs.tell()


def test_chunks_come_before_the_pixels():
    data = png_file(noise(4, 4), [(b"tEXt", b"one\0first"), (b"tEXt", b"two\0second")])
    with Image.open(io.BytesIO(data)) as image:
        assert image.info == {"one": "first", "two": "second"}  # read without the pixels
