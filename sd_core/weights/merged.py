"""Weights of a model with changes merged in while they are read, one layer at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sd_core.spec import ModelSpec
from sd_core.weights.assemble import Filling, Matched
from sd_core.weights.errors import CheckpointError
from sd_core.weights.lora.changes import Change, read_changes
from sd_core.weights.stored import StoredTensor


class Merge(Protocol):
    """A file to merge, the sha256 of its bytes, and how much of it in UNet and text encoder."""

    @property
    def file(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def text_weight(self) -> float: ...


@dataclass(frozen=True)
class MergedTensor:
    """A weight or a bias and its changes, with how much of each; rounded once, at the end."""

    stored: StoredTensor
    changes: Sequence[tuple[Change, float]]
    of_bias: bool

    @property
    def numel(self) -> int:
        return self.stored.numel

    def copy_into(self, out: Tensor, scratch: Tensor) -> None:
        """See `StoredTensor.copy_into`."""
        value = self.stored.view().float()
        for change, share in self.changes:
            if not self.of_bias:
                value = change.applied(value, share)
            elif change.bias is not None:
                value = value + share * change.bias.float()
        out.copy_(value)
        self.stored.release()


def merged(
    stored: Mapping[str, Matched], merges: Sequence[Merge], spec: ModelSpec
) -> dict[str, dict[str, Filling]]:
    """The weights of a model, by component and name, with files merged into them, in order.

    Raises `CheckpointError` for a file that cannot be.
    """
    changes: dict[tuple[str, str], list[tuple[Change, float]]] = {}
    for merge in merges:
        for (component, name), change in read_changes(merge.file, spec).items():
            share = merge.weight if component == "unet" else merge.text_weight
            if change.bias is not None and f"{name}.bias" not in stored[component]:
                raise CheckpointError(f"{merge.file}: {component} {name} has no bias to change")
            if share:
                changes.setdefault((component, name), []).append((change, share))
    whole: dict[str, dict[str, Filling]] = {part: dict(found) for part, found in stored.items()}
    for (component, name), own in changes.items():
        for leaf in ("weight", "bias"):
            tensor = stored[component].get(f"{name}.{leaf}")
            if tensor is not None:
                merged_tensor = MergedTensor(tensor, own, of_bias=leaf == "bias")
                whole[component][f"{name}.{leaf}"] = merged_tensor
    return whole


def merged_digest(digest: str, merges: Sequence[Merge]) -> str:
    """Digest of a model with files merged into it: another one for other files, weights or order.

    digest: of the model without. Without files it is that.
    """
    if not merges:
        return digest
    total = hashlib.sha256(digest.encode())
    for merge in merges:
        total.update(f"\n{merge.sha256} {merge.weight!r} {merge.text_weight!r}".encode())
    return total.hexdigest()
