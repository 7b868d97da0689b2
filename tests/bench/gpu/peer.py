"""diffusers' UNet at the same sizes: eager, as a graph, compiled in channels-last as a graph."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from sd_core.weights.export import unet_config
from tests.bench.gpu.bench import Bench, graph_of


def peer(b: Bench) -> dict[str, Any]:
    """The best of the peer's ways is what ours is compared with."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        return {"skipped": f"{error}"}
    config = {key: v for key, v in unet_config(b.spec).items() if not key.startswith("_")}
    with torch.device(b.device):
        unet = UNet2DConditionModel.from_config(config).to(b.dtype).eval().requires_grad_(False)
    unet = unet.to(memory_format=torch.channels_last)
    found: dict[str, Any] = {}
    for rows in (2,) if b.quick else (16, 2):
        latents = torch.randn(rows, 4, b.side, b.side, device=b.device, dtype=b.dtype)
        latents = latents.contiguous(memory_format=torch.channels_last)
        times = torch.full((rows,), 500.0, device=b.device)
        width = (rows, 77, b.spec.unet.context_dim)
        states = torch.randn(width, device=b.device, dtype=b.dtype)

        def call(net: Any = unet, inputs: Any = (latents, times, states)) -> Tensor:
            with torch.inference_mode():
                return net(*inputs, return_dict=False)[0]

        one: dict[str, Any] = {"eager_ms": b.ms(call)}
        if b.cuda:
            one["graph_ms"] = b.ms(graph_of(call)[0])
            if b.left_s > 120:
                fast = torch.compile(unet, fullgraph=True, dynamic=False)
                began = time.perf_counter()
                call(fast)
                b.sync()
                one["compile_wall_s"] = round(time.perf_counter() - began, 1)
                one["compiled_graph_ms"] = b.ms(
                    graph_of(lambda call=call, fast=fast: call(fast))[0]
                )
        best = min(value for name, value in one.items() if name.endswith("_ms"))
        ours = b.report.get("evaluation", {}).get(str(rows), {}).get("ms")
        if ours is not None:
            one["ratio"] = round(ours / best, 3)
        found[str(rows)] = one
    return found
