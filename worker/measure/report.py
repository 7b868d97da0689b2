"""The report of `sdbatch bench`: a table for people, a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.formatting import size
from jobs.plan.calibration import SizeSpeed, Speed
from worker.measure.speed import Measured


@dataclass
class BenchReport:
    """model, device, dtype, execution, threads: what was measured, and how it is run.

    load_s: from the files to a model that is ready. product_rate: operations a second of large
    matrix products, the limit. row_operations: of a row of an evaluation, by (width, height).
    failed: why sizes could not be rendered. memory_bytes: the most that was held: on a GPU, or by
    the process.
    """

    model: str
    device: str
    dtype: str
    execution: str
    threads: int
    steps: Sequence[int]  # of an image, for the figures that depend on them
    load_s: float
    product_rate: float
    measured: list[Measured] = field(default_factory=list)
    row_operations: dict[tuple[int, int], int] = field(default_factory=dict)
    failed: dict[tuple[int, int], str] = field(default_factory=dict)
    memory_bytes: int = 0

    def speed(self, digest: str, when: str) -> Speed:
        """The measurement as it is kept for plans."""
        return Speed(
            model=self.model,
            digest=digest,
            device=self.device,
            dtype=self.dtype,
            execution=self.execution,
            threads=self.threads,
            measured=when,
            sizes=[one.speed for one in self.measured],
        )

    def of_limit(self, speed: SizeSpeed) -> float:
        """Share of the limit that a full batch reaches."""
        operations = speed.rows * self.row_operations[speed.width, speed.height]
        return operations / speed.evaluation_s / self.product_rate

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "execution": self.execution,
            "threads": self.threads,
            "load_s": round(self.load_s, 3),
            "first_images_s": round(self.measured[0].first_s, 3) if self.measured else None,
            "memory_bytes": self.memory_bytes,
            "product_tflops": round(self.product_rate / 1e12, 4),
            "sizes": [self._size_json(one) for one in self.measured],
            "failed": [
                {"width": width, "height": height, "error": why}
                for (width, height), why in self.failed.items()
            ],
        }

    def _size_json(self, measured: Measured) -> dict[str, Any]:
        speed = measured.speed
        figures = speed.model_dump()
        return {
            **{name: round(value, 6) for name, value in figures.items()},
            "evaluations_measured": measured.evaluations,
            "of_limit": round(self.of_limit(speed), 4),
            "memory_bytes": measured.memory_bytes,
            "images_per_s": {str(n): round(speed.images_per_s(n), 4) for n in self.steps},
            "image_s": {str(n): round(speed.image_s(n), 4) for n in self.steps},
        }

    def head(self) -> Iterator[tuple[str, str]]:
        """Lines before the table, with their labels."""
        yield "model", f"{self.model}, {self.dtype}, {self.execution}"
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        yield "device", f"{self.device}{threads}"
        first = f", first images after {_short(self.measured[0].first_s)}" if self.measured else ""
        yield "start", f"loaded in {_short(self.load_s)}{first}"
        yield "memory", f"{size(self.memory_bytes)} at most"
        rate = self.product_rate / 1e12
        yield "limit", f"{rate:.3g} TFLOP/s of {self.dtype}, what large matrix products reach"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows."""
        first = self.steps[0]
        headers = ["size", "rows", "evaluation", "of limit"]
        headers += [f"{steps} steps" for steps in self.steps]
        rows = []
        for speed in (measured.speed for measured in self.measured):
            row = [f"{speed.width}x{speed.height}", str(speed.rows), _short(speed.evaluation_s)]
            row.append(f"{self.of_limit(speed):.0%}")
            row += [f"{speed.images_per_s(steps):.3g}/s" for steps in self.steps]
            rows.append([*row, _short(speed.image_s(first))])
        return [*headers, "one image"], rows

    def foot(self) -> Iterator[str]:
        """Lines after the table."""
        for (width, height), why in self.failed.items():
            yield f"{width}x{height}: {why}"
        if self.measured:
            yield ""
            yield "steps: images a second of full batches, with guidance, one evaluation a step"
            yield f"one image: alone, of {self.steps[0]} steps, until it is a PNG"


def _short(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"
