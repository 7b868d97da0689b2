"""oneDNN's kernels on weights in its own layout, by operators of torch that are not public.

All that sdbatch asks of these operators is here, and is tried on small tensors before a model
depends on it (`works`): a torch that lost or changed one of them renders by its public ones.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.cpu import mkldnn_tensor

log = logging.getLogger(__name__)

Size = tuple[int, ...]

_SUPPORT = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}
"""The questions whether this CPU multiplies a type; every CPU multiplies float32."""

_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Relative errors that each type's own rounding explains."""


class Geometry(NamedTuple):
    """How a convolution's kernel moves; padding, stride and dilation by (height, width)."""

    padding: Size
    stride: Size
    dilation: Size = (1, 1)
    groups: int = 1


def lay_out_convolution(weight: Tensor, geometry: Geometry, size: Size) -> Tensor:
    """A weight (out, in, h, w) as oneDNN wants it for inputs of this size, (B, C, H, W)."""
    # oneDNN's own way from contiguous weights is slower than by channels-last.
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, size)


def lay_out_linear(weight: Tensor, tokens: int) -> Tensor:
    """A weight (out, in) as oneDNN wants it for so many tokens."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), tokens)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """`torch.nn.functional.conv2d` with a weight that was laid out."""
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear` with a weight that was laid out, and GELU of it if wanted."""
    attr, algorithm = ("gelu", "none") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, attr, [], algorithm)


def linear_times(x: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor) -> Tensor:
    """`linear`, times a factor of its shape."""
    return torch.ops.mkldnn._linear_pointwise(x, factor, weight, bias, "mul")


def nbytes(weight: Tensor) -> int:
    """Memory of a weight, laid out or not."""
    return int(torch.ops.mkldnn._nbytes(weight)) if weight.is_mkldnn else weight.nbytes


@cache
def works(dtype: torch.dtype) -> bool:
    """True where the functions above give torch's numbers in this type on this machine.

    Where torch says that it can, and then cannot, one log line tells why.
    """
    if not torch.backends.mkldnn.is_available() or dtype not in _TOLERANCE:
        return False
    ops = torch.ops.mkldnn
    if dtype in _SUPPORT and not getattr(ops, _SUPPORT[dtype], bool)():
        return False
    try:
        with torch.no_grad():
            flaw = _flaw(dtype)
    # Whatever a changed operator raises, the public ones serve.
    except Exception as error:
        flaw = f"{type(error).__name__}: {error}".splitlines()[0]
    if flaw is not None:
        name = str(dtype).removeprefix("torch.")
        log.warning(
            "torch %s offers oneDNN's kernels for %s in another way than sdbatch knows (%s); "
            "models run without them, and slower",
            *(torch.__version__, name, flaw),
        )
    return flaw is None


def _flaw(dtype: torch.dtype) -> str | None:
    """The name of a function above that gives other numbers than torch, if there is one."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    geometry = Geometry((1, 1), (1, 1))
    image = random(2, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    kernel, tokens, matrix = random(32, 16, 3, 3), random(6, 16), random(32, 16)
    bias, factor = random(32), random(6, 32)
    conv_weight = lay_out_convolution(kernel, geometry, tuple(image.shape))
    linear_weight = lay_out_linear(matrix, len(tokens))
    product = F.linear(tokens, matrix, bias)
    results = {
        "convolution": (
            convolution(image, conv_weight, bias, geometry),
            F.conv2d(image, kernel, bias, padding=1),
        ),
        "linear": (linear(tokens, linear_weight, bias), product),
        "gelu": (linear(tokens, linear_weight, bias, gelu=True), F.gelu(product)),
        "product": (linear_times(tokens, linear_weight, bias, factor), product * factor),
        "dense": (conv_weight.to_dense(), kernel),
    }
    for name, (ours, wanted) in results.items():
        error = (ours.float() - wanted.float()).norm() / wanted.float().norm()
        if ours.shape != wanted.shape or not error < _TOLERANCE[dtype]:
            return f"{name} gives other numbers"
    for weight, plain in ((conv_weight, kernel), (linear_weight, matrix)):
        # Whole blocks of channels, which are at most 64 wide.
        if not plain.nbytes <= nbytes(weight) <= 64 * plain.nbytes:
            return "a weight takes another amount of memory"
        numbers = mkldnn_tensor.content(weight).view(dtype)
        if not torch.equal(numbers[numbers != 0].sort()[0], plain.flatten().sort()[0]):
            return "a weight's memory holds other numbers"
    return None
