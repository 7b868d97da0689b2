"""Measure where a model evaluation's time goes, beside the arithmetic limit, as a table.

    python -m tests.bench.profile [--model v1|demo] [--rows 2] [--dtype float32]

The limit is all products at the rate that this machine reaches on 2048×2048 matrices of the type;
convolutions by Winograd's algorithm count with the products that they take. Random weights serve:
their values do not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from sd_core.cpu import fused_blocks
from sd_core.cpu.native_layers import OwnGEGLU, OwnLinear, PointwiseConv2d, WinogradConv2d
from sd_core.cpu.packing import PackedSelfAttention
from sd_core.device import DTYPES, resolve_dtype
from sd_core.execution import make_ready
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import Upsample
from sd_core.spec import EXECUTIONS, LATENT_FACTOR
from tests.bench.measure import SPECS, random_model

GROUPS = {
    "convolutions": ("convolution", "conv2d"),  # packed ones too: mkldnn::_convolution_pointwise
    "linear layers": ("addmm", "aten::mm", "linear"),
    "attention": ("scaled_dot_product", "bmm"),
    "norms": ("group_norm", "layer_norm", "norm_kernel"),
    "activations": ("silu", "gelu"),
    "copies and joins": ("copy_", "cat", "upsample", "clone"),
}
RUNS = 3


def seconds_of(call: Callable[[], object], runs: int = RUNS) -> float:
    """Median, after one to warm up."""
    call()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def as_operator(name: str, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For a kernel that is no operator of torch: the profiler sees it by this name."""

    def recorded(*args: object, **options: object) -> Tensor:
        with record_function(name):
            return call(*args, **options)

    return recorded


def name_kernels(model: nn.Module) -> None:
    """Makes operators of what is none."""
    for name in ("attention", "group_norm", "layer_norm"):
        shown = "scaled_dot_product" if name == "attention" else "norm_kernel"
        setattr(fused_blocks, name, as_operator(shown, getattr(fused_blocks, name)))
    pointwise = {layer.linear for layer in model.modules() if isinstance(layer, PointwiseConv2d)}
    for layer in model.modules():
        name, methods = "", ("forward", "plus", "of_enlarged")
        if isinstance(layer, PackedSelfAttention):
            name, methods = "scaled_dot_product", ("attend",)
        elif isinstance(layer, WinogradConv2d) or layer in pointwise:
            name = "convolution"
        elif isinstance(layer, OwnLinear | OwnGEGLU):
            name = "linear"
        if name:
            for method in filter(partial(hasattr, layer), methods):
                setattr(layer, method, as_operator(name, getattr(layer, method)))


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


def flops_of(call: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counted:
        call()
    return int(counted.get_total_flops())


def saved_by_winograd(whole: nn.Module, names: set[str], call: Callable[[], object]) -> int:
    """Floating point operations that one call does not make if the convolutions of these names are
    by Winograd's algorithm, which takes 16 products, or 9 of a map that was just doubled, where a
    direct one takes 36. whole: the model that is called, on `meta`.
    """
    saved = 0
    doubled = {f"{n}.conv" for n, layer in whole.named_modules() if isinstance(layer, Upsample)}

    def counting(products: int) -> Callable[[nn.Module, object, Tensor], None]:
        def count(layer: nn.Module, _: object, out: Tensor) -> None:
            nonlocal saved
            direct = 2 * 9 * out.numel() * cast(nn.Conv2d, layer).in_channels
            saved += direct * (36 - products) // 36

        return count

    handles = [
        whole.get_submodule(n).register_forward_hook(counting(9 if n in doubled else 16))
        for n in names
    ]
    call()
    for handle in handles:
        handle.remove()
    return saved


def table(title: str, call: Callable[[], object], flops: int, saved: int, rate: float) -> str:
    whole, limit = seconds_of(call), (flops - saved) / rate
    direct = f" ({flops / 1e9:.0f} by direct convolutions)" if saved else ""
    lines = [
        f"{title}: {whole:.2f} s; {(flops - saved) / 1e9:.0f} GFLOP{direct}, at "
        f"{rate / 1e9:.0f} GFLOP/s {limit:.2f} s ({limit / whole:.0%} of the limit reached)"
    ]
    parts = groups(call)
    total = sum(parts.values())
    lines += [f"  {name:<18}{value / total:>5.0%}" for name, value in parts.items()]
    return "\n".join(lines)


def calls(model: LatentDiffusion, rows: int) -> dict[str, Callable[[], object]]:
    """An evaluation as the engine makes it, prompt and timesteps embedded ahead, and a decode."""
    spec = model.spec
    side = spec.native_size // LATENT_FACTOR
    x = torch.randn(rows, spec.unet.in_channels, side, side, device=model.device)
    times = model.embed_timesteps(torch.full((rows,), 500.0))
    context = model.project_context(torch.randn(rows, spec.text.length, spec.unet.context_dim))
    return {
        f"evaluation of {rows} rows": lambda: model.denoise(x, times, context),
        "decode of 1 image": lambda: model.decode(x[:1]),
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SPECS, default="v1")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--execution", choices=EXECUTIONS, default="auto")
    args = parser.parse_args()
    spec = SPECS[args.model]
    dtype = resolve_dtype(args.dtype, torch.device("cpu"))
    with torch.device("meta"):
        sizes = LatentDiffusion(spec)
    model = make_ready(random_model(spec, dtype), args.execution)
    by_winograd = {n for n, layer in model.named_modules() if isinstance(layer, WinogradConv2d)}
    flops, saved = {}, {}
    for title, call in calls(sizes, args.rows).items():
        flops[title] = flops_of(call)
        saved[title] = saved_by_winograd(sizes, by_winograd, call)
    name_kernels(model)
    rate = product_rate(dtype)
    name = f"{args.model}, {spec.native_size}x{spec.native_size}, {dtype}, {model.execution}"
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for title, call in calls(model, args.rows).items():
        print(table(title, call, flops[title], saved[title], rate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
