"""Low-rank adapters by kernels of our own: for all rows of a batch in one call, whatever each has.

Products of torch would be one call or more for each row, as the bits of a product may depend on how
many rows it is given. Here a row's numbers depend on its own adapters alone. In layers whose
products are ours, adapters are part of them, and the sums are rounded once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.cpu.kernels import call
from sd_core.model.adapters import Adapters, ConvAdapters, Gain, LowRank, Product, RowShares

WIDTH = 64
"""Divisor of the number of columns of a result that adapters are added to."""

LANES = 16
"""Divisor of a rank, which is filled up with zeros."""


class _Share(ctypes.Structure):
    """An adapter of a range of rows and columns; see `cpp/low_rank.h`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("begin", "end", "column", "columns", "rank")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("down", "up", "factor")),
    ]


class Shares(ctypes.Structure):
    """Adapters of a kernel's rows; those of one row stand together."""

    _fields_ = [("first", ctypes.POINTER(_Share)), ("count", ctypes.c_int32)]

    kept: Sequence[object] = ()  # whose memory a kernel reads


class _LowRankSizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("height", "width", "in_height", "in_width")),
        *((name, ctypes.c_int32) for name in ("channels", "out", "kernel", "stride", "padding")),
        *((name, ctypes.c_int32) for name in ("threads", "pixels")),
        ("shares", Shares),
    ]


def can_add_to(conv: nn.Conv2d) -> bool:
    """True for a convolution that `add_low_rank` can add adapters to."""
    ways = conv.kernel_size, conv.stride, cast(tuple[int, ...], conv.padding)
    square = all(height == width for height, width in ways)
    return square and (conv.dilation, conv.groups) == ((1, 1), 1) and _suits(*conv.weight.shape[:2])


def _suits(out: int, into: int) -> bool:
    return out % WIDTH == 0 and into % 2 == 0


def lay_out(low_rank: LowRank) -> LowRank:
    """An adapter as the kernels take it.

    down: (r, in), or (r, in, k, k); up: (out, r); both bfloat16 on a CPU. Returns it with down
    (R · k · k · in,), panels of at most 64 columns, of pairs of channels, and up
    (out / 64, R / 2, 64, 2); R is r, filled up with zeros.
    """
    down, up, scale, gain = low_rank
    rank, into = down.shape[:2]
    more = -rank % LANES
    down = F.pad(down.reshape(rank, into, -1), (0, 0, 0, 0, 0, more))
    up = F.pad(up, (0, more))
    panels = [
        # (width, in / 2, 2, taps) to (taps, in / 2, width, 2)
        panel.unflatten(1, (into // 2, 2)).permute(3, 1, 0, 2).flatten()
        for panel in down.split(WIDTH)
    ]
    pairs = up.unflatten(0, (-1, WIDTH)).unflatten(2, (-1, 2)).transpose(1, 2)
    return LowRank(torch.cat(panels), pairs.contiguous(), scale, gain)


Part = tuple[Sequence[RowShares], int, int]
"""Adapters, laid out, with the first of their columns of a result and how many they are."""


def shares_of(
    parts: Iterable[Part], tokens: int, depth: int, *, gains: bool = True
) -> Shares | None:
    """Adapters of a layer's rows as its kernel takes them; None where there are none.

    tokens: of each row. depth: numbers that one of the result is made of, in, or in · k · k.
    gains: they become factors of the layer's own product, for what they add to the bias is 0; False
    leaves them out. Raises `ValueError` for an adapter of other sizes.
    """
    found: list[_Share] = []
    kept: list[object] = []
    for all_rows, column, columns in parts:
        kept.append(all_rows)
        for rows, shares in _ranges(all_rows):
            factor = _factor([(one.gain, weight) for one, weight in shares]) if gains else None
            if factor is not None:
                kept.append(factor)
            for (down, up, scale, _), weight in shares:
                address = None if factor is None else factor.data_ptr()
                rank = 2 * up.shape[1]
                if up.shape[0] * WIDTH != columns or down.numel() != rank * depth:
                    raise ValueError(
                        f"an adapter from {down.numel() / rank:g} to {up.shape[0] * WIDTH} numbers "
                        f"is added to a product from {depth} to {columns}"
                    )
                found.append(
                    _Share(
                        *(rows.start * tokens, rows.stop * tokens, column, columns, rank),
                        *(weight * scale, down.data_ptr(), up.data_ptr(), address),
                    )
                )
                factor = None  # once, for all of them
    if not found:
        return None
    shares_given = Shares((_Share * len(found))(*found), len(found))
    shares_given.kept = kept
    return shares_given


def _ranges(all_rows: Sequence[RowShares]) -> list[RowShares]:
    """Neighbours with the same adapters together."""
    ranges: list[RowShares] = []
    for rows, shares in all_rows:
        if ranges and ranges[-1].rows.stop == rows.start and ranges[-1].shares is shares:
            rows = slice(ranges.pop().rows.start, rows.stop)
        ranges.append(RowShares(rows, shares))
    return ranges


def _factor(gains: Sequence[tuple[Gain | None, float]]) -> Tensor | None:
    """1 plus all that gains add to a layer's own product: (out,) float32; None without gains."""
    changes = [weight * gain.factor.float() for gain, weight in gains if gain is not None]
    return reduce(torch.add, changes, torch.ones(1)) if changes else None


def add_low_rank(
    y: Tensor,
    x: Tensor,
    all_rows: Sequence[RowShares],
    *,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
) -> None:
    """Adds adapters of rows, without their gains, to a layer's result in place.

    y: (B, out, h, w); x: (B, in, height, width); both bfloat16 in channels-last; adapters: laid
    out, of a convolution of such kernels, stride and padding. A row's result depends on no other
    row or thread. Raises `ValueError` for other types, devices and shapes, `MemoryError`.
    """
    rows, out, height, width = y.shape
    channels = x.shape[1]
    if not (_suits(out, channels) and y.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"adapters of {channels} channels are added to {tuple(y.shape)}")
    shares = shares_of(
        [(all_rows, 0, out)], height * width, channels * kernel * kernel, gains=False
    )
    if shares is None:
        return
    sizes = _LowRankSizes(
        *(height, width, *x.shape[2:], channels, out, kernel, stride, padding),
        *(torch.get_num_threads(), rows * height * width, shares),
    )
    call("low_rank", (x.contiguous(memory_format=torch.channels_last), y), sizes)


def added_to_convolution(
    adapters: Adapters, out: Tensor, x: Tensor, product: Product, kernel: int
) -> Tensor:
    """`Adapters.added`, of a convolution with such kernels whose adapters are laid out."""
    if not adapters.rows:
        return out
    for rows, shares in adapters.rows:
        for (_, _, _, gain), weight in shares:
            if gain is not None:
                adapters.add_gain(out[rows], x[rows], gain, weight, product)
    geometry = cast(ConvAdapters, adapters)
    stride, padding = geometry.stride[0], geometry.padding[0]
    add_low_rank(out, x, adapters.rows, kernel=kernel, stride=stride, padding=padding)
    return out
