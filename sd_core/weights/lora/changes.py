"""Changes that a file makes to whole weights: of any kind of adapter, for merging into a model.

LoHa and LoKr are those of LyCORIS (Yeh et al. 2023, arXiv:2309.14859), with their Tucker forms for
convolutions: a Hadamard product of two low-rank matrices, and a Kronecker product of two smaller
ones. Differences are whole weights and biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sd_core.spec import ModelSpec
from sd_core.weights.errors import CheckpointError
from sd_core.weights.lora.names import Layer, Shape
from sd_core.weights.lora.read import (
    MOST_RANK,
    alpha_scale,
    low_rank,
    magnitude_of,
    tensors_of,
)

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Change:
    """A file's change of one layer.

    delta: makes what is added to the weight at 1, float32 of the weight's shape. bias: the same of
    the bias (out,), or None. magnitude: (out,) lengths of rows that the changed weight shall have,
    of DoRA (Liu et al. 2024, arXiv:2402.09353), or None.
    """

    delta: Callable[[], Tensor]
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    def applied(self, weight: Tensor, share: float) -> Tensor:
        """weight: float32 (out, in) or (out, in, kh, kw) -> the same, changed. share: how much."""
        delta = self.delta()
        if self.magnitude is not None:
            changed = (weight + delta).flatten(1)
            lengths = changed.norm(dim=1, keepdim=True)
            scaled = changed * (self.magnitude.float()[:, None] / lengths)
            delta = torch.where(lengths > 0, scaled, changed).view_as(weight) - weight
        return weight + share * delta


def read_changes(path: Path, spec: ModelSpec) -> dict[Layer, Change]:
    """The changes in a file of safetensors or of pickled tensors, by layer.

    Raises `CheckpointError` for a file of something else, and naming what fits no layer.
    """
    parts, shapes, scale_of = tensors_of(path, spec, merged=True)
    return {
        layer: _change(
            f"{path}: {' '.join(layer)}", tensors, shapes[layer], partial(scale_of, layer)
        )
        for layer, tensors in parts.items()
    }


def _change(where: str, tensors: Tensors, shape: Shape, scale_of: Callable[[int], float]) -> Change:
    magnitude = magnitude_of(where, tensors, shape[0])
    bias = tensors.get("diff_b")
    if bias is not None and bias.shape != shape[:1]:
        raise CheckpointError(f"{where}: its bias is {tuple(bias.shape)}; expected {shape[:1]}")
    if any(leaf.startswith("hada") for leaf in tensors):
        return Change(_loha(where, tensors, shape), bias, magnitude)
    if any(leaf.startswith("lokr") for leaf in tensors):
        return Change(_lokr(where, tensors, shape), bias, magnitude)
    if "diff" in tensors or tensors.keys() == {"diff_b"}:
        difference = tensors.get("diff", torch.zeros(shape))
        if difference.numel() != math.prod(shape):
            raise CheckpointError(
                f"{where}: its difference is {tuple(difference.shape)}; expected {shape}"
            )
        return Change(lambda: difference.float().view(shape), bias, magnitude)
    layer = low_rank(where, tensors, shape, scale_of)
    down, up, scale = layer.down, layer.up, layer.scale
    return Change(
        lambda: (scale * (up.float() @ down.float().flatten(1))).view(shape), bias, layer.magnitude
    )


def _loha(where: str, tensors: Tensors, shape: Shape) -> Callable[[], Tensor]:
    halves = []
    for number in "12":
        a, b = (_found(where, tensors, f"hada_w{number}_{side}") for side in "ab")
        halves.append((a, b, tensors.get(f"hada_t{number}")))
    for a, b, core in halves:
        made = _product_shape(where, a, b, core)
        if math.prod(made) != math.prod(shape) or made[0] != shape[0]:
            raise _misfit(where, tensors, shape)
    scale = _scale(where, tensors, len(halves[0][1]))

    def delta() -> Tensor:
        first, second = (_product(*half).reshape(shape) for half in halves)
        return scale * first * second

    return delta


def _lokr(where: str, tensors: Tensors, shape: Shape) -> Callable[[], Tensor]:
    whole: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    sides: list[Shape] = []
    rank = None
    for number in "12":
        if f"lokr_w{number}" in tensors:
            matrix = tensors[f"lokr_w{number}"]
            whole.append((matrix, None, None))
            sides.append(tuple(matrix.shape))
            continue
        a, b = (_found(where, tensors, f"lokr_w{number}_{side}") for side in "ab")
        core = tensors.get("lokr_t2") if number == "2" else None
        whole.append((a, b, core))
        sides.append(_product_shape(where, a, b, core))
        rank = len(b) if rank is None else rank
    scale = 1.0 if rank is None else _scale(where, tensors, rank)
    small, large = sides
    kernel = shape[2:]
    if len(large) == 2 and large[1] % math.prod(kernel) == 0:  # its kernel is in the columns
        large = (large[0], large[1] // math.prod(kernel), *kernel)
    small = (*small, *[1] * len(kernel))
    if len(small) != len(large) or tuple(map(math.prod, zip(small, large, strict=True))) != shape:
        raise _misfit(where, tensors, shape)

    def delta() -> Tensor:
        first, second = (a.float() if b is None else _product(a, b, core) for a, b, core in whole)
        return scale * torch.kron(first.reshape(small), second.reshape(large).contiguous())

    return delta


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """(out, in …) of two low-rank halves, in float32; with a core (r, r, kh, kw) in Tucker form,
    in which a is (r, out) and b is (r, in).
    """
    if core is None:
        return a.float() @ b.float().flatten(1)
    return torch.einsum("ijkl,ip,jq->pqkl", core.float(), a.float(), b.float())


def _product_shape(where: str, a: Tensor, b: Tensor, core: Tensor | None) -> Shape:
    """Shape of the product. Raises `CheckpointError` where the halves do not go together."""
    if core is None:
        ranks = tuple(b.shape[:1])
        if a.dim() == 2 <= b.dim() and tuple(a.shape[1:]) == ranks and _allowed(ranks):
            return (a.shape[0], math.prod(b.shape[1:]))
    elif a.dim() == b.dim() == 2 and core.dim() == 4:
        ranks = (len(a), len(b))
        if tuple(core.shape[:2]) == ranks and _allowed(ranks):
            return (a.shape[1], b.shape[1], *core.shape[2:])
    found = ", ".join(str(tuple(t.shape)) for t in (a, b, *([] if core is None else [core])))
    raise CheckpointError(f"{where}: its parts {found} do not go together")


def _allowed(ranks: Shape) -> bool:
    return all(1 <= rank <= MOST_RANK for rank in ranks)


def _found(where: str, tensors: Tensors, leaf: str) -> Tensor:
    if leaf not in tensors:
        raise CheckpointError(f"{where}: {leaf} is missing")
    return tensors[leaf]


def _scale(where: str, tensors: Tensors, rank: int) -> float:
    scale = alpha_scale(where, tensors, rank)
    return 1.0 if scale is None else scale


def _misfit(where: str, tensors: Tensors, shape: Shape) -> CheckpointError:
    found = ", ".join(f"{leaf} {tuple(t.shape)}" for leaf, t in tensors.items() if t.dim())
    return CheckpointError(f"{where}: found {found}; expected parts of a layer of {shape}")
