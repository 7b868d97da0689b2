"""How a loaded model runs fast on its device: the one place that decides it.

eager: as it is.
packed: eager, with weights in the layout of the CPU's kernels (`sd_core.cpu.packing`).
fused: packed, with kernels of our own (`sd_core.cpu.kernels`) for the UNet's attention, for norms
and, on CPUs without AMX, for convolutions and linear layers.
graphed: on CUDA, each evaluation of a batch and the step after it as one captured graph
(`sd_core.gpu.graphs`), which the engine's fixed row counts make possible; with group norms in
Triton, where they work (`sd_core.gpu.group_norm`).
compiled: by `torch.compile`, two programs for each shape, kept on disk for the next start; on CUDA
captured as well. One is for images without adapters, long prompts and changes such as FreeU. The
other has a place for them at each layer (`sd_core.model.beside`), which rounds differently: so an
image's own settings alone decide which it is evaluated by, and no batch has images of both.

The way of running is part of what an image's bytes depend on: all of them round differently. On
CUDA, where nothing was run by this project's authors, for they had no GPU: convolutions in
channels-last, cuDNN's deterministic algorithms, float16 by default, and FlashAttention for float16
and bfloat16, torch's memory-efficient kernel for float32. cuDNN's attention is switched off: it
chooses among its plans by what memory is free.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sd_core.cpu.kernels import have_amx, have_kernels
from sd_core.cpu.packing import can_pack, pack
from sd_core.gpu.group_norm import works
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.spec import EXECUTIONS, LATENT_FACTOR, ModelSpec

PACKED = ("packed", "fused")
"""The ways of running that have weights laid out for the CPU's kernels."""

CAPTURED = ("graphed", "compiled")
"""The ways of running whose evaluations are captured as graphs on CUDA."""

SHAPES_COMPILED = 1024
"""Image sizes that one process may compile programs for; torch refuses the next."""


class ExecutionError(ValueError):
    """This machine cannot run a model in the way that was asked for."""


def resolve_execution(execution: str, device: torch.device, dtype: torch.dtype) -> str:
    """The way of running of that name; "auto" is graphed on CUDA; on a CPU the first of fused and
    packed that it has the kernels of for the type, else eager.

    Raises `ExecutionError` for another name, and where this machine cannot do what is asked.
    """
    if execution not in EXECUTIONS:
        expected = ", ".join(EXECUTIONS)
        raise ExecutionError(f"execution {execution!r} is unknown; expected {expected}")
    packable = can_pack(device, dtype)
    fusable = packable and dtype is torch.bfloat16 and have_kernels()
    if execution == "auto" and device.type == "cuda":
        return "graphed"
    if execution == "auto":
        return "fused" if fusable else "packed" if packable else "eager"
    if execution == "packed" and not packable:
        name = str(dtype).removeprefix("torch.")
        raise ExecutionError(
            f"execution packed is for CPUs with kernels for {name}, not for this {device}"
        )
    if execution == "fused" and not fusable:
        raise ExecutionError(
            "execution fused is for bfloat16 on CPUs with AVX-512 for it, where sdbatch was "
            "installed with a C++ compiler; packed runs without"
        )
    if execution == "graphed" and device.type != "cuda":
        raise ExecutionError(f"execution graphed is for CUDA, not for this {device}")
    if execution == "compiled":
        _find_compiler()
    return execution


def make_ready(
    model: LatentDiffusion, execution: str = "auto", *, cache: Path | None = None
) -> LatentDiffusion:
    """Prepares a loaded model for many evaluations, in place; returns it.

    execution: see above and `resolve_execution`. A packed or fused model has no state dict any
        more.
    cache: folder for what the next start can use again, compiled programs; by default torch's own.
    Raises `ExecutionError`, `ValueError` if it is ready already, `OSError` where the cache cannot
    be made.
    """
    execution = resolve_execution(execution, model.device, model.dtype)
    if model.execution != "eager":
        raise ValueError(f"the model is {model.execution} already")
    if execution in PACKED:
        pack_part(model.unet, model.spec, execution)
        pack_part(model.vae, model.spec, execution)
    return run_as(model, execution, cache)


def pack_part(
    part: UNet | AutoencoderKL,
    spec: ModelSpec,
    execution: str,
    load_layer_weights: Callable[[str], None] = lambda name: None,
) -> None:
    """Lays out the weights of a model's part for the native size, for a way of running that is one
    of `PACKED`. spec: of the model. load_layer_weights: see `sd_core.cpu.packing.pack`.
    """
    # torch gives float32 products of linear layers to MKL, which needs no layout of its own and was
    # faster: 10.6 s against 11.1 s an evaluation at v1 size on two cores with AVX2. Those of the
    # other types it gives to oneDNN, which lays the weights out at every call.
    linears = next(part.parameters()).dtype is not torch.float32
    # An image with guidance is two rows, and decoded alone.
    latents = isinstance(part, UNet)
    rows, side = (2, spec.native_size // LATENT_FACTOR) if latents else (1, spec.native_size)
    with torch.no_grad():
        fused = execution == "fused"
        # oneDNN's products are by AMX where that is, which is several times as fast as ours.
        own = fused and not have_amx()
        pack(
            part,
            rows,
            side,
            linears=linears,
            fused=fused,
            own=own,
            load_layer_weights=load_layer_weights,
        )


def run_as(model: LatentDiffusion, execution: str, cache: Path | None) -> LatentDiffusion:
    """The model, in place, for this way of running, which its weights are laid out for already."""
    if model.device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        # Products of float32 with the precision of float32; cuDNN's are in TF32 by default.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.enable_cudnn_sdp(False)
    if execution == "graphed" and works(model.device, model.dtype):
        model.kernels = "Triton's group norm"
    if execution in PACKED or model.device.type == "cuda":
        model.memory_format = torch.channels_last
    if execution == "compiled":
        _set_up_compiler(model.device, cache)
    for part in (model.unet, model.vae):
        run_part_as(part, execution)
    model.execution = execution
    return model


def run_part_as(part: UNet | AutoencoderKL, execution: str) -> None:
    """Prepares a part, in place, beside what `run_as` sets up for the process. Weights are laid out
    for this way of running already.
    """
    weight = next(part.parameters())
    if weight.device.type == "cuda":
        _channels_last(part)
    if execution == "graphed" and works(weight.device, weight.dtype):
        from sd_core.gpu.fused_blocks import fuse  # needs Triton

        fuse(part)
    if execution == "compiled":
        module = part.decoder if isinstance(part, AutoencoderKL) else part
        module.compile(fullgraph=True, dynamic=False)


def _channels_last(part: nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.to(memory_format=torch.channels_last)
            layer.weight = nn.Parameter(weight, requires_grad=False)


def _find_compiler() -> None:
    from torch._inductor import cpp_builder  # takes a while to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        # Otherwise every image would fail with it.
        raise ExecutionError("execution compiled needs a C++ compiler, such as g++") from None


def _set_up_compiler(device: torch.device, cache: Path | None) -> None:
    if cache is not None:
        folder = cache / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        # Read by torch when it compiles first; it is the only way to tell it.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    torch._dynamo.config.recompile_limit = 2 * SHAPES_COMPILED
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES_COMPILED
    if device.type == "cuda":
        from torch._inductor import config  # takes a while to import

        config.deterministic = True  # no choice of kernels by how fast they just ran
