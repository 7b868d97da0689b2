"""Checks a checkpoint against the model, strictly, and moves its weights in.

The model is built on the `meta` device, without memory; tensors are read, converted and assigned
one at a time, so that loading takes the final weights plus one tensor. As stored, weights are no
larger than their files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from sd_core.model.tokenizer import TokenizerSpec
from sd_core.spec import PREDICTIONS, ModelSpec
from sd_core.weights.checkpoint import COMPONENTS, Checkpoint, Part
from sd_core.weights.errors import CheckpointError, named
from sd_core.weights.extras import harmless_kind, is_routine, left_out
from sd_core.weights.stored import Shape, StoredTensor, tensor_bytes

log = logging.getLogger(__name__)

NAMED = 10
"""How many wrong weights of a kind an error spells out; the others are counted."""

SCRATCH = 2**20  # elements: 4 MiB, which stay in a core's caches

Matched = dict[str, StoredTensor]


class Filling(Protocol):
    """A weight that is still to be read. numel: its elements."""

    @property
    def numel(self) -> int: ...

    def copy_into(self, out: Tensor, scratch: Tensor) -> None:
        """See `StoredTensor.copy_into`."""


class WeightLoader:
    """Brings a component's weights in from their file.

    module: built on `meta`, of the type that the weights shall have there. stored: of `match`, or
    with changes merged in.
    """

    def __init__(
        self, module: nn.Module, stored: Mapping[str, Filling], device: torch.device
    ) -> None:
        self._module, self._stored, self._device = module, stored, device
        self._lent = torch.empty(0)
        self._scratch = torch.empty(SCRATCH)

    def bring(self) -> None:
        """All weights that are not there yet."""
        for name, parameter in self._missing(""):
            self._put(name, torch.empty_like(parameter, device=self._device))

    def load_layer_weights(self, part: str) -> None:
        """The weights of a submodule, until the next call, which takes their memory for its own:
        for weights that are only copied, new memory would cost more than reading them.
        """
        missing = self._missing(part)
        needed = sum(parameter.numel() for _, parameter in missing)
        if needed > len(self._lent):
            largest = max(stored.numel for stored in self._stored.values())
            dtype = missing[0][1].dtype
            self._lent = torch.empty(max(needed, largest), dtype=dtype, device=self._device)
        start = 0
        for name, parameter in missing:
            end = start + parameter.numel()
            self._put(name, self._lent[start:end].view(parameter.shape))
            start = end

    def _missing(self, part: str) -> list[tuple[str, nn.Parameter]]:
        found = self._module.get_submodule(part).named_parameters(prefix=part)
        return [(name, parameter) for name, parameter in found if parameter.is_meta]

    def _put(self, name: str, weight: Tensor) -> None:
        self._stored[name].copy_into(weight, self._scratch)
        parent, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(weight, requires_grad=False)
        setattr(self._module.get_submodule(parent), leaf, parameter)


def digest(
    spec: ModelSpec, matched: Mapping[str, Matched], tokenizer: TokenizerSpec | None = None
) -> str:
    """sha256 in hex over the sizes, every weight as stored, and the tokenizer where it is not
    CLIP's own: one for all containers of the same model, whatever type and device it is loaded to.
    """
    total = hashlib.sha256(spec_bytes(spec))
    if tokenizer is not None:
        total.update(f"tokenizer {tokenizer.digest}\n".encode())
    for component in COMPONENTS:
        for name, stored in sorted(matched[component].items()):
            view = stored.view()
            total.update(f"{component}.{name} {tuple(view.shape)} {view.dtype}\n".encode())
            total.update(tensor_bytes(view))
            del view
            stored.release()
    return total.hexdigest()


def spec_bytes(spec: ModelSpec) -> bytes:
    """The sizes as canonical JSON, without `native_size`: advice, that changes no image."""
    values = dataclasses.asdict(spec)
    del values["native_size"]
    for name, default in (("prediction", PREDICTIONS[0]), ("zero_snr", False)):
        if values[name] == default:  # so that models that came before them keep their digests
            del values[name]
    if not values["unet"]["guidance_dim"]:
        del values["unet"]["guidance_dim"]
    return json.dumps(values, sort_keys=True).encode()


def match(shapes: Mapping[str, Mapping[str, Shape]], checkpoint: Checkpoint) -> dict[str, Matched]:
    """The stored tensor of every parameter, by component and our name.

    shapes: of the parameters, by the same; of some components, or of all. What no picture depends
    on is left out, and named in one line of the log. Raises `CheckpointError` naming every missing,
    unexpected and misshapen weight.
    """
    missing: list[str] = []
    misshapen: list[str] = []
    extra: list[str] = []
    harmless: list[str] = []
    _sort_out(checkpoint.leftovers, extra, harmless)
    matched: dict[str, Matched] = {}
    for component, wanted in shapes.items():
        part = checkpoint.parts[component]
        found: Matched = {}
        used: set[str] = set()
        for name, shape in wanted.items():
            in_file = part.name_of(name)
            if in_file is None:
                missing.append(part.where + part.names(name)[0])
                continue
            used.add(in_file)
            stored = _fitted(part.stored[in_file], name, shape)
            if stored is None:
                misshapen.append(part.where + _misfit(part, in_file, shape))
            else:
                found[name] = stored
        unused = [name for name in part.stored if name not in used]
        _sort_out(unused, extra, harmless, part)
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
    refuse_shared(checkpoint.path, matched)
    if harmless:
        log.warning("%s: %s", checkpoint.path, left_out(harmless))
    return matched


def _sort_out(
    names: Iterable[str], extra: list[str], harmless: list[str], part: Part | None = None
) -> None:
    """Adds the names of weights that no parameter takes to `extra`, or their kind to `harmless`.

    part: that they are in; None for those of no component.
    """
    for name in names:
        kind = harmless_kind(name)
        if kind is None and part is not None:
            kind = part.unused(name)
        if kind is not None:
            harmless.append(kind)
        elif not is_routine(name):
            extra.append(name if part is None else part.where + name)


def refuse_shared(path: str, matched: Mapping[str, Matched]) -> None:
    """A strided tensor may repeat one element, and tensors may lie in the same bytes, so that a
    small file would describe weights that fill the memory. Raises `CheckpointError`.
    """
    tensors = [stored for part in matched.values() for stored in part.values()]
    files = {stored.file.path: stored.file.size for stored in tensors}
    needed = sum(stored.numel * stored.dtype.itemsize for stored in tensors)
    if needed > sum(files.values()):
        raise CheckpointError(
            f"{path}: its weights have {needed} bytes, more than the file: they share their "
            "memory, which a model's do not"
        )


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
    listed = ", ".join(map(named, names[:NAMED])) + (f" and {rest} more" if rest > 0 else "")
    return f"{len(names)} {kind}: {listed}"
