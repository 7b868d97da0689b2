"""Kernels of our own for bfloat16 on CPUs with AVX-512 for it (`sd_core/cpp`).

Attention, by AMX where there is such: at v1's head size of 40 it is limited by its exponentials
then, not by its products. Ours has only as many digits of them as bfloat16 keeps, and takes half
the time of torch's kernel or less. Group norm: torch's kernel for channels-last takes several times
what reading and writing the map does; SiLU is another pass, and so is what a residual block adds
before. Layer norm: half the time of torch's.

Convolutions of 3 x 3 by Winograd's algorithm: half the time of oneDNN's direct ones. Linear layers:
a sum, or the gate of a GEGLU, costs oneDNN up to as much time again, and another rounding. Their
products are by AVX-512, which is not for CPUs with AMX.

They are built when the package is installed, where there is a C++ compiler that knows these CPUs;
everywhere else torch's kernels serve.
"""

from __future__ import annotations

import ctypes
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("row", "head", "token")]


class _AttentionSizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "heads", "queries", "keys", "dim")),
        *((name, ctypes.c_int32) for name in ("threads", "amx")),
        *((name, _Strides) for name in ("q", "k", "v")),
    ]


class _GroupNormSizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("rows", "pixels", "channels", "groups", "silu", "threads")
    ]


class _LayerNormSizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("rows", "width", "threads")]


class _WinogradSizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("rows", "height", "width", "channels", "out", "doubled", "threads")
    ]


class _LinearSizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("rows", "channels", "out", "threads")]


_FUNCTIONS = {
    "attention": (4, _AttentionSizes),
    "group_norm": (5, _GroupNormSizes),
    "layer_norm": (4, _LayerNormSizes),
    "winograd": (5, _WinogradSizes),
    "winograd_weight": (2, _WinogradSizes),
    "linear": (5, _LinearSizes),
    "geglu": (4, _LinearSizes),
}
"""Name -> how many tensors it takes, and its sizes."""


