"""Kernels of our own for bfloat16 on CPUs with AVX-512 for it (`sd_core/cpp`).

Attention, by AMX where there is such: at v1's head size of 40 it is limited by its exponentials
then, not by its products. Ours has only as many digits of them as bfloat16 keeps, and takes half
the time of torch's kernel or less. Group norm: torch's kernel for channels-last takes several times
what reading and writing the map does; SiLU is another pass, and so is what a residual block adds
before. Layer norm: half the time of torch's.

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

from sd_core.device import cpu_has, uses_avx512


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


LIBRARY = Path(__file__).with_name(f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")
"""Where the kernels are, if they were built."""


@cache
def _library() -> ctypes.CDLL | None:
    """None where the kernels were not built, or where this machine cannot run any."""
    able = uses_avx512() and cpu_has("_is_avx512_bf16_supported")
    if not (able and LIBRARY.exists()):
        return None
    try:
        # Threads come from torch's own pool: its OpenMP library is loaded for all to see.
        return ctypes.CDLL(str(LIBRARY))
    except OSError:  # a torch with another one
        return None


def have_kernels() -> bool:
    """True if the functions below can be called here."""
    return _library() is not None


@cache
def have_amx() -> bool:
    """True if this CPU multiplies matrices of bfloat16 by AMX."""
    # The second question also takes leave of the operating system to use the tiles.
    return uses_avx512() and cpu_has("_is_amx_tile_supported") and cpu_has("_init_amx")


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
    call("attention", (q, k, v, out), sizes, dim**-0.5)
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
    call("group_norm", (x, added, weight.contiguous(), bias.contiguous(), out), sizes, eps)
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
    call("layer_norm", (x, weight.contiguous(), bias.contiguous(), out), sizes, eps)
    return out


def call(
    name: str, tensors: tuple[Tensor | None, ...], sizes: ctypes.Structure, number: float = 0.0
) -> None:
    """Calls the kernel of that name. Raises `ValueError` where there are none, and for other types
    and devices, `MemoryError`.
    """
    library = _library()
    if library is None:
        raise ValueError("the kernels are not on this machine")
    given = [t for t in tensors if t is not None]
    if any(t.dtype is not torch.bfloat16 or t.device.type != "cpu" for t in given):
        raise ValueError(f"{name} is for bfloat16 on a CPU")
    pointers = (ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors)
    kernel = getattr(library, f"sdbatch_{name}")
    if kernel(*pointers, ctypes.byref(sizes), ctypes.c_float(number)):
        raise MemoryError(f"no memory for {name}")
