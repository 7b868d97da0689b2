"""Attention in bfloat16 on CPUs with AMX, by a kernel of our own (`attention.cpp`).

At v1's head size of 40 attention is limited by its exponentials, not by its products: torch's own
kernel spends two thirds of its time there. This one needs only as many digits of them as bfloat16
keeps, and takes half the time. It is built when the package is installed, where there is a C++
compiler that knows AMX; everywhere else torch's kernel serves.
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


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "heads", "queries", "keys", "dim")),
        ("threads", ctypes.c_int32),
        *((name, _Strides) for name in ("q", "k", "v")),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    """None where the kernel was not built, or where this machine cannot run it."""
    path = Path(__file__).with_name(f"_attention{sysconfig.get_config_var('EXT_SUFFIX')}")
    # Asked last, for it takes leave of the operating system to use the tiles.
    if not (path.exists() and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()):
        return None
    # Threads come from torch's own pool: its OpenMP library is loaded for all to see.
    library = ctypes.CDLL(str(path))
    library.sdbatch_attention.argtypes = [
        *(ctypes.c_void_p for _ in ("q", "k", "v", "out")),
        ctypes.POINTER(_Sizes),
        ctypes.c_float,
    ]
    return library


def has_kernel() -> bool:
    """Whether `attention` can be called here."""
    return _library() is not None


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q · kᵀ / sqrt(d)) · v, as `torch.nn.functional.scaled_dot_product_attention`.

    q: (B, heads, T, d); k and v: (B, heads, S, d); all bfloat16 on a CPU, d even. Returns
    (B, heads, T, d), bfloat16. A query's result depends on no other query, row or thread.
    Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    library = _library()
    if library is None:
        raise ValueError("there is no kernel for attention on this machine")
    rows, heads, queries, dim = q.shape
    keys = k.shape[2]
    if any(t.dtype is not torch.bfloat16 or t.device.type != "cpu" for t in (q, k, v)):
        raise ValueError("attention is for bfloat16 on a CPU")
    if k.shape != v.shape or k.shape != (rows, heads, keys, dim) or dim % 2 or not k.numel():
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise ValueError(f"attention of {shapes}; d is even, and k and v are of the same shape")
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    out = torch.empty(rows, queries, heads, dim, dtype=q.dtype)
    sizes = _Sizes(
        *(rows, heads, queries, keys, dim),
        torch.get_num_threads(),
        *(_Strides(*t.stride()[:3]) for t in (q, k, v)),
    )
    pointers = (t.data_ptr() for t in (q, k, v, out))
    if library.sdbatch_attention(*pointers, ctypes.byref(sizes), dim**-0.5):
        raise MemoryError("no memory for attention")
    return out.transpose(1, 2)
