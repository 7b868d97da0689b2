"""What the benchmarks of the model share: random models, medians of interleaved runs."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from sd_core.demo import DEMO_SPEC
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import ModelSpec

SPECS = {"v1": ModelSpec(), "demo": DEMO_SPEC}

Call = Callable[[], object]

NOISE = 1_000_003  # a prime, so that no two rows of a weight are alike


def random_module(build: Callable[[], nn.Module], dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """With random weights of this type only, never in another. They repeat a short noise, which
    is far quicker to make than 860 million numbers and takes a layer as long.
    """
    with torch.device("meta"):
        module = build()
    module = module.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(seed))
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            # Keeps the size of what goes through a layer, so that the numbers stay ordinary.
            scaled = (noise * weight[0].numel() ** -0.5).to(dtype)
            times = -(-weight.numel() // NOISE)
            weight.copy_(scaled.repeat(times)[: weight.numel()].view_as(weight))
        else:  # only norms have weights of one axis
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
    return module


def random_model(spec: ModelSpec, dtype: torch.dtype) -> LatentDiffusion:
    model = random_module(lambda: LatentDiffusion(spec), dtype)
    assert isinstance(model, LatentDiffusion)
    model.text.transformer.embeddings.position_ids = torch.arange(spec.text.length)[None]
    return model


def interleaved(calls: Mapping[str, Call], runs: int) -> dict[str, float]:
    """Median seconds of each, which take turns, after one call of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compared(values: Mapping[str, float], digits: int = 4) -> dict[str, float]:
    """The values, and ours over each peer's."""
    ratios = {
        f"ratio_{name}": round(values["sdbatch"] / value, 3)
        for name, value in values.items()
        if name != "sdbatch"
    }
    return {name: round(value, digits) for name, value in values.items()} | ratios


def peak_memory() -> int:
    """Bytes, of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_fresh_process(module: str, *arguments: str) -> str:
    """Standard output of a module of this package."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
