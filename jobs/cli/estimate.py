"""The time and the money of a plan, by what was measured on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError
from jobs.manifest.load import Manifest
from jobs.plan.calibration import Speed, read_calibration
from jobs.plan.cost import PlanSummary
from jobs.plan.duration import seconds_of
from jobs.settings import Settings
from jobs.terminal.figures import duration

MOST_WORKERS = 100_000


@dataclass(frozen=True)
class Estimate:
    """seconds: of the job on so many workers, without loading. by: what was measured. price: of a
    worker an hour, in whatever currency; None where nobody asks.
    """

    seconds: float
    workers: int
    by: Speed
    price: float | None

    @property
    def cost(self) -> float | None:
        """Money for all workers until the last is done, in the price's currency."""
        return None if self.price is None else self.price * self.workers * self.seconds / 3600

    def to_json(self) -> dict[str, Any]:
        by = self.by
        return {
            "seconds": round(self.seconds, 3),
            "workers": self.workers,
            "cost": None if self.cost is None else round(self.cost, 6),
            "measured": {
                **{name: getattr(by, name) for name in ("model", "device", "dtype", "execution")},
                "at": by.measured,
            },
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """Labels and texts for people."""
        many = f"{self.workers:,} workers" if self.workers > 1 else "one worker"
        by = f"{self.by.device}, {self.by.dtype}, measured {self.by.measured[:10]}"
        yield "time", f"about {duration(self.seconds)} on {many} like this machine ({by})"
        if self.cost is not None:
            yield "money", f"about {self.cost:,.2f} at {self.price:g} an hour for each"


def estimate(
    job: Manifest, cost: PlanSummary, shards: int, workers: int | None, price: float | None
) -> Estimate | None:
    """The estimate, where the job's model was measured here (`sdbatch bench`); else None.

    cost: of the images that are to be rendered. shards: of the job.
    Raises `InputError` where workers or a price are given all the same.
    """
    asked = workers is not None or price is not None
    if len(job.models) > 1:
        if asked:
            raise InputError("time and money are estimated for jobs of one model only")
        return None
    settings = Settings.from_env(os.environ) if asked else _settings()
    speeds = [] if settings is None else read_calibration(settings.cache).speeds
    speed = next((one for one in speeds if one.model == job.model and one.sizes), None)
    if speed is None:
        if asked:
            raise InputError(
                f"model {job.model} was not measured here, and time goes by that; "
                f"sdbatch bench --model {job.model} does so in a minute or two"
            )
        return None
    count = 1 if workers is None else workers
    seconds = seconds_of(cost, speed, workers=count, shards=shards)
    return Estimate(seconds, count, speed, price)


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
