"""How long a job takes on workers like a measured machine, by what its images need."""

from __future__ import annotations

import math

from jobs.plan.calibration import SizeSpeed, Speed
from jobs.plan.cost import PlanSummary, ShapeWork


def seconds_of(summary: PlanSummary, speed: Speed, *, workers: int, shards: int) -> float:
    """Seconds of rendering, without the loading of models.

    speed: of each worker. shards: of the job, which workers take one at a time; so more workers
    than shards help no more.
    """
    work, shapes = summary.work, summary.shapes
    alone = sum(_seconds(shape, images, work[shape], speed) for shape, images in shapes.items())
    return alone * math.ceil(shards / workers) / max(1, shards)


def _seconds(shape: tuple[int, int], images: int, work: ShapeWork, speed: Speed) -> float:
    """Seconds of all images of a shape on one worker. shape: (width, height) in pixels."""
    size = _nearest(shape, speed)
    larger = shape[0] * shape[1] / (size.width * size.height)
    evaluation_s = work.rows * _row_s(size, images * work.rows_at_once, larger)
    return larger * (evaluation_s + images * size.decode_s)


def _row_s(size: SizeSpeed, rows: float, larger: float) -> float:
    """Seconds of a row, at the measured size. A job that fills no batch has rows that take longer:
    an evaluation is between that of two rows and that of all.

    rows: of all its images at once. larger: the area of these to that of the measured ones.
    """
    held = max(2.0, size.rows / larger)
    together = min(held, max(1.0, rows))
    if together >= held:
        return size.evaluation_s / size.rows
    full_s = size.evaluation_s / larger
    slope = (full_s - size.alone_evaluation_s) / (held - 2)
    return (size.alone_evaluation_s + slope * (together - 2)) / together


def _nearest(shape: tuple[int, int], speed: Speed) -> SizeSpeed:
    """The measured size that is nearest by area."""

    def distance(size: SizeSpeed) -> float:
        return abs(math.log(size.width * size.height / (shape[0] * shape[1])))

    return min(speed.sizes, key=distance)
