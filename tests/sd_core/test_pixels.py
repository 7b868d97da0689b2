"""Numbers to pixels: rounded in one way, for files and for whoever embeds the renderer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sd_core
from sd_core.pixels import finite, to_uint8


def test_to_uint8_rounds_and_clips():
    values = torch.tensor(
        [-2.0, -1.0, 0.0, 1.0, 2.0, 2 * 0.5 / 255 - 1 + 1e-4, 2 * 254.49 / 255 - 1]
    )
    found = to_uint8(values.expand(5, 3, 2, 7))
    assert found.shape == (5, 2, 7, 3)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert found[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 1, 254]


def test_to_uint8_rounds_as_diffusers_does():
    image_processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    theirs = image_processor.postprocess(images, output_type="pil")
    for mine, picture in zip(to_uint8(images), theirs, strict=True):
        assert np.array_equal(mine, np.asarray(picture))


def test_to_uint8_keeps_channels_apart():
    image = torch.stack([torch.full((2, 4), v) for v in (-1.0, 0.0, 1.0)])
    assert to_uint8(image)[1, 3].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_with_a_number_that_is_none_is_told_apart(bad: float):
    images = torch.zeros(3, 3, 8, 8)
    images[1, 1, 2, 3] = bad
    assert finite(images).tolist() == [True, False, True]


def test_a_picture_has_the_pixels_of_a_file():
    pixels = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    in_a_file = to_uint8(pixels).numpy()
    for given in (pixels, pixels.double(), pixels.requires_grad_(), in_a_file):
        picture = sd_core.to_pil(given)
        assert (picture.mode, picture.size) == ("RGB", (24, 16))
        assert np.array_equal(np.asarray(picture), in_a_file)
    assert sd_core.to_pil(pixels.detach().bfloat16()).size == (24, 16)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(8, 8, 3),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8), np.uint8),
    ],
)
def test_other_shapes_and_types_are_no_pixels(pixels):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\) or floats \(3, H, W\)"):
        sd_core.to_pil(pixels)


def test_a_picture_of_what_is_not_finite_is_refused():
    with pytest.raises(ArithmeticError, match="not finite"):
        sd_core.to_pil(torch.full((3, 8, 8), float("nan")))
