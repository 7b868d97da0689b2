"""Low-rank adapters from their files: kohya's and LyCORIS's names, diffusers' and PEFT's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sd_core.spec import ModelSpec
from sd_core.weights.assemble import refuse_shared
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.lora.kind import flaw_of, split
from sd_core.weights.lora.names import Layer, Shape, layers_of
from sd_core.weights.lora.peft import scales
from sd_core.weights.single_file import ADAPTER_KEY, read_weights
from sd_core.weights.stored import StoredTensor

MOST_RANK = 4096


@dataclass(frozen=True)
class LowRankLayer:
    """The adapter of a layer, as stored, on the CPU.

    down: (r, in), of a convolution with larger kernels (r, in, kh, kw). up: (out, r). scale: alpha
    over rank, 1 where the file says nothing of alpha. magnitude: (out,), of DoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class LoraFile:
    """Adapters of the layers of a UNet and of a text encoder, by our names of these."""

    unet: Mapping[str, LowRankLayer] = field(default_factory=dict)
    text: Mapping[str, LowRankLayer] = field(default_factory=dict)


def read_lora(path: Path, spec: ModelSpec) -> LoraFile:
    """The adapters in a file of safetensors or of pickled tensors, for a model of these sizes.

    Raises `CheckpointError` for a file of something else or of another kind of model, and naming
    what fits no layer of this one.
    """
    parts, shapes, scale_of = tensors_of(path, spec)
    found: dict[str, dict[str, LowRankLayer]] = {"unet": {}, "text": {}}
    for layer, tensors in parts.items():
        component, name = layer
        where = f"{path}: {component} {name}"
        found[component][name] = low_rank(where, tensors, shapes[layer], partial(scale_of, layer))
    return LoraFile(**found)


Parts = tuple[dict[Layer, dict[str, Tensor]], Mapping[Layer, Shape], Callable[[Layer, int], float]]
"""Tensors of a file by layer and kind, the shapes of layers' weights, and a layer's scale by its
rank where no alpha is among its tensors.
"""


def tensors_of(path: Path, spec: ModelSpec, *, merged: bool = False) -> Parts:
    """The tensors of an adapter's file, on the CPU. merged: see `flaw_of`.

    Raises `CheckpointError` for a file of something else or of another kind of model.
    """
    weights = read_weights(path)
    stored = weights.tensors
    refuse_shared(str(path), {"lora": dict(stored)})
    names, shapes = layers_of(spec)
    sizes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    flaw = flaw_of(sizes, names, merged=merged)
    if flaw is not None:
        raise CheckpointError(f"{path}: {flaw}")
    try:
        scale_of = scales(weights.adapter_json)
    except ValueError as error:
        raise CheckpointError(f"{path}: its {ADAPTER_KEY} cannot be read: {error}") from None
    places: dict[Layer, str] = {}
    parts: dict[Layer, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        place, leaf = split(key)
        layer = names[str(place)]
        places[layer] = str(place)
        known = parts.setdefault(layer, {})
        if leaf in known:
            raise CheckpointError(f"{path}: {named(key)} is there twice, by another name")
        known[leaf] = _copied(path, key, tensor)
    return parts, shapes, lambda layer, rank: scale_of(places[layer], rank)


def _copied(path: Path, key: str, tensor: StoredTensor) -> Tensor:
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(f"{path}: {named(key)} is {tensor.dtype}; expected floating point")
    copy = tensor.view().clone()
    tensor.release()
    if not copy.isfinite().all():
        raise CheckpointError(f"{path}: {named(key)} holds numbers that are not finite")
    return copy


def low_rank(
    where: str,
    tensors: Mapping[str, Tensor],
    shape: Shape,
    scale_of: Callable[[int], float],
) -> LowRankLayer:
    """A layer's adapter. Raises `CheckpointError`.

    scale_of: gives the scale by the rank, where no alpha is among the tensors.
    """
    down, up = tensors.get("down"), tensors.get("up")
    if down is None or up is None:
        missing = "down" if down is None else "up"
        raise CheckpointError(f"{where}: its {missing} half is missing")
    mid = tensors.get("mid")
    misfit = CheckpointError(
        f"{where}: found {' and '.join(str(tuple(t.shape)) for t in tensors.values() if t.dim())}; "
        f"expected a rank of 1 to {MOST_RANK} for a layer of {shape}"
    )
    if any(half.dim() not in (2, 4) for half in (down, up)) or not 1 <= len(down) <= MOST_RANK:
        raise misfit
    rank = len(down)
    if mid is not None:
        if mid.dim() != 4 or mid.shape[:2] != (rank, rank):
            raise misfit
        # LoCon's kernel between two products, as part of the first: (r, in, kh, kw).
        both = torch.einsum("rmhw,mi->rihw", mid.double(), down.flatten(1).double())
        down = both.to(down.dtype)
    if down.shape[2:] == (1, 1):
        down = down.flatten(1)
    up = up.flatten(1)
    out, into, *kernel = shape
    expected: Shape = (rank, into, *kernel) if kernel not in ([], [1, 1]) else (rank, into)
    if down.shape != expected or up.shape != (out, rank):
        raise misfit
    magnitude = magnitude_of(where, tensors, out)
    scale = alpha_scale(where, tensors, rank)
    if scale is None:
        scale = scale_of(rank)
    return LowRankLayer(down.contiguous(), up.contiguous(), scale, magnitude)


def magnitude_of(where: str, tensors: Mapping[str, Tensor], out: int) -> Tensor | None:
    """DoRA's lengths of a layer's rows, (out,), if it has any. Raises `CheckpointError`."""
    magnitude = tensors.get("magnitude")
    if magnitude is None:
        return None
    if magnitude.numel() != out:
        found = tuple(magnitude.shape)
        raise CheckpointError(f"{where}: DoRA's lengths are {found}; expected {out} of them")
    return magnitude.flatten()


def alpha_scale(where: str, tensors: Mapping[str, Tensor], rank: int) -> float | None:
    """A layer's alpha over its rank, if it has an alpha. Raises `CheckpointError`."""
    alpha = tensors.get("alpha")
    if alpha is None:
        return None
    if alpha.numel() != 1:
        raise CheckpointError(f"{where}: alpha is {tuple(alpha.shape)}; expected one number")
    return float(alpha.double().flatten()[0]) / rank
