"""Checks a checkpoint against the model, strictly, and moves its weights in.

The model is built on the `meta` device, without memory; tensors are read, hashed, converted and
assigned one at a time, so that loading takes the final weights plus one tensor.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sd_core.spec import ModelSpec
from sd_core.weights.checkpoint import COMPONENTS, Checkpoint, Part
from sd_core.weights.errors import CheckpointError
from sd_core.weights.extras import is_harmless
from sd_core.weights.stored import Shape, StoredTensor, tensor_bytes

NAMED = 10
"""How many wrong weights of a kind an error spells out; the others are counted."""

Matched = dict[str, StoredTensor]


def assemble(
    modules: Mapping[str, nn.Module],
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """Fills the components, built on `meta`, with the checkpoint's weights.

    Returns the model's digest: sha256 in hex over the sizes and every weight as stored. It is one
    for all containers of the same weights and does not depend on `dtype` or `device`.
    Raises `CheckpointError` naming every missing, unexpected and misshapen weight.
    """
    matched = match(modules, checkpoint)
    digest = hashlib.sha256(spec_bytes(checkpoint.spec))
    for component in COMPONENTS:
        tensors = {}
        for name, stored in sorted(matched[component].items()):
            tensors[name] = _take(f"{component}.{name}", stored, digest, device, dtype)
        modules[component].load_state_dict(tensors, strict=True, assign=True)
    return digest.hexdigest()


def spec_bytes(spec: ModelSpec) -> bytes:
    """The sizes as canonical JSON, without `native_size`: advice, that changes no image."""
    values = dataclasses.asdict(spec)
    del values["native_size"]
    return json.dumps(values, sort_keys=True).encode()


def match(modules: Mapping[str, nn.Module], checkpoint: Checkpoint) -> dict[str, Matched]:
    """The stored tensor of every parameter, by component and our name. See `assemble`."""
    missing: list[str] = []
    misshapen: list[str] = []
    extra = [name for name in checkpoint.leftovers if not is_harmless(name)]
    matched: dict[str, Matched] = {}
    for component in COMPONENTS:
        part = checkpoint.parts[component]
        found: Matched = {}
        used: set[str] = set()
        for name, parameter in modules[component].state_dict().items():
            in_file = part.name_of(name)
            if in_file is None:
                missing.append(part.where + part.names(name)[0])
                continue
            used.add(in_file)
            stored = _fitted(part.stored[in_file], name, tuple(parameter.shape))
            if stored is None:
                misshapen.append(part.where + _misfit(part, in_file, tuple(parameter.shape)))
            else:
                found[name] = stored
        unknown = (name for name in part.stored if name not in used and not is_harmless(name))
        extra += [part.where + name for name in unknown]
        matched[component] = found
    problems = [
        _listed(kind, names)
        for kind, names in (("missing", missing), ("unexpected", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: its weights do not fit the model"
            f"{checkpoint.note}: {'; '.join(problems)}"
        )
    return matched


def _fitted(stored: StoredTensor, name: str, shape: Shape) -> StoredTensor | None:
    """The tensor in the parameter's shape, None where it does not fit."""
    if not stored.dtype.is_floating_point:
        return None
    if stored.shape == shape:
        return stored
    # diffusers keeps the autoencoder's attention as linear layers, CompVis as 1x1 convolutions.
    if ".attn_1." in name and (*stored.shape, 1, 1) == shape and stored.strides is None:
        return stored.reshaped(shape)
    return None


def _misfit(part: Part, in_file: str, shape: Shape) -> str:
    stored = part.stored[in_file]
    if not stored.dtype.is_floating_point:
        return f"{in_file} is stored as {stored.dtype}, expected a floating point type"
    return f"{in_file} is {stored.shape}, expected {shape}"


def _listed(kind: str, names: list[str]) -> str:
    rest = len(names) - NAMED
    shown = ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
    return f"{len(names)} {kind}: {shown}"


def _take(
    name: str,
    stored: StoredTensor,
    digest: hashlib._Hash,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Reads one tensor out of its file: hashes it as stored, returns a converted copy."""
    view = stored.view()
    digest.update(f"{name} {tuple(view.shape)} {view.dtype}\n".encode())
    digest.update(tensor_bytes(view))
    taken = view.to(device=device, dtype=dtype, copy=True)
    del view
    stored.release()
    return taken
