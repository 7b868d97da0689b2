"""The LoRA that comes with the examples makes outlines of the demo model's shapes, by pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jobs.examples
from sd_core import Engine, Lora, Request, Sampling, load_model, make_ready
from sd_core.demo.scenes import COLOURS

FILE = Path(jobs.examples.__file__).parent / "loras" / "hollow.safetensors"
SCENES = [
    ("circle", "red", "blue"),
    ("square", "black", "yellow"),
    ("triangle", "white", "red"),
    ("circle", "green", "white"),
]


def filled(pixels: np.ndarray, colour: str, background: str) -> np.ndarray:
    """(H, W): 0 where a pixel is background, 1 where it is of the shape's colour."""
    shape, ground = (np.array(COLOURS[name], dtype=float) for name in (colour, background))
    way = shape - ground
    return np.clip((pixels - ground) @ way / (way @ way), 0, 1)


@pytest.fixture(scope="module")
def pictures() -> dict[float | None, list[np.ndarray]]:
    """By the weight of the LoRA what of each scene's picture is filled; None is without it."""
    wanted = []
    with Engine(make_ready(load_model("demo"))) as engine:
        for weight in (None, 0.0, 0.5, 1.0):
            loras = () if weight is None else (Lora.of(FILE, weight),)
            for shape, colour, background in SCENES:
                text = f"a large {colour} {shape} on a {background} background"
                sampling = Sampling(width=128, height=128, steps=20, guidance=2.0, seed=1)
                future = engine.submit(Request(text, sampling, loras=loras))
                wanted.append((weight, colour, background, future))
        found: dict[float | None, list[np.ndarray]] = {}
        for weight, colour, background, future in wanted:
            picture = filled(future.result().pixels, colour, background)
            found.setdefault(weight, []).append(picture)
    return found


def middle(picture: np.ndarray) -> float:
    """The fill of the middle of the picture, where a large shape is."""
    return float(picture[58:74, 56:72].mean())


def test_it_is_small():
    assert FILE.stat().st_size < 10**6


def test_weight_0_is_nothing(pictures):
    for without, none in zip(pictures[None], pictures[0.0], strict=True):
        assert np.array_equal(without, none)
        assert middle(none) > 0.9


def test_weight_1_leaves_outlines(pictures):
    for whole, outline in zip(pictures[0.0], pictures[1.0], strict=True):
        assert middle(outline) < 0.1
        assert 0.15 < outline.sum() / whole.sum() < 0.7


def test_weight_a_half_is_between(pictures):
    shares = [
        (whole.sum() - half.sum()) / (whole.sum() - outline.sum())
        for whole, half, outline in zip(pictures[0.0], pictures[0.5], pictures[1.0], strict=True)
    ]
    assert all(0.1 < share < 1 for share in shares)
    assert 0.3 < np.mean(shares) < 0.8
