"""What tests of kernels of our own share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sd_core.cpu.kernels import have_kernels
from sd_core.model.adapters import Share

needs_kernels = pytest.mark.skipif(
    not have_kernels(), reason="no AVX-512 for bfloat16, or built without a compiler"
)


def error(result: Tensor, wanted: Tensor) -> float:
    """Relative, over the whole tensor. wanted: float64."""
    return ((result.double() - wanted).norm() / wanted.norm()).item()


class Drawn:
    """Tensors from one seed."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def whole(self, most: int, *shape: int) -> Tensor:
        """Whole numbers, so small that products of them are exact."""
        return torch.randint(-most, most + 1, shape, generator=self._generator).bfloat16()

    def real(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).bfloat16()


def merged(weight: Tensor, shares: tuple[Share, ...]) -> Tensor:
    """The weight with adapters in it, float64."""
    whole = weight.double()
    for (down, up, scale, gain), share in shares:
        low = scale * (up.double() @ down.double().flatten(1)).view(whole.shape)
        if gain is not None:
            own = gain.factor.double().view(-1, *[1] * (whole.dim() - 1)) * weight.double()
            low = low + own
        whole = whole + share * low
    return whole