LIBRARY = Path(__file__).with_name(f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")
"""Where the kernels are, if they were built."""


@cache
def _library() -> ctypes.CDLL | None:
    """None where the kernels were not built, or where this machine cannot run any."""
    if not (LIBRARY.exists() and torch.cpu._is_avx512_bf16_supported()):
        return None
    try:
        # Threads come from torch's own pool: its OpenMP library is loaded for all to see.
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # a torch with another one
        return None
    for name, (tensors, sizes) in _FUNCTIONS.items():
        function = getattr(library, f"sdbatch_{name}")
        pointers = [ctypes.c_void_p] * tensors
        function.argtypes = [*pointers, ctypes.POINTER(sizes), ctypes.c_float]
    return library


def have_kernels() -> bool:
    """Whether the functions below can be called here."""
    return _library() is not None


@cache
def have_amx() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 by AMX."""
    # The second question also takes leave of the operating system to use the tiles.
    return torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q · kᵀ / sqrt(d)) · v, as `torch.nn.functional.scaled_dot_product_attention`.

    q: (B, heads, T, d); k and v: (B, heads, S, d); all bfloat16 on a CPU, d even. Returns
    (B, heads, T, d), bfloat16. A query's result depends on no other query, row or thread.
    Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    rows, heads, queries, dim = q.shape
    keys = k.shape[2]
    if k.shape != v.shape or k.shape != (rows, heads, keys, dim) or dim % 2 or not k.numel():
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"attention of {shapes}; d is even, and k and v are of the same shape")
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    out = torch.empty(rows, queries, heads, dim, dtype=q.dtype)
    sizes = _AttentionSizes(
        *(rows, heads, queries, keys, dim),
        torch.get_num_threads(),
        int(have_amx()),
        *(_Strides(*t.stride()[:3]) for t in (q, k, v)),
    )
    _call("attention", (q, k, v, out), sizes, dim**-0.5)
    return out.transpose(1, 2)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    added: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.group_norm`, and SiLU of it where that is wanted.

    x: (B, channels, h, w); weight, bias: (channels,); added: (B, channels), added to x before; all
    bfloat16 on a CPU, channels a multiple of groups. Returns (B, channels, h, w), bfloat16, in
    channels-last, as x should be. A row's result depends on no other row or thread.
    Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    rows, channels, height, width = x.shape
    if channels % groups or weight.shape != (channels,) or bias.shape != (channels,):
        raise ValueError(
            f"group norm of {channels} channels in {groups} groups, with "
            f"{tuple(weight.shape)} weights and {tuple(bias.shape)} biases"
        )
    if added is not None and added.shape != (rows, channels):
        raise ValueError(
            f"{tuple(added.shape)} numbers added to {rows} rows of {channels} channels"
        )
    x = x.contiguous(memory_format=torch.channels_last)
    added = None if added is None else added.contiguous()
    out = torch.empty_like(x)
    sizes = _GroupNormSizes(
        *(rows, height * width, channels, groups), int(silu), torch.get_num_threads()
    )
    _call("group_norm", (x, added, weight.contiguous(), bias.contiguous(), out), sizes, eps)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.layer_norm` over the last axis.

    x: (..., dim); weight, bias: (dim,); all bfloat16 on a CPU. Returns (..., dim), bfloat16,
    contiguous. Numbers depend on no others but those they are normed with.
    Raises `ValueError` for other types, devices and shapes.
    """
    dim = x.shape[-1]
    if weight.shape != (dim,) or bias.shape != (dim,):
        raise ValueError(
            f"layer norm of {tuple(x.shape)}, with {tuple(weight.shape)} weights and "
            f"{tuple(bias.shape)} biases"
        )
    x = x.contiguous()
    out = torch.empty_like(x)
    sizes = _LayerNormSizes(x.numel() // dim, dim, torch.get_num_threads())
    _call("layer_norm", (x, weight.contiguous(), bias.contiguous(), out), sizes, eps)
    return out


WIDTH = 64
"""What the channels that come out of our products are a multiple of."""

WINOGRAD_CHANNELS = 16
"""And those that go into a convolution."""


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
        _call("winograd_weight", (weight.contiguous(), laid_out), sizes)
    return laid_out


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
    if weight.shape[1:] != (16, channels // 2, WIDTH, 2) or channels % 2:
        raise ValueError(f"{tuple(x.shape)} with a weight for {2 * weight.shape[2]} channels")
    x = x.contiguous(memory_format=torch.channels_last)
    result = torch.empty((rows, height, width, out), dtype=x.dtype).permute(0, 3, 1, 2)
    if added is not None:
        added = _fitting(added, result.shape).contiguous(memory_format=torch.channels_last)
    bias = _fitting(bias, (out,)).contiguous()
    sizes = _WinogradSizes(
        *(rows, height, width, channels, out), int(doubled), torch.get_num_threads()
    )
    _call("winograd", (x, weight.contiguous(), bias, added, result), sizes)
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


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None
) -> Tensor:
    """`torch.nn.functional.linear`, and a sum.

    x: (..., in); weight: as `linear_weight` lays it out; bias: (out,); added: (..., out), to the
    result before it is rounded; all bfloat16 on a CPU. Returns (..., out), bfloat16, contiguous.
    Numbers depend on no others but those that they are made of. Raises `ValueError` for other
    types, devices and shapes, `MemoryError`.
    """
    x = x.contiguous()
    out = _out_of(x, weight)
    result = torch.empty((*x.shape[:-1], out), dtype=x.dtype)
    if added is not None:
        added = _fitting(added, result.shape).contiguous()
    if bias is not None:
        bias = _fitting(bias, (out,)).contiguous()
    sizes = _LinearSizes(x.shape[:-1].numel(), x.shape[-1], out, torch.get_num_threads())
    _call("linear", (x, weight.contiguous(), bias, added, result), sizes)
    return result


def in_turns(values_and_gates: Tensor) -> Tensor:
    """The weight or bias of a GEGLU, (2 · out, ...), with values and gates in turns, 64 of each."""
    halves = values_and_gates.unflatten(0, (2, -1, WIDTH))
    return halves.transpose(0, 1).flatten(0, 2)


def geglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Values times GELU of gates (Shazeer 2020), two linear layers in one, and rounded once.

    x: (..., in); weight: of both, as `in_turns` and `linear_weight` lay it out; bias: (2 · out,),
    as `in_turns` orders it; all bfloat16 on a CPU. Returns (..., out), bfloat16, contiguous.
    Numbers depend on no others but those that they are made of. Raises `ValueError` for other
    types, devices and shapes, `MemoryError`.
    """
    x = x.contiguous()
    both = _out_of(x, weight)
    if both % (2 * WIDTH):
        raise ValueError(f"a GEGLU of {both} values and gates; {WIDTH} of each are in turns")
    bias = _fitting(bias, (both,))
    result = torch.empty((*x.shape[:-1], both // 2), dtype=x.dtype)
    sizes = _LinearSizes(x.shape[:-1].numel(), x.shape[-1], both // 2, torch.get_num_threads())
    _call("geglu", (x, weight.contiguous(), bias.contiguous(), result), sizes)
    return result


def _out_of(x: Tensor, weight: Tensor) -> int:
    """How many numbers come out for each row of x."""
    if weight.shape[1:] != (x.shape[-1] // 2, WIDTH, 2) or x.shape[-1] % 2:
        raise ValueError(f"{tuple(x.shape)} with a weight for {2 * weight.shape[1]} channels")
    return weight.shape[0] * WIDTH


def _fitting(added: Tensor, shape: tuple[int, ...]) -> Tensor:
    if added.shape != shape:
        raise ValueError(f"{tuple(added.shape)} is added to {tuple(shape)}")
    return added


def _call(
    name: str, tensors: tuple[Tensor | None, ...], sizes: ctypes.Structure, number: float = 0.0
) -> None:
    library = _library()
    if library is None:
        raise ValueError("the kernels are not on this machine")
    given = [t for t in tensors if t is not None]
    if any(t.dtype is not torch.bfloat16 or t.device.type != "cpu" for t in given):
        raise ValueError(f"{name} is for bfloat16 on a CPU")
    pointers = (None if t is None else t.data_ptr() for t in tensors)
    if getattr(library, f"sdbatch_{name}")(*pointers, ctypes.byref(sizes), number):
        raise MemoryError(f"no memory for {name}")
