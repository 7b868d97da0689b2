"""What tests of kernels of our own share."""

from __future__ import annotations

import pytest
from torch import Tensor

from sd_core.cpu.kernels import have_kernels

needs_kernels = pytest.mark.skipif(
    not have_kernels(), reason="no AVX-512 for bfloat16, or built without a compiler"
)


def error(result: Tensor, wanted: Tensor) -> float:
    """Relative, over the whole tensor. wanted: float64."""
    return ((result.double() - wanted).norm() / wanted.norm()).item()
