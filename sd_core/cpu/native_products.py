"""Convolutions and linear layers by kernels of our own, for bfloat16 on CPUs with AVX-512 for it.

Convolutions of 3 x 3 by Winograd's algorithm: half the time of oneDNN's direct ones. Linear layers:
a sum, or the gate of a GEGLU, can cost oneDNN more time than the product, and another rounding. All
of it is by AVX-512, so it is not for CPUs with AMX, which multiplies several times as fast.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sd_core.cpu.kernels import call
from sd_core.cpu.native_adapters import WIDTH, Shares


class _WinogradSizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("rows", "height", "width", "channels", "out", "doubled", "threads")
    ]


class _LinearSizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "channels", "out", "threads")),
        ("shares", Shares),
    ]


WINOGRAD_CHANNELS = 16
"""Divisor of the number of input channels of our convolutions."""


WINOGRAD_KERNEL = torch.tensor(
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]]
)
"""G of F(2 x 2, 3 x 3) in Lavin & Gray 2016: the parts of a kernel g are G · g · Gᵀ."""


def winograd_weight(weight: Tensor) -> Tensor:
    """A convolution's weight for `winograd`: the 16 parts of each of its kernels.

    weight: (out, in, 3, 3), bfloat16 on a CPU, or on `meta`, where the result has no numbers.
    Returns (out / 64, 16, in / 2, 64, 2), bfloat16. Raises `ValueError` for other types, devices
    and shapes.
    """
    out, channels, *kernel = weight.shape
    if kernel != [3, 3] or out % WIDTH or channels % WINOGRAD_CHANNELS:
        raise ValueError(
            f"Winograd's convolution with a weight of {tuple(weight.shape)}; kernels are 3 x 3, "
            f"channels multiples of {WINOGRAD_CHANNELS}, and of {WIDTH} those that come out"
        )
    shape = out // WIDTH, 16, channels // 2, WIDTH, 2
    laid_out = torch.empty(shape, dtype=weight.dtype, device=weight.device)
    if not weight.is_meta:
        sizes = _WinogradSizes(0, 0, 0, channels, out, 0, torch.get_num_threads())
        call("winograd_weight", (weight.contiguous(), laid_out), sizes)
    return laid_out


def plain_winograd_weight(laid_out: Tensor) -> Tensor:
    """(out, in, 3, 3) float32: what `winograd_weight` laid out, but for its rounding."""
    blocks, _, pairs, *_ = laid_out.shape
    parts = laid_out.float().permute(1, 0, 3, 2, 4).reshape(4, 4, blocks * WIDTH, 2 * pairs)
    back = torch.linalg.pinv(WINOGRAD_KERNEL)
    return torch.einsum("ai,ijoc,bj->ocab", back, parts, back)


def winograd(
    x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None = None, *, doubled: bool = False
) -> Tensor:
    """`torch.nn.functional.conv2d` with kernels of 3 x 3, stride and padding of 1, by 16 products
    where it takes 36 (Lavin & Gray 2016), and sums in float32.

    x: (B, in, h, w); weight: as `winograd_weight` lays it out; bias: (out,); added: (B, out, h, w),
    to the result before it is rounded; all bfloat16 on a CPU. Returns (B, out, h, w), bfloat16, in
    channels-last, as x and added should be. doubled: x is enlarged by nearest neighbours before,
    and the rest is (B, out, 2h, 2w); that takes 9 products. A row's result depends on no other row
    or thread. Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    rows, channels, height, width = x.shape
    if doubled:
        height, width = 2 * height, 2 * width
    out = WIDTH * weight.shape[0]
    if weight.shape[1:] != (16, channels // 2, WIDTH, 2) or channels % WINOGRAD_CHANNELS:
        raise ValueError(f"{tuple(x.shape)} with a weight for {2 * weight.shape[2]} channels")
    x = x.contiguous(memory_format=torch.channels_last)
    result = torch.empty((rows, height, width, out), dtype=x.dtype).permute(0, 3, 1, 2)
    if added is not None:
        added = _fitting(added, result.shape).contiguous(memory_format=torch.channels_last)
    bias = _fitting(bias, (out,)).contiguous()
    sizes = _WinogradSizes(
        *(rows, height, width, channels, out), int(doubled), torch.get_num_threads()
    )
    call("winograd", (x, weight.contiguous(), bias, added, result), sizes)
    return result


def linear_weight(weight: Tensor) -> Tensor:
    """A linear layer's weight for `linear`.

    weight: (out, in), bfloat16, on `meta`, too. Returns (out / 64, in / 2, 64, 2), bfloat16.
    Raises `ValueError` for other types and shapes.
    """
    if weight.dim() != 2 or weight.shape[0] % WIDTH or weight.shape[1] % 2:
        raise ValueError(
            f"a linear layer with a weight of {tuple(weight.shape)}; what comes out is a multiple "
            f"of {WIDTH}, what goes in is even"
        )
    if weight.dtype is not torch.bfloat16:
        raise ValueError("linear is for bfloat16 on a CPU")
    out, channels = weight.shape
    pairs = weight.contiguous().view(torch.int32).view(out // WIDTH, WIDTH, channels // 2)
    laid_out = pairs.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return laid_out.view(torch.bfloat16).view(out // WIDTH, channels // 2, WIDTH, 2)


def plain_linear_weight(laid_out: Tensor) -> Tensor:
    """(out, in): what `linear_weight` laid out."""
    blocks, pairs, *_ = laid_out.shape
    return laid_out.transpose(1, 2).reshape(blocks * WIDTH, 2 * pairs)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    shares: Shares | None = None,
) -> Tensor:
    """`torch.nn.functional.linear`, and a sum.

    x: (..., in); weight: as `linear_weight` lays it out; bias: (out,); added: (..., out), to the
    result before it is rounded; all bfloat16 on a CPU; shares: adapters of the rows, which are
    added then, too. Returns (..., out), bfloat16, contiguous. Numbers depend on no others but those
    that they are made of. Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    x = x.contiguous()
    out = _out_of(x, weight)
    result = torch.empty((*x.shape[:-1], out), dtype=x.dtype)
    if added is not None:
        added = _fitting(added, result.shape).contiguous()
    if bias is not None:
        bias = _fitting(bias, (out,)).contiguous()
    sizes = _linear_sizes(x, out, shares)
    call("linear", (x, weight.contiguous(), bias, added, result), sizes)
    return result


def in_turns(values_and_gates: Tensor) -> Tensor:
    """The weight or bias of a GEGLU, (2 · out, ...), with values and gates in turns, 64 of each."""
    halves = values_and_gates.unflatten(0, (2, -1, WIDTH))
    return halves.transpose(0, 1).flatten(0, 2)


def in_halves(in_turns: Tensor) -> Tensor:
    """Sums of a layer whose weight is `in_turns`, (..., 2 · out), with all values first."""
    turns = in_turns.unflatten(-1, (-1, 2, WIDTH))
    return turns.transpose(-3, -2).flatten(-3)


def geglu(x: Tensor, weight: Tensor, bias: Tensor, shares: Shares | None = None) -> Tensor:
    """Values times GELU of gates (Shazeer 2020), two linear layers in one, and rounded once.

    x: (..., in); weight: of both, as `in_turns` and `linear_weight` lay it out; bias: (2 · out,),
    as `in_turns` orders it; all bfloat16 on a CPU; shares: adapters of the rows, whose columns are
    in turns, too. Returns (..., out), bfloat16, contiguous. Numbers depend on no others but those
    that they are made of. Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    x = x.contiguous()
    both = _out_of(x, weight)
    if both % (2 * WIDTH):
        raise ValueError(f"a GEGLU of {both} values and gates; {WIDTH} of each are in turns")
    bias = _fitting(bias, (both,))
    result = torch.empty((*x.shape[:-1], both // 2), dtype=x.dtype)
    sizes = _linear_sizes(x, both // 2, shares)
    call("geglu", (x, weight.contiguous(), bias.contiguous(), result), sizes)
    return result


def _linear_sizes(x: Tensor, out: int, shares: Shares | None) -> _LinearSizes:
    rows = x.shape[:-1].numel()
    return _LinearSizes(rows, x.shape[-1], out, torch.get_num_threads(), shares or Shares())


def _out_of(x: Tensor, weight: Tensor) -> int:
    """How many numbers come out for each row of x."""
    if weight.shape[1:] != (x.shape[-1] // 2, WIDTH, 2) or x.shape[-1] % 2:
        raise ValueError(f"{tuple(x.shape)} with a weight for {2 * weight.shape[1]} channels")
    return weight.shape[0] * WIDTH


def _fitting(added: Tensor, shape: tuple[int, ...]) -> Tensor:
    if added.shape != shape:
        raise ValueError(f"{tuple(added.shape)} is added to {tuple(shape)}")
    return added
