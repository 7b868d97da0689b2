"""Adapters in a GEGLU whose gate is part of its product's kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sd_core.model.adapters import Adapters, Product


def adapted_geglu(adapters: Adapters, x: Tensor, whole: Product, sums: Product) -> Tensor:
    """The GEGLU of x, (B, T, in) -> (B, T, out).

    Adapters add to what the kernel does not give: so rows that have some are made by themselves.
    whole: the GEGLU without adapters. sums: its linear layer, (..., 2 · out), values first.
    """
    if not adapters.rows:
        return whole(x)
    made = []
    for rows, shares in adapters.rows:
        both = sums(x[rows])
        adapters.add(both, x[rows], shares, sums)
        value, gate = both.chunk(2, dim=-1)
        made.append((rows, F.gelu(gate).mul_(value)))
    if sum(len(gated) for _, gated in made) < len(x):
        out = whole(x)  # of all rows: the kernel may divide its work by how many there are
    else:
        out = x.new_empty(*x.shape[:-1], made[0][1].shape[-1])
    for rows, gated in made:
        out[rows] = gated
    return out
