"""Figures as they are wanted, beside those that were measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Wanted:
    """figure: where it is in a report, such as `new.seconds`. One of least and most is given."""

    figure: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


def judged(report: Mapping[str, Any], wanted: Sequence[Wanted]) -> dict[str, Any]:
    """The report, with what was wanted in it. Raises `KeyError` for a figure that it lacks."""
    verdicts: dict[str, dict[str, Any]] = {}
    for want in wanted:
        value = reduce(lambda part, name: part[name], want.figure.split("."), report)
        limits = {"least": want.least, "most": want.most}
        verdicts[want.figure] = {
            "measured": value,
            **{name: limit for name, limit in limits.items() if limit is not None},
            "met": want.met(value),
        }
    return {**report, "wanted": verdicts}


def missed(report: Mapping[str, Any]) -> list[str]:
    """What was wanted and not met, at any depth, a line each."""
    lines = []
    for name, part in report.items():
        if name == "wanted":
            lines += [f"{figure}: {v}" for figure, v in part.items() if not v["met"]]
        elif isinstance(part, Mapping):
            lines += [f"{name}.{line}" for line in missed(part)]
    return lines


def exit_code(report: Mapping[str, Any], *, check: bool) -> int:
    """1 if something was missed and that is to be checked; it is said on standard error."""
    lines = missed(report) if check else []
    for line in lines:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if lines else 0
