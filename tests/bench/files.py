"""Cost and size of PNG files, as JSON: `python -m tests.bench.files`.

512×512 pixels with a full record inside, on one thread, beside Pillow as it comes (level 6, without
a record). There are no photographs here, so pictures are drawn: waves of colour as smooth as a sky,
the same with as much grain as a decoder leaves, a flat drawing, and some of the demo model's.
"""

from __future__ import annotations

import io
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import jobs.examples
from jobs.task import Task
from sd_core.demo.scenes import draw, random_scene
from sd_core.spec import Sampling
from tests.bench.wanted import Wanted, judged
from worker.output.encode import encode_image
from worker.output.record import ModelInfo, RenderInfo, image_record

SIDE = 512
RUNS = 15


def waves(grain: float) -> np.ndarray:
    """grain: standard deviation of each pixel's own noise, of 255."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    picture = np.full((SIDE, SIDE, 3), 128.0)
    for _ in range(12):
        (fx, fy), phase = rng.uniform(0, 0.08, 2), rng.uniform(0, 2 * np.pi)
        picture += np.sin(x * fx + y * fy + phase)[..., None] * rng.uniform(5, 25, 3)
    picture += rng.normal(0, grain, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def drawing() -> np.ndarray:
    scene = draw(random_scene(random.Random(0)))
    return np.asarray(Image.fromarray(np.asarray(scene)).resize((SIDE, SIDE)))


def rendered() -> np.ndarray:
    """Out of a sheet of the demo model's pictures, which a JPEG has passed."""
    path = Path(jobs.examples.__file__).with_name("quickstart.jpg")
    with Image.open(path) as sheet:
        return np.asarray(sheet.crop((100, 100, 100 + SIDE, 100 + SIDE)))


PICTURES = {
    "smooth": lambda: waves(0),
    "grain": lambda: waves(2.5),
    "drawing": drawing,
    "rendered": rendered,
}
WANTED = tuple(
    Wanted(f"{name}.{figure}", most=most)
    for name in PICTURES
    for figure, most in (("ms", 25), ("size_ratio", 1.1))
)


def record() -> dict[str, Any]:
    task = Task(0, "000000-s42", "a red circle on a blue background", "", Sampling())
    model = ModelInfo("sd-v1-4", "5a" * 32, "sd-v1-4.safetensors")
    return image_record(task, model, RenderInfo("cpu", "bfloat16", "packed", 51, 2, 1.0))


def timed(encode: Callable[[], int]) -> tuple[float, int]:
    """Median milliseconds of one core, and the size in bytes."""
    seconds = []
    for _ in range(RUNS):
        began = time.thread_time()
        size = encode()
        seconds.append(time.thread_time() - began)
    return round(1000 * statistics.median(seconds), 1), size


def as_it_comes(pixels: np.ndarray) -> int:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.tell()


def main() -> int:
    whole: dict[str, Any] = {}
    about = record()
    for name, make in PICTURES.items():
        pixels = make()
        ms, size = timed(lambda pixels=pixels: len(encode_image(pixels, about, "png")))
        their_ms, their_size = timed(lambda pixels=pixels: as_it_comes(pixels))
        whole[name] = {
            "ms": ms,
            "pillow_ms": their_ms,
            "bytes": size,
            "size_ratio": round(size / their_size, 3),
        }
    print(json.dumps(judged(whole, WANTED), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
