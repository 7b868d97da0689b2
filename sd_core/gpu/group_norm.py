"""Group norm with what comes before and after it, for channels-last feature maps on CUDA.

In Triton where that is, and where its results are right on this card; else by torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 2e-2  # of float16 and bfloat16 numbers of about 1, and more than float32 needs


def plain_group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool = False,
    added: Tensor | None = None,
) -> Tensor:
    """Group norm (Wu & He 2018) of x, (B, channels, h, w), and SiLU of it where that is wanted.

    added: (B, channels), added to x before. The result has the type and layout of x; between, all
    is float32.
    """
    y = x.float() if added is None else x.float() + added.float()[:, :, None, None]
    y = y.unflatten(1, (groups, -1))
    of_group = (2, 3, 4)
    mean = y.mean(of_group, keepdim=True)
    # Not `F.group_norm`: on CPUs it takes the difference of two large numbers for the variance.
    variance = y.var(of_group, correction=0, keepdim=True)
    y = ((y - mean) * torch.rsqrt(variance + eps)).flatten(1, 2)
    y = y * weight.float()[:, None, None] + bias.float()[:, None, None]
    y = F.silu(y) if silu else y
    return torch.empty_like(x).copy_(y)


def works(device: torch.device, dtype: torch.dtype) -> bool:
    """True if Triton's group norm is here, and right on small maps of this device and type."""
    try:
        from sd_core.gpu.triton_norm import group_norm
    except ImportError:
        return False
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 320, 12, 8, generator=draw).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(320, generator=draw).to(device, dtype) for _ in range(2))
    added = torch.randn(2, 320, generator=draw).to(device, dtype)
    try:
        for shift in (None, added):
            mine = group_norm(x, 32, weight, bias, 1e-5, silu=True, added=shift)
            right = plain_group_norm(x, 32, weight, bias, 1e-5, silu=True, added=shift)
            if not torch.allclose(mine.float(), right.float(), rtol=TOLERANCE, atol=TOLERANCE):
                return False
    except Exception:  # of Triton's compiler, of many kinds
        return False
    return True
