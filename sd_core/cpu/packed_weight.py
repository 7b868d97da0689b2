"""A weight in the layouts that oneDNN wants for the sizes of its inputs.

oneDNN's layout of a weight depends on the input's size. Given another layout than they would
choose, its kernels lay the weight out again at every call, up to a hundred times slower than from
plain weights. So a second layout is kept, for the last size that wanted one.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from sd_core.cpu import mkldnn, mkldnn_tensor
from sd_core.cpu.mkldnn import Geometry, Size

log = logging.getLogger(__name__)

MOST_PADDING = 63
"""Channels, in and out, that oneDNN's layout of a weight may have more than the weight: it fills
its last block up, and no CPU's blocks are wider than 64. That bounds the memory that packing takes.
"""

PATTERN = 251
"""Values that show where an element went; a prime, and all exact in bfloat16."""


@dataclass(frozen=True)
class ConvReorder:
    """Lays a convolution's weight out for inputs of a size, (B, C, H, W)."""

    geometry: Geometry

    def __call__(self, weight: Tensor, size: Size) -> Tensor:
        return mkldnn.lay_out_convolution(weight, self.geometry, size)


@dataclass(frozen=True)
class LinearReorder:
    """Lays a linear layer's weight out for inputs of a size, which here is the tokens alone."""

    def __call__(self, weight: Tensor, size: Size) -> Tensor:
        return mkldnn.lay_out_linear(weight, *size)


Reorder = ConvReorder | LinearReorder


@cache
def _layout(reorder: Reorder, shape: Size, dtype: torch.dtype, size: Size) -> int | None:
    """A number that tells apart the layouts of weights of this shape: by what becomes of a pattern,
    for torch does not say what oneDNN chose. None where it has no layout.
    """
    times = -(-prod(shape) // PATTERN)
    pattern = torch.arange(PATTERN, dtype=dtype).repeat(times)[: prod(shape)].view(shape)
    laid_out = _laid_out(pattern, reorder, size)
    return zlib.crc32(mkldnn_tensor.content(laid_out).numpy().data) if laid_out.is_mkldnn else None


def _laid_out(weight: Tensor, reorder: Reorder, size: Size) -> Tensor:
    """The weight in oneDNN's layout for a size; a plain copy where it has none."""
    try:
        return reorder(weight, size)
    except RuntimeError as error:
        _say_plain(str(error).partition("\n")[0])
        return weight.clone(memory_format=torch.contiguous_format)


@cache  # a model has hundreds of such weights
def _say_plain(reason: str) -> None:
    log.warning("a weight stays as it is, and slower, for oneDNN has no layout for it: %s", reason)


class PackedWeight:
    """A weight in the layout for one size of inputs, and in that for the last other size that
    wanted another one. Where oneDNN has no layout for a size, it is a plain tensor.

    Of a weight on `meta` nothing is laid out: `put` brings what was before.
    """

    def __init__(self, weight: Tensor, reorder: Reorder, size: Size) -> None:
        self._reorder, self._size = reorder, size
        self._shape, self._dtype = tuple(weight.shape), weight.dtype
        self._known = [] if weight.is_meta else [(size, _laid_out(weight, reorder, size))]

    @property
    def nbytes(self) -> int:
        return sum(mkldnn.nbytes(weight) for _, weight in self._known)

    @property
    def first(self) -> Tensor:
        """In the layout for the size that it was packed for."""
        return self._known[0][1]

    def put(self, content: Tensor, description: Tensor) -> None:
        """Takes the bytes of the `first` of another such weight, and their description, for its
        own, without a copy; see `sd_core.cpu.mkldnn_tensor`.
        """
        weight = mkldnn_tensor.rebuilt(content, description, self._shape, self._dtype)
        self._known = [(self._size, weight)]

    def laid_out(self, size: Size) -> Tensor:
        """For inputs of this size."""
        for known, weight in self._known:
            if known == size or self._layout(known) == self._layout(size):
                return weight
        plain = self.first.to_dense() if self.first.is_mkldnn else self.first
        weight = _laid_out(plain, self._reorder, size)
        self._known[1:] = [(size, weight)]
        return weight

    def _layout(self, size: Size) -> int | None:
        return _layout(self._reorder, self._shape, self._dtype, size)


def layouts(dtype: torch.dtype) -> list[int | None]:
    """Numbers that are the same where oneDNN lays weights of this type out in the same way: it
    chooses by the CPU, by its own version and by the number of threads.
    """
    kernels = ((3, 1, 64), (1, 0, 16))
    reorders = [
        (ConvReorder(Geometry((padding,) * 2, (1, 1))), (320, 640, kernel, kernel), side)
        for kernel, padding, side in kernels
    ]
    found = [_layout(r, shape, dtype, (2, shape[1], side, side)) for r, shape, side in reorders]
    return [*found, _layout(LinearReorder(), (640, 320), dtype, (2048,))]
