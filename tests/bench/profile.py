"""Where one model evaluation's time goes, beside the arithmetic limit: a table for CONTRIBUTING.

    python -m tests.bench.profile [--model v1|demo] [--rows 2] [--dtype float32]

The limit is all products at the rate that this machine reaches on 2048×2048 matrices of the type.
Random weights serve: their values do not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sd_core.demo import DEMO_SPEC
from sd_core.device import DTYPES, resolve_dtype
from sd_core.model import LatentDiffusion
from sd_core.spec import LATENT_FACTOR, ModelSpec

SPECS = {"v1": ModelSpec(), "demo": DEMO_SPEC}
GROUPS = {
    "convolutions": ("convolution", "conv2d"),
    "linear layers": ("addmm", "aten::mm", "linear"),
    "attention": ("scaled_dot_product", "bmm"),
    "norms": ("group_norm", "layer_norm"),
    "activations": ("silu", "gelu"),
    "copies and joins": ("copy_", "cat", "upsample", "clone"),
}
RUNS = 3


def random_model(spec: ModelSpec, dtype: torch.dtype) -> LatentDiffusion:
    """With weights of this type only, never in float32."""
    with torch.device("meta"):
        model = LatentDiffusion(spec)
    model = model.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.normal_(0, 0.02)
    return model


def seconds_of(call: Callable[[], object], runs: int = RUNS) -> float:
    """Median, after one to warm up."""
    call()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def product_rate(dtype: torch.dtype, side: int = 2048) -> float:
    """Floating point operations a second of a matrix product."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b)


def group_of(name: str) -> str:
    for group, parts in GROUPS.items():
        if any(part in name for part in parts):
            return group
    return "everything else"


def groups(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call by group of operators, their own time only."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        seconds[group_of(event.key)] += event.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def table(title: str, call: Callable[[], object], rate: float) -> str:
    with FlopCounterMode(display=False) as counted:
        call()
    flops = counted.get_total_flops()
    whole, limit = seconds_of(call), flops / rate
    lines = [
        f"{title}: {whole:.2f} s; {flops / 1e9:.0f} GFLOP, at {rate / 1e9:.0f} GFLOP/s "
        f"{limit:.2f} s ({limit / whole:.0%} of the limit reached)"
    ]
    parts = groups(call)
    total = sum(parts.values())
    lines += [f"  {name:<18}{value / total:>5.0%}" for name, value in parts.items()]
    return "\n".join(lines)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SPECS, default="v1")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    args = parser.parse_args()
    spec = SPECS[args.model]
    dtype = resolve_dtype(args.dtype, torch.device("cpu"))
    model = random_model(spec, dtype)
    side = spec.native_size // LATENT_FACTOR
    x = torch.randn(args.rows, 4, side, side)
    context = torch.randn(args.rows, 77, spec.unet.context_dim)
    timesteps = torch.full((args.rows,), 500.0)
    rate = product_rate(dtype)
    name = f"{args.model}, {spec.native_size}x{spec.native_size}, {dtype}"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        table(f"evaluation of {args.rows} rows", lambda: model.denoise(x, timesteps, context), rate)
    )
    print(table("decode of 1 image", lambda: model.decode(x[:1]), rate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
