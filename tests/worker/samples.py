"""A task, a model and pictures for tests that need some and do not care which."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.task import Task
from sd_core.spec import Sampling
from worker.output.record import ModelInfo, RenderInfo

MODEL = ModelInfo("demo", "5a" * 32, "/home/somebody/models/secret-project/demo.safetensors")
RENDER = RenderInfo("cpu", "float32", "packed", evaluations=51, batch_rows=4, render_s=1.25)


def a_task(index: int = 0, **changes: Any) -> Task:
    """changes: of the task or of its sampling."""
    own = {name: changes.pop(name) for name in list(changes) if name in Task.__dataclass_fields__}
    sampling = Sampling(**{"width": 64, "height": 64, **changes})
    values = {"name": f"{index:06d}-s{sampling.seed}", "prompt": "a red circle", "negative": ""}
    return Task(index=index, sampling=sampling, **{**values, **own})


def pixels(seed: int = 0, width: int = 64, height: int = 64) -> NDArray[np.uint8]:
    """(H, W, 3): smooth colours, so that lossy formats stay close."""
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    phases = np.random.default_rng(seed).random(3) * 6
    waves = [np.sin(phase + 3 * x + 2 * y) for phase in phases]
    return np.stack([(127.5 + 127 * wave).astype(np.uint8) for wave in waves], axis=-1)


def resaved(data: bytes, size: tuple[int, int] | None = None, *, kept: bool = True) -> bytes:
    """A picture as another program would write it, with its texts or without."""
    with Image.open(io.BytesIO(data)) as image:
        info = PngInfo()
        for name, text in image.info.items() if kept else ():
            info.add_itxt(name, text)
        buffer = io.BytesIO()
        image.resize(size or image.size).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
