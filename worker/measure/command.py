"""`sdbatch bench`: how fast this machine renders, kept for plans."""

from __future__ import annotations

import datetime
import re
import resource
import time
from collections.abc import Sequence

import torch

from jobs.errors import InputError
from jobs.formatting import quote
from jobs.terminal.console import Terminal
from sd_core.device import device_kind
from sd_core.spec import LATENT_FACTOR, Sampling
from worker.checkpoint.load import ModelChoice, check_there, load
from worker.measure.limit import product_rate, row_operations
from worker.measure.report import BenchReport
from worker.measure.speed import SpeedMeasurement

Size = tuple[int, int]

_SIZE = re.compile(r"(\d{1,5})[x×](\d{1,5})")


def parse_sizes(given: Sequence[str]) -> list[Size]:
    """Sizes as people write them, `512x768`. Raises `InputError`."""
    sizes = []
    for text in given:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise InputError(f"--size: found {quote(text)}, expected WIDTHxHEIGHT, as in 512x768")
        width, height = int(match[1]), int(match[2])
        try:
            Sampling(width=width, height=height)
        except ValueError as error:
            raise InputError(f"--size {text}: {error}") from None
        sizes.append((width, height))
    return list(dict.fromkeys(sizes))


def common_sizes(native: int) -> list[Size]:
    """A model's own size, and others that people ask it for."""
    large = native * 3 // 2 // LATENT_FACTOR * LATENT_FACTOR
    return [(native, native), (native, large), (large, large)]


def bench(
    choice: ModelChoice, sizes: Sequence[Size], steps: Sequence[int], terminal: Terminal
) -> tuple[BenchReport, str]:
    """Loads and measures a model; the report, and the digest of its weights.

    sizes: common ones where there are none. Raises `ModelError`; a size that cannot be rendered is
    in the report.
    """
    check_there(choice)
    began = time.monotonic()
    with terminal.status(f"loading {choice.name}"):
        model = load(choice)
    load_s = time.monotonic() - began
    with terminal.status("measuring matrix products"):
        rate = product_rate(model.device, model.dtype)
    report = BenchReport(
        model=choice.name,
        device=device_kind(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        execution=model.execution,
        threads=torch.get_num_threads(),
        steps=steps,
        load_s=load_s,
        product_rate=rate,
    )
    with SpeedMeasurement(model) as measurement:
        for width, height in sizes or common_sizes(model.spec.native_size):
            with terminal.status(f"measuring {width}x{height}"):
                try:
                    report.measured.append(measurement.at(width, height))
                except (ArithmeticError, MemoryError, RuntimeError) as error:
                    report.failed[width, height] = f"{error}".partition("\n")[0]
                    continue
            shape = height // LATENT_FACTOR, width // LATENT_FACTOR
            report.row_operations[width, height] = row_operations(model.spec, shape)
            # Clocks move, and so do neighbours: the limit is the best that was seen.
            report.product_rate = max(report.product_rate, product_rate(model.device, model.dtype))
    on_gpu = [m.memory_bytes for m in report.measured if m.memory_bytes is not None]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report.memory_bytes = max(on_gpu, default=held)
    return report, model.digest


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
