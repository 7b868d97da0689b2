"""Budgets: how much of a job may be rendered before it rests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MOST_HOURS = 1e6
MOST_MONEY = 1e9


@dataclass(frozen=True)
class Budget:
    """Limits of a job; None for what is not limited. Raises `ValueError` for one that is none.

    hours: of all its workers together, above 0. money: for these, at `price` an hour, in whatever
    currency. images: done, at least 1.
    """

    hours: float | None = None
    money: float | None = None
    price: float | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("hours", MOST_HOURS), ("money", MOST_MONEY), ("price", MOST_MONEY)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise ValueError(f"{name} is {value!r:.40}, expected a number above 0")
        if self.images is not None and self.images < 1:
            raise ValueError(f"images is {self.images!r:.40}, expected at least 1")

    def spent(self, *, worker_s: float, images: int) -> str | None:
        """The limit that is reached, for people; None while none is.

        worker_s: seconds of workers. images: done.
        """
        hours = worker_s / 3600
        if self.images is not None and images >= self.images:
            return f"{self.images:,} images"
        if self.hours is not None and hours >= self.hours:
            return f"{self.hours:g} hours of workers"
        if self.money is not None and self.price is not None and hours * self.price >= self.money:
            return f"{self.money:g} at {self.price:g} an hour"
        return None

    def to_json(self) -> dict[str, Any]:
        """The limits that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}
