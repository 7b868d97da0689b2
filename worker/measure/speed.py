"""The speed of a model at one size, measured through the engine that jobs are rendered by."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from jobs.plan.calibration import SizeSpeed
from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import Rendered, Request
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import Sampling
from worker.output.png import png_file

LEAST_EVALUATIONS, MOST_EVALUATIONS = 3, 30
ABOUT_S = 2.0
"""Seconds that the evaluations of a full batch, and of an image alone, are measured for, or longer
where fewer than the least of them take longer.
"""

WARM = 3
"""Evaluations before those that count: programs are made, and row counts compared with each other
(`sd_core.engine.batch_rows`).
"""


@dataclass(frozen=True)
class Measured:
    """speed: at this size. first_s: from the request to the pixels of the first images of this size
    here, of few steps. evaluations: how many of a full batch counted. memory_bytes: the most that
    was held on a GPU; None on a CPU, where it is that of the process.
    """

    speed: SizeSpeed
    first_s: float
    evaluations: int
    memory_bytes: int | None


@dataclass(frozen=True)
class _Round:
    images: list[Rendered]
    evaluations_s: list[float]
    decode_s: float  # of an image


class SpeedMeasurement:
    """Measures one model at several sizes, one after the other. A context manager."""

    def __init__(self, model: LatentDiffusion) -> None:
        self._model = model
        self._batches: list[Batch] = []
        self._engine = Engine(model, on_batch=self._batches.append)

    def __enter__(self) -> SpeedMeasurement:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._engine.close(cancel=kind is not None)

    def at(self, width: int, height: int) -> Measured:
        """Raises what rendering an image of this size raises, such as `MemoryError`."""
        on_gpu = self._model.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._model.device)
        rows = self._engine.rows_of(_sampling(width, height, 1))
        images = self._engine.images_of(_sampling(width, height, 1))
        began = time.monotonic()
        full = self._render(images, width, height, WARM)
        first_s = time.monotonic() - began
        full = self._render(images, width, height, _fitting(full.evaluations_s[-1]))
        alone = self._render(1, width, height, WARM)
        alone = self._render(1, width, height, _fitting(alone.evaluations_s[-1]))
        speed = SizeSpeed(
            width=width,
            height=height,
            rows=rows,
            evaluation_s=statistics.median(full.evaluations_s),
            decode_s=full.decode_s,
            encode_s=_encode_s(full.images[0]),
            alone_evaluation_s=statistics.median(alone.evaluations_s),
            alone_decode_s=alone.decode_s,
        )
        most = torch.cuda.max_memory_reserved(self._model.device) if on_gpu else None
        return Measured(speed, first_s, len(full.evaluations_s), most)

    def _render(self, images: int, width: int, height: int, steps: int) -> _Round:
        """Renders so many images together."""
        self._batches.clear()
        busy_s = self._engine.busy_s()
        request = Request("a photograph of a lighthouse at dusk", _sampling(width, height, steps))
        futures = [self._engine.submit(request) for _ in range(images)]
        rendered = [future.result() for future in futures]
        decoding_s = self._engine.busy_s() - busy_s - sum(b.seconds for b in self._batches)
        rows = max(batch.rows for batch in self._batches)
        # The first may have begun before the others were there.
        evaluations_s = [batch.seconds for batch in self._batches if batch.rows == rows]
        return _Round(rendered, evaluations_s, max(1e-6, decoding_s / images))


def _sampling(width: int, height: int, steps: int) -> Sampling:
    # One evaluation a step, and the least work beside it.
    return Sampling(sampler="ddim", steps=steps, width=width, height=height, seed=1)


def _fitting(seconds: float) -> int:
    """Evaluations to measure, of so many seconds each."""
    return max(LEAST_EVALUATIONS, min(MOST_EVALUATIONS, int(ABOUT_S / max(seconds, 1e-6))))


def _encode_s(rendered: Rendered) -> float:
    began = time.monotonic()
    png_file(rendered.pixels)
    return time.monotonic() - began
