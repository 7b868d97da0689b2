"""The cost of a job: evaluations of the model, batch rows, disk space."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from jobs.task import Task
from sd_core.sampling.samplers import evaluations, guiding_rows, rows
from sd_core.spec import Sampling

_BYTES_PER_PIXEL = {"png": 1.6, "jpeg": 0.4, "webp": 0.25}
"""Bytes a pixel of photographs from Stable Diffusion at quality 95; flat drawings take a tenth. An
estimate for buying disks, good to a factor of two."""

_BYTES_PER_IMAGE = 3000
"""Metadata inside the image, its record and its line of the plan."""


@dataclass
class ShapeWork:
    """Work of the images of one shape. evaluations, rows: of the model, over all of them."""

    evaluations: int = 0
    rows: int = 0

    @property
    def rows_at_once(self) -> float:
        """Rows of an image in a batch, on average."""
        return self.rows / self.evaluations if self.evaluations else 0.0


@dataclass
class PlanSummary:
    """Cost of a job.

    images: how many.
    evaluations: of the model, over all images.
    rows: of the model's batches: an evaluation is one, and one for each kind of guidance.
    shapes: (width, height) in pixels -> images. work: by the same.
    samplers: name -> images.
    inputs: distinct init images and masks.
    output_bytes: an estimate.
    first, last: the first and last task; None if there is none.
    """

    images: int = 0
    evaluations: int = 0
    rows: int = 0
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    work: dict[tuple[int, int], ShapeWork] = field(default_factory=dict)
    samplers: Counter[str] = field(default_factory=Counter)
    inputs: int = 0
    output_bytes: int = 0
    first: Task | None = None
    last: Task | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; shapes are a list, the most frequent first."""
        return {
            "images": self.images,
            "evaluations": self.evaluations,
            "rows": self.rows,
            "shapes": [
                {"width": width, "height": height, "images": count}
                for (width, height), count in self.shapes.most_common()
            ],
            "samplers": dict(self.samplers.most_common()),
            "inputs": self.inputs,
            "output_bytes": self.output_bytes,
            "first": None if self.first is None else self.first.to_json(),
            "last": None if self.last is None else self.last.to_json(),
        }


_MAX_KINDS = 10_000  # a .csv can set its own guidance in a million rows

_evaluations = lru_cache(maxsize=10_000)(evaluations)
_rows = lru_cache(maxsize=10_000)(rows)
_WHOLE = Sampling.guidance_from, Sampling.guidance_to


def evaluations_of(task: Task) -> int:
    """Model evaluations that the task's image takes."""
    sampling = task.sampling
    strength = None if task.init_image is None else sampling.strength
    return _evaluations(sampling.sampler, sampling.steps, strength, sampling.strength_rule)


def rows_of(task: Task) -> int:
    """Batch rows that the task's image takes, with one prompt."""
    sampling = task.sampling
    strength = None if task.init_image is None else sampling.strength
    if (sampling.guidance_from, sampling.guidance_to) == _WHOLE:  # of most, and so quicker
        return evaluations_of(task) * (1 + guiding_rows(sampling))
    return _rows(replace(sampling, seed=0), strength)


class CostFold:
    """Adds up what tasks will cost, one at a time."""

    def __init__(self) -> None:
        self._summary = PlanSummary()
        self._inputs: set[str] = set()
        # Tasks differ mostly in prompt and seed: what costs the same is counted, added up later.
        self._kinds: Counter[tuple[Any, ...]] = Counter()

    def add(self, task: Task) -> None:
        summary, sampling = self._summary, task.sampling
        if summary.first is None:
            summary.first = task
        summary.last = task
        if task.init_image is not None:
            self._inputs.add(task.init_image)
            if task.mask is not None:
                self._inputs.add(task.mask)
        kind = sampling.sampler, evaluations_of(task), rows_of(task)
        self._kinds[*kind, sampling.width, sampling.height, task.format] += 1
        if len(self._kinds) > _MAX_KINDS:
            self._settle()

    def summary(self) -> PlanSummary:
        """The cost of all tasks so far."""
        self._settle()
        self._summary.inputs = len(self._inputs)
        return self._summary

    def _settle(self) -> None:
        summary = self._summary
        for kind, images in self._kinds.items():
            sampler, evaluated, rows, width, height, format = kind
            summary.images += images
            summary.evaluations += images * evaluated
            summary.rows += images * rows
            summary.shapes[width, height] += images
            work = summary.work.setdefault((width, height), ShapeWork())
            work.evaluations += images * evaluated
            work.rows += images * rows
            summary.samplers[sampler] += images
            image_bytes = _BYTES_PER_PIXEL[format] * width * height + _BYTES_PER_IMAGE
            summary.output_bytes += images * round(image_bytes)
        self._kinds.clear()
