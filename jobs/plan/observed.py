"""Speed as earlier jobs had it: the median seconds of an evaluation, by their records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.plan.calibration import Name, Seconds, Side
from jobs.plan.cost import PlanSummary

MOST_KINDS = 64
"""Kinds of speed that are kept of one job."""

MOST_VALUES = 10_000
"""Images of a kind whose seconds are taken."""

LEAST_ERROR = 0.05

ERROR_OF_ONE_JOB = 0.25
"""Relative error that is stated where only one job was seen: the same machine's speed moved by 19 %
from one run to the next (`python -m tests.bench.plans`).
"""


EMPTY_SHARE = 0.3
"""Share of a full batch's time that one takes with hardly a row in it: four rows of sixteen took
0.47 of it on two cores of a server (`python -m tests.bench.plans`).
"""


class Kind(NamedTuple):
    """A way of running: images of one kind take equally long on equal machines.

    rows: of a batch.
    """

    model: str
    device: str
    dtype: str
    execution: str
    width: int
    height: int
    rows: int


class ObservedSpeed(BaseModel):
    """Seconds of an evaluation in one job, with its share of decoding; see `Kind`. images: that
    were rendered.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    model: Name
    device: Name
    dtype: Name
    execution: Name
    width: Side
    height: Side
    rows: Annotated[int, Field(ge=1, le=1024)]
    images: Annotated[int, Field(ge=1)]
    evaluation_s: Seconds


class SpeedFold:
    """Gathers the speed of a job from its records. Those without timings, as of reused images, say
    nothing.
    """

    def __init__(self) -> None:
        self._seconds: dict[Kind, list[float]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take an image's record, as far as it is one."""
        one = _speed_of(record)
        if one is None:
            return
        kind = Kind(*(getattr(one, name) for name in Kind._fields))
        if kind not in self._seconds and len(self._seconds) == MOST_KINDS:
            return
        values = self._seconds.setdefault(kind, [])
        if len(values) < MOST_VALUES:
            values.append(one.evaluation_s)

    def speeds(self) -> list[ObservedSpeed]:
        """Speeds of the job, one for each kind of image in it."""
        return [
            ObservedSpeed(**kind._asdict(), images=len(values), evaluation_s=median(values))
            for kind, values in self._seconds.items()
        ]


def _speed_of(record: Mapping[str, Any]) -> ObservedSpeed | None:
    """The speed of one image; None if its record does not say."""
    same = ("device", "dtype", "execution", "width", "height")
    try:
        return ObservedSpeed(
            **{name: record[name] for name in same},
            model=record["model"]["name"],
            rows=record["batch_rows"],
            images=1,
            evaluation_s=record["timings_s"]["render"] / record["evaluations"],
        )
    except (KeyError, TypeError, ZeroDivisionError, ValidationError):
        return None


class Observed(NamedTuple):
    """Speed of one model by earlier jobs, on devices of one kind. sizes: by (width, height), and
    for each the rows of a batch and seconds of an evaluation. error: relative.
    """

    model: str
    device: str
    dtype: str
    execution: str
    jobs: int
    sizes: Mapping[tuple[int, int], tuple[int, float]]
    error: float


def observed(model: str, of_jobs: Iterable[Sequence[ObservedSpeed]]) -> Observed | None:
    """The speed of a model on the kind of device that has made most of its images; None where no
    job says.

    of_jobs: the speeds of each job.
    """
    by_device: dict[tuple[str, str, str], list[list[ObservedSpeed]]] = defaultdict(list)
    for speeds in of_jobs:
        own: dict[tuple[str, str, str], list[ObservedSpeed]] = defaultdict(list)
        for speed in speeds:
            if speed.model == model:
                own[speed.device, speed.dtype, speed.execution].append(speed)
        for device, found in own.items():
            by_device[device].append(found)
    if not by_device:
        return None
    device = max(by_device, key=lambda d: sum(s.images for job in by_device[d] for s in job))
    jobs = by_device[device]
    by_size: dict[tuple[int, int], list[ObservedSpeed]] = defaultdict(list)
    for speed in (speed for job in jobs for speed in job):
        by_size[speed.width, speed.height].append(speed)
    sizes = {size: _together(found) for size, found in by_size.items()}
    return Observed(model, *device, len(jobs), sizes, _error(list(by_size.values())))


def _together(speeds: Sequence[ObservedSpeed]) -> tuple[int, float]:
    """Rows of a batch, and seconds of an evaluation: of those rows that most images had."""
    images: dict[int, int] = defaultdict(int)
    for speed in speeds:
        images[speed.rows] += speed.images
    rows = max(images, key=lambda count: images[count])
    return rows, median(speed.evaluation_s for speed in speeds if speed.rows == rows)


def _error(by_size: Sequence[Sequence[ObservedSpeed]]) -> float:
    """Half of what jobs differ by in the middle, of the size where they differ most."""
    errors = [LEAST_ERROR]
    for speeds in by_size:
        values = [speed.evaluation_s for speed in speeds]
        if len(values) == 1:
            errors.append(ERROR_OF_ONE_JOB)
            continue
        low, _, high = quantiles(values, n=4, method="inclusive")
        errors.append((high - low) / 2 / median(values))
    return max(errors)


def seconds_by(summary: PlanSummary, speed: Observed, *, workers: int, shards: int) -> float:
    """Seconds of rendering, without the loading of models; see `jobs.plan.duration.seconds_of`."""
    alone = 0.0
    for shape, images in summary.shapes.items():
        work = summary.work[shape]
        rows, evaluation_s, larger = _nearest(shape, speed)
        held = max(1.0, rows / larger)  # rows of a batch of such images
        # However few images there are, the evaluations of one are made one after the other.
        batches = max(work.rows / held, work.evaluations / images)
        filled = work.rows / batches / held
        share = EMPTY_SHARE + (1 - EMPTY_SHARE) * filled
        alone += batches * share * evaluation_s * larger * held / rows
    return alone * math.ceil(shards / workers) / max(1, shards)


def _nearest(shape: tuple[int, int], speed: Observed) -> tuple[int, float, float]:
    """Rows and seconds of the size that is nearest by area, and how much larger the shape is."""

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] * size[1] / (shape[0] * shape[1])))

    nearest = min(speed.sizes, key=distance)
    rows, evaluation_s = speed.sizes[nearest]
    return rows, evaluation_s, shape[0] * shape[1] / (nearest[0] * nearest[1])
