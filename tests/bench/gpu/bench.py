"""Shared by the sections: models, inputs of an evaluation, clocks."""

from __future__ import annotations

import copy
import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sd_core.execution import make_ready
from sd_core.model.diffusion import LatentDiffusion, Provenance
from sd_core.model.layers import KeysValues
from sd_core.spec import LATENT_FACTOR, ModelSpec, TextSpec, UNetSpec, VAESpec
from tests.bench.measure import random_model

DTYPES = ("float16", "bfloat16", "float32")
SMALL = ModelSpec(
    unet=UNetSpec(channels=32, context_dim=128),
    vae=VAESpec(channels=32),
    text=TextSpec(width=128, layers=2, heads=2, mlp_width=256),
    native_size=128,
)
Call = Callable[[], object]


class Bench:
    """quick: a small model and few repeats. seconds: that the whole run may take.

    report: name of a section -> what it found. gflop_row, gflop_decode: arithmetic of one row of an
    evaluation and of one decode; peak_tflops: rate of large products, the limit: of `machine`.
    """

    def __init__(self, device: str, dtype: str | None, *, quick: bool, seconds: float) -> None:
        self.began = time.monotonic()
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.dtype: torch.dtype = getattr(torch, dtype or ("float16" if self.cuda else "float32"))
        self.quick = quick
        self.spec = SMALL if quick else ModelSpec()
        self.side = self.spec.native_size // LATENT_FACTOR
        self.rows = (2, 4) if quick else (2, 4, 8, 16)
        self.report: dict[str, Any] = {}
        self.gflop_row = self.gflop_decode = self.peak_tflops = 0.0
        self._seconds = seconds
        self.ready = lru_cache(maxsize=2)(self._ready)

    @property
    def left_s(self) -> float:
        return self._seconds - (time.monotonic() - self.began)

    @property
    def execution(self) -> str:
        """The way of running that is measured: what workers take on a GPU."""
        return "graphed" if self.cuda else "eager"

    @property
    def model(self) -> LatentDiffusion:
        return self.ready(str(self.dtype).removeprefix("torch."), self.execution)

    def _ready(self, dtype: str, execution: str) -> LatentDiffusion:
        model = copy.deepcopy(self.reference()).to(self.device, getattr(torch, dtype))
        model.provenance = Provenance("random", "memory", "0" * 64)
        return make_ready(model, execution)

    @lru_cache(maxsize=1)  # noqa: B019 - there is one bench in a process
    def reference(self) -> LatentDiffusion:
        """The same weights in float32 on the CPU."""
        return random_model(self.spec, torch.float32)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def ms(self, call: Call, *, least_s: float = 0.25, most: int = 200) -> float:
        """Milliseconds of a call, many in a row: launches count where the device waits for them."""
        call()
        self.sync()
        began = time.perf_counter()
        call()
        self.sync()
        once = max(1e-6, time.perf_counter() - began)
        count = 3 if self.quick else max(3, min(most, int(least_s / once)))
        if not self.cuda:
            return self.wall_ms(call, count)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return round(start.elapsed_time(end) / count, 4)

    def wall_ms(self, call: Call, count: int = 7) -> float:
        """Median milliseconds until the device has ended a call."""
        return self._median(call, count, after=self.sync)

    def cpu_ms(self, call: Call, count: int = 20) -> float:
        """Median milliseconds until a call returns, from an idle device: what launching costs."""
        return self._median(call, count, after=lambda: None)

    def _median(self, call: Call, count: int, after: Call) -> float:
        times = []
        for _ in range(3 if self.quick else count):
            self.sync()
            began = time.perf_counter()
            call()
            after()
            times.append(time.perf_counter() - began)
        self.sync()
        return round(1e3 * statistics.median(times), 4)

    @contextmanager
    def peak_bytes(self) -> Iterator[Callable[[], int]]:
        """Most memory that was taken on a GPU inside, beside what was there before."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before


class Inputs:
    """Inputs of an evaluation of so many rows, at fixed addresses; no two rows are alike."""

    def __init__(self, bench: Bench, model: LatentDiffusion, rows: int, seed: int = 1) -> None:
        draw = torch.Generator().manual_seed(seed)
        spec, side = model.spec, bench.side
        self.model = model
        self.latents = torch.randn(rows, 4, side, side, generator=draw).to(model.device)
        states = torch.randn(rows, spec.text.length, spec.unet.context_dim, generator=draw)
        self.times = model.embed_timesteps(torch.linspace(990.0, 10.0, rows)).clone()
        self.contexts: list[KeysValues] = [
            (keys.clone(memory_format=torch.contiguous_format), values.clone())
            for keys, values in model.project_context(states)
        ]

    def evaluate(self) -> Tensor:
        return self.model.denoise(self.latents, self.times, self.contexts)

    def rows_of(self, order: Tensor) -> Inputs:
        """The rows of these places, in this order."""
        order = order.to(self.latents.device)
        found = copy.copy(self)
        found.latents, found.times = self.latents[order], self.times[order]
        found.contexts = [(keys[order], values[order]) for keys, values in self.contexts]
        return found


def graph_of(call: Call) -> tuple[Callable[[], None], Any]:
    """The call as a CUDA graph, and the place of its result: peers are measured so too."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def sha(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().cpu().numpy().tobytes()).hexdigest()[:16]


def relative(mine: Tensor, wanted: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    mine, wanted = mine.double().cpu(), wanted.double().cpu()
    return float(f"{((mine - wanted).norm() / wanted.norm()).item():.3e}")
