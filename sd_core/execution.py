"""How a loaded model runs fast on its device: the one place that decides it.

eager: as it is. packed: eager, with weights in the layout of the CPU's kernels (`sd_core.packing`).
fused: packed, with kernels of our own for the UNet's attention and for group norm
(`sd_core.kernels`). compiled: by `torch.compile`, one program for each shape, kept on disk for the
next start.

The way of running is part of what an image's bytes depend on: all of them round differently. On
CUDA, where nothing was run by this project's authors, for they had no GPU: convolutions in
channels-last, cuDNN's deterministic algorithms, float16 by default, attention by whichever of
torch's kernels fits (FlashAttention for float16 and bfloat16), and, compiled, CUDA graphs, which
the engine's fixed row counts make possible.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from sd_core.kernels import attention, group_norm, have_kernels
from sd_core.layers import CrossAttention, GroupNorm
from sd_core.model import LatentDiffusion
from sd_core.packing import can_pack, input_sizes, pack
from sd_core.spec import EXECUTIONS, LATENT_FACTOR
from sd_core.unet import UNet
from sd_core.vae import AutoencoderKL

PACKED_ROWS = 2
"""Weights are laid out for one native image with guidance first; see `sd_core.packing`."""

SHAPES_COMPILED = 1024
"""Image sizes that one process may compile programs for; torch refuses the next."""


def make_ready(
    model: LatentDiffusion, execution: str = "auto", *, cache: Path | None = None
) -> LatentDiffusion:
    """Prepares a loaded model for many evaluations, in place; returns it.

    execution: see above. "auto" is, on a CPU, the first of fused and packed that it has the kernels
        of for the model's type; else eager. A packed or fused model has no state dict any more.
    cache: folder for compiled programs; by default torch's own.
    Raises `ValueError` for another name, and where this machine cannot do what is asked; `OSError`
    where the cache cannot be made.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"execution {execution!r} is unknown; expected {', '.join(EXECUTIONS)}")
    if model.execution != "eager":
        raise ValueError(f"the model is {model.execution} already")
    packable = can_pack(model.device, model.dtype)
    fusable = packable and model.dtype is torch.bfloat16 and have_kernels()
    if execution == "auto":
        execution = "fused" if fusable else "packed" if packable else "eager"
    if execution == "packed" and not packable:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ValueError(
            f"execution packed is for CPUs with kernels for {dtype}, not for this {model.device}"
        )
    if execution == "fused" and not fusable:
        raise ValueError(
            "execution fused is for bfloat16 on CPUs with AMX, where sdbatch was installed with a "
            "C++ compiler; packed runs without"
        )
    if model.device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        _channels_last(model)
    if execution == "fused":
        _use_kernels(model)
    if execution in ("packed", "fused"):
        _pack(model)
    elif execution == "compiled":
        _compile(model, cache)
    model.execution = execution
    return model


def _channels_last(model: LatentDiffusion) -> None:
    model.memory_format = torch.channels_last
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.to(memory_format=torch.channels_last)
            layer.weight = nn.Parameter(weight, requires_grad=False)


def _use_kernels(model: LatentDiffusion) -> None:
    for layer in model.modules():
        if isinstance(layer, CrossAttention):
            layer.attend = attention
        elif isinstance(layer, GroupNorm):
            layer.normalise = group_norm


def _pack(model: LatentDiffusion) -> None:
    """Lays the weights out for the native size."""
    model.memory_format = torch.channels_last
    spec = model.spec
    side = spec.native_size // LATENT_FACTOR
    with torch.device("meta"):
        unet, vae = UNet(spec.unet), AutoencoderKL(spec.vae)
        latents = torch.empty(PACKED_ROWS, spec.unet.in_channels, side, side)
        timesteps = torch.empty(PACKED_ROWS)
        context = torch.empty(PACKED_ROWS, spec.text.length, spec.unet.context_dim)
        image = torch.empty(1, 3, spec.native_size, spec.native_size)

    def through_unet() -> None:
        # Timesteps and prompts are embedded ahead of the steps, by the layers as they are.
        with torch.no_grad():
            unet(latents, unet.embed(timesteps), unet.project(context))

    def through_vae() -> None:
        with torch.no_grad():
            vae.decode(vae.moments(image)[0])

    # torch gives float32 products of linear layers to MKL, which needs no layout of its own and was
    # faster: 10.6 s against 11.1 s an evaluation at v1 size on two cores with AVX2. Those of the
    # other types it gives to oneDNN, which lays the weights out at every call.
    linears = model.dtype is not torch.float32
    with torch.no_grad():
        pack(model.unet, input_sizes(unet, through_unet), linears=linears)
        pack(model.vae, input_sizes(vae, through_vae), linears=linears)


def _compile(model: LatentDiffusion, cache: Path | None) -> None:
    from torch._inductor import cpp_builder  # takes a while to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        # Otherwise every image would fail with it.
        raise ValueError("execution compiled needs a C++ compiler, such as g++") from None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        # Read by torch when it compiles first; it is the only way to tell it.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    torch._dynamo.config.recompile_limit = SHAPES_COMPILED
    torch._dynamo.config.accumulated_recompile_limit = 2 * SHAPES_COMPILED
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    for module in (model.unet, model.vae.decoder):
        module.compile(fullgraph=True, dynamic=False, mode=mode)
