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
    own = [number for rows, _ in adapters.rows for number in range(*rows.indices(len(x)))]
    # Given all rows or none: the kernel may divide its work by how many there are.
    out = whole(x) if len(own) < len(x) else None
    for rows, shares in adapters.rows:
        both = sums(x[rows])
        adapters.add(both, x[rows], shares, sums)
        value, gate = both.chunk(2, dim=-1)
        gated = F.gelu(gate).mul_(value)
        if out is None:
            out = gated.new_empty(*x.shape[:-1], gated.shape[-1])
        out[rows] = gated
    assert out is not None
    return out
