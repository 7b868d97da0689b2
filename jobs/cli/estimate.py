"""Time and money of a plan: by earlier jobs of the store, else by what was measured here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError
from jobs.plan.calibration import Speed, read_calibration
from jobs.plan.cost import PlanSummary
from jobs.plan.duration import seconds_of
from jobs.plan.observed import Observed, ObservedSpeed, observed, seconds_by
from jobs.settings import Settings
from jobs.terminal.figures import duration

MOST_WORKERS = 100_000

ERROR_OF_BENCH = 0.25
"""Relative error that is stated of plans by `sdbatch bench`: ten of them were within 23 %
(`python -m tests.bench.plans`).
"""


@dataclass(frozen=True)
class Estimate:
    """seconds: of the job on so many workers, without loading. by: for each model what is known of
    its speed. price: of a worker an hour, in whatever currency; None where nobody asks.
    """

    seconds: float
    workers: int
    by: Sequence[Speed | Observed]
    price: float | None

    @property
    def cost(self) -> float | None:
        """Money for all workers until the last is done, in the price's currency."""
        return None if self.price is None else self.price * self.workers * self.seconds / 3600

    @property
    def error(self) -> float:
        """By how much it may be wrong: a share of it."""
        errors = (one.error if isinstance(one, Observed) else ERROR_OF_BENCH for one in self.by)
        return max(errors, default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "error": round(self.error, 3),
            "workers": self.workers,
            "cost": None if self.cost is None else round(self.cost, 6),
            "by": [_basis(one) for one in self.by],
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """Labels and texts for people."""
        many = f"{self.workers:,} workers" if self.workers > 1 else "one worker"
        about = f"{duration(self.seconds)} ± {self.error:.0%}"
        by = f" ({_told(self.by[0])})" if self.by else ""
        yield "time", f"about {about} on {many}{by}"
        if self.cost is not None:
            yield "money", f"about {self.cost:,.2f} at {self.price:g} an hour for each"


def _basis(by: Speed | Observed) -> dict[str, Any]:
    named = {name: getattr(by, name) for name in ("model", "device", "dtype", "execution")}
    if isinstance(by, Observed):
        return {**named, "from": "records", "jobs": by.jobs}
    return {**named, "from": "bench", "at": by.measured}


def _told(by: Speed | Observed) -> str:
    device = f"{by.device}, {by.dtype}"
    if isinstance(by, Observed):
        return f"{device}, as {by.jobs:,} earlier {'jobs' if by.jobs > 1 else 'job'} had"
    return f"like this machine: {device}, measured {by.measured[:10]}"


def estimate(
    costs: Mapping[str, PlanSummary],
    shards: int,
    earlier: Sequence[Sequence[ObservedSpeed]],
    workers: int | None,
    price: float | None,
) -> Estimate | None:
    """The estimate, where the speed of the job's models is known; else None.

    costs: of the images that are to be rendered, by model. shards: of the job. earlier: speeds of
    the store's earlier jobs.
    Raises `InputError` where workers or a price are given all the same.
    """
    asked = workers is not None or price is not None
    settings = Settings.from_env(os.environ) if asked else _settings()
    measured = [] if settings is None else read_calibration(settings.cache).speeds
    count = 1 if workers is None else workers
    seconds, by = 0.0, list[Speed | Observed]()
    for model, cost in costs.items():
        if not cost.images:  # all of them are there
            continue
        speed = observed(model, earlier) or _measured(model, measured)
        if speed is not None:
            seconds += _seconds(cost, speed, count, shards)
            by.append(speed)
        elif asked:
            raise InputError(
                f"the speed of model {model} is not known: no earlier job of the store tells it, "
                f"nor was it measured here; sdbatch bench --model {model} does so in two minutes"
            )
        else:
            return None
    return Estimate(seconds, count, by, price)


def _measured(model: str, speeds: Sequence[Speed]) -> Speed | None:
    return next((one for one in speeds if one.model == model and one.sizes), None)


def _seconds(cost: PlanSummary, speed: Speed | Observed, workers: int, shards: int) -> float:
    if isinstance(speed, Observed):
        return seconds_by(cost, speed, workers=workers, shards=shards)
    return seconds_of(cost, speed, workers=workers, shards=shards)


def _settings() -> Settings | None:
    """The settings, if they are right: a plan without time needs none."""
    try:
        return Settings.from_env(os.environ)
    except InputError:
        return None


def check_price(price: float | None) -> None:
    """Raises `InputError` for one that is no price."""
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise InputError(f"--price: found {price:g}, expected a number of at least 0")
