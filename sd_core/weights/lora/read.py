"""Low-rank adapters from their files: kohya's and LyCORIS's names, diffusers' and PEFT's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sd_core.spec import ModelSpec
from sd_core.weights.assemble import refuse_shared
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.lora.names import Layer, Shape, layers_of
from sd_core.weights.lora.peft import scales
from sd_core.weights.single_file import ADAPTER_KEY, read_weights
from sd_core.weights.stored import StoredTensor

MOST_RANK = 4096
NAMED = 3
"""Names of a kind that an error spells out."""

_LEAVES = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_ENDS = sorted(_LEAVES, key=len, reverse=True)
_OLD_PROCESSOR = re.compile(r"(.*)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")

_NO_LOW_RANK = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "lokr_w1_a": "LoKr", "diff": "differences"}
_OTHERS = {"oft_blocks": "OFT", "oft_diag": "OFT", "a1.weight": "GLoRA", "on_input": "IA3"}


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
    weights = read_weights(path)
    stored = weights.tensors
    refuse_shared(str(path), {"lora": dict(stored)})
    seems = _other_kind(stored)
    if seems is not None:
        raise CheckpointError(f"{path}: it seems to be {seems}")
    try:
        scale_of = scales(weights.adapter_json)
    except ValueError as error:
        raise CheckpointError(f"{path}: its {ADAPTER_KEY} cannot be read: {error}") from None
    names, shapes = layers_of(spec)
    places: dict[Layer, str] = {}
    parts: dict[Layer, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in stored.items():
        place, leaf = _split(key)
        layer = None if place is None else names.get(place)
        if layer is None:
            unknown.append(key)
        else:
            places[layer] = str(place)
            known = parts.setdefault(layer, {})
            if leaf in known:
                raise CheckpointError(f"{path}: {named(key)} is there twice, by another name")
            known[leaf] = _copied(path, key, tensor)
    if unknown:
        listed = ", ".join(named(key) for key in unknown[:NAMED])
        rest = "" if len(unknown) <= NAMED else f" and {len(unknown) - NAMED:,} more"
        raise CheckpointError(
            f"{path}: {len(unknown):,} of its {len(stored):,} tensors belong to no layer of a "
            f"Stable Diffusion v1 model that can have a LoRA: {listed}{rest}"
        )
    found: dict[str, dict[str, LowRankLayer]] = {"unet": {}, "text": {}}
    for layer, tensors in parts.items():
        component, name = layer
        scale = partial(scale_of, places[layer])
        where = f"{path}: {component} {name}"
        found[component][name] = _low_rank(where, tensors, shapes[layer], scale)
    return LoraFile(**found)


def _split(key: str) -> tuple[str | None, str]:
    """The name of a tensor's layer, which stands before its kind, and the kind."""
    key = key.removeprefix("base_model.model.")
    old = _OLD_PROCESSOR.fullmatch(key)
    if old is not None:
        place, layer, leaf = old.groups()
        place = f"{place}.{'to_out.0' if layer == 'to_out' else layer}"
        return place if place.startswith("unet.") else f"unet.{place}", leaf
    for end in _ENDS:
        if key.endswith(f".{end}"):
            return key.removesuffix(f".{end}"), _LEAVES[end]
    return None, ""


def _copied(path: Path, key: str, tensor: StoredTensor) -> Tensor:
    if not tensor.dtype.is_floating_point:
        raise CheckpointError(f"{path}: {named(key)} is {tensor.dtype}; expected floating point")
    copy = tensor.view().clone()
    tensor.release()
    if not copy.isfinite().all():
        raise CheckpointError(f"{path}: {named(key)} holds numbers that are not finite")
    return copy


def _low_rank(
    where: str,
    tensors: Mapping[str, Tensor],
    shape: Shape,
    scale_of: Callable[[int], float],
) -> LowRankLayer:
    """scale_of: gives the scale by the rank, where no alpha is among the tensors."""
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
    magnitude = tensors.get("magnitude")
    if magnitude is not None:
        if magnitude.numel() != out:
            found = tuple(magnitude.shape)
            raise CheckpointError(f"{where}: DoRA's lengths are {found}; expected {out} of them")
        magnitude = magnitude.flatten()
    alpha = tensors.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise CheckpointError(f"{where}: alpha is {tuple(alpha.shape)}; expected one number")
    scale = scale_of(rank) if alpha is None else float(alpha.double().flatten()[0]) / rank
    return LowRankLayer(down.contiguous(), up.contiguous(), scale, magnitude)


def _other_kind(stored: Mapping[str, StoredTensor]) -> str | None:
    """The kind of a file that is no LoRA for Stable Diffusion v1; None where nothing shows it."""
    leaves = {key.rpartition(".")[2] for key in stored} | {
        ".".join(key.rsplit(".", 2)[1:]) for key in stored
    }
    if any(key.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for key in stored):
        return "an adapter for SDXL; expected one for Stable Diffusion v1"
    of_transformers = ("lora_transformer_", "transformer.")
    if any("double_blocks" in key or key.startswith(of_transformers) for key in stored):
        return "an adapter for Flux or Stable Diffusion 3; expected one for Stable Diffusion v1"
    width = _context_width(stored)
    if width in (1024, 2048):
        model = "SDXL" if width == 2048 else "Stable Diffusion 2"
        return f"an adapter for {model}; expected one for Stable Diffusion v1"
    for leaf, kind in _NO_LOW_RANK.items():
        if leaf in leaves:
            return f"of {kind}, which have no low-rank form, so that no image can have its own"
    for leaf, kind in _OTHERS.items():
        if leaf in leaves:
            return f"of {kind}, which is not supported; expected a LoRA, LoCon or DoRA"
    if not any(_split(key)[0] is not None for key in stored):
        listed = ", ".join(named(key) for key in list(stored)[:NAMED])
        return f"no LoRA: it holds {listed}"
    return None


def _context_width(stored: Mapping[str, StoredTensor]) -> int | None:
    """Width of the prompts that an adapter is for, where it has a layer for them."""
    for key, tensor in stored.items():
        place, leaf = _split(key)
        matrix = leaf == "down" and len(tensor.shape) > 1
        if matrix and place is not None and re.search(r"attn2[._]to_k$", place):
            return tensor.shape[1]
    return None
