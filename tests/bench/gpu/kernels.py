"""Where the time of an evaluation goes: attention by backend, norms, products, kernels by name."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from tests.bench.gpu.bench import Bench, Inputs

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def kernels(b: Bench) -> dict[str, Any]:
    rows = 16 if b.cuda else 2
    found: dict[str, Any] = {
        "attention": _attention(b, rows),
        "norm": _norm(b, rows),
        "linear_tflops": _products(b, rows),
    }
    if b.cuda:
        found["evaluation"] = _profile(b, rows)
    return found


def _attention(b: Bench, rows: int) -> dict[str, Any]:
    width, area = b.spec.unet.channels, b.side**2
    cases = {
        "self_1": (rows, 8, area, area, width // 8),
        "self_2": (rows, 8, area // 4, area // 4, width // 4),
        "self_4": (rows, 8, area // 16, area // 16, width // 2),
        "prompt_1": (rows, 8, area, 77, width // 8),
        "decoder": (4, 1, area, area, 4 * b.spec.vae.channels),
    }
    found: dict[str, Any] = {}
    for name, (batch, heads, queries, keys, dim) in cases.items():
        q, k, v = (
            torch.randn(batch, tokens, heads, dim, device=b.device, dtype=b.dtype).transpose(1, 2)
            for tokens in (queries, keys, keys)
        )

        def attend(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

        one: dict[str, Any] = {"default_ms": b.ms(attend)}
        for backend, value in BACKENDS.items() if b.cuda else ():
            try:
                with sdpa_kernel([value]), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    one[f"{backend}_ms"] = b.ms(attend)
            except RuntimeError as error:
                one[f"{backend}_ms"] = f"refused: {error}"[:80]
        found[name] = one
    return found


def _norm(b: Bench, rows: int) -> dict[str, Any]:
    """A group norm with SiLU beside one read and write of its map, in both layouts."""
    width = b.spec.unet.channels
    x = torch.randn(rows, width, b.side, b.side, device=b.device, dtype=b.dtype)
    last = x.contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(b.spec.unet.norm_groups, width, device=b.device, dtype=b.dtype)
    norm.requires_grad_(False)
    return {
        "channels_last_ms": b.ms(lambda: F.silu(norm(last), inplace=True)),
        "contiguous_ms": b.ms(lambda: F.silu(norm(x), inplace=True)),
        "one_read_and_write_ms": b.ms(lambda: torch.neg(last)),
        "keeps_channels_last": norm(last).is_contiguous(memory_format=torch.channels_last),
    }


def _products(b: Bench, rows: int) -> dict[str, float]:
    found = {}
    for level in range(3):
        width, tokens = b.spec.unet.channels * 2**level, rows * (b.side // 2**level) ** 2
        for name, inner, outer in (("qkv", 1, 3), ("geglu", 1, 8), ("out", 4, 1)):
            x = torch.randn(tokens, inner * width, device=b.device, dtype=b.dtype)
            w = torch.randn(outer * width, inner * width, device=b.device, dtype=b.dtype)
            flop = 2 * tokens * inner * outer * width**2
            found[f"{width}_{name}"] = round(flop / b.ms(lambda x=x, w=w: F.linear(x, w)) / 1e9, 3)
    return found


def _profile(b: Bench, rows: int) -> dict[str, Any]:
    inputs = Inputs(b, b.model, rows)
    inputs.evaluate()
    b.sync()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        inputs.evaluate()
        b.sync()
    spent: Counter[str] = Counter()
    count = 0
    for event in profiled.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0:
            spent[event.name()[:70]] += event.duration_ns()
            count += 1
    total = sum(spent.values())
    shares = {name: round(spent_ns / total, 4) for name, spent_ns in spent.most_common(24)}
    return {"kernels": count, "busy_ms": round(total / 1e6, 3), "share": shares}
