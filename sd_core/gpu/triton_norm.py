"""Group norm in Triton, for feature maps in channels-last.

torch's own kernel has no such layout on CUDA: it copies the map to another one and back, 61 times
an evaluation of the UNet. Here a map is read twice and written once, and takes a shift before and
SiLU after along. Statistics are of parts of the pixels, then joined (Chan, Golub & LeVeque 1983),
in a fixed order, so that the same map gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # numbers that a program holds at a time, padding included
GROUPS_TOGETHER = 8  # neighbouring groups of a program, so that its reads are long enough


@triton.jit
def _load(
    x, shift, image, rows, groups, inner, pixels, channels, width, shifted: tl.constexpr
):  # fmt: skip
    """(rows, groups, inner) of a map as float32, and which of them are there."""
    channel = groups[:, None] * width + inner[None, :]
    there = (rows < pixels)[:, None, None] & (inner < width)[None, None, :]
    place = (image * pixels + rows)[:, None, None].to(tl.int64) * channels + channel[None, :, :]
    values = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
    if shifted:
        added = tl.load(
            shift + image * channels + channel, mask=(inner < width)[None, :], other=0.0
        )
        values += tl.where(there, added.to(tl.float32)[None, :, :], 0.0)
    return values, place, channel, there


@triton.jit
def _part(
    x, shift, means, squares, pixels, channels, width, parts,
    shifted: tl.constexpr,
    many_rows: tl.constexpr, many_groups: tl.constexpr, inner_size: tl.constexpr,
):  # fmt: skip
    """Mean and squared differences from it of each group, in one part of an image's pixels."""
    part, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = part * many_rows + tl.arange(0, many_rows)
    groups = block * many_groups + tl.arange(0, many_groups)
    inner = tl.arange(0, inner_size)
    values, _, _, there = _load(
        x, shift, image, rows, groups, inner, pixels, channels, width, shifted
    )
    count = (tl.minimum(many_rows, pixels - part * many_rows) * width).to(tl.float32)
    mean = tl.sum(tl.sum(values, axis=2), axis=0) / count
    difference = tl.where(there, values - mean[None, :, None], 0.0)
    square = tl.sum(tl.sum(difference * difference, axis=2), axis=0)
    place = (image * (channels // width) + groups) * parts + part
    tl.store(means + place, mean)
    tl.store(squares + place, square)


@triton.jit
def _join(
    means, squares, mean, scale, pixels, width, parts, eps,
    many_rows: tl.constexpr, many_parts: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation of a group of an image, from those of its parts."""
    group = tl.program_id(0)
    total = (pixels * width).to(tl.float32)
    place = tl.arange(0, many_parts)
    summed = tl.zeros((many_parts,), tl.float32)
    for begin in range(0, parts, many_parts):
        part = begin + place
        count = tl.minimum(many_rows, pixels - part * many_rows) * width
        there = part < parts
        summed += tl.where(
            there, tl.load(means + group * parts + part, mask=there, other=0.0) * count, 0.0
        )
    middle = tl.sum(summed, axis=0) / total
    summed = tl.zeros((many_parts,), tl.float32)
    for begin in range(0, parts, many_parts):
        part = begin + place
        count = tl.minimum(many_rows, pixels - part * many_rows) * width
        there = part < parts
        off = tl.load(means + group * parts + part, mask=there, other=0.0) - middle
        own = tl.load(squares + group * parts + part, mask=there, other=0.0)
        summed += tl.where(there, own + off * off * count, 0.0)
    variance = tl.sum(summed, axis=0) / total
    tl.store(mean + group, middle)
    tl.store(scale + group, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _apply(
    x, shift, weight, bias, mean, scale, out, pixels, channels, width,
    shifted: tl.constexpr, silu: tl.constexpr,
    many_rows: tl.constexpr, many_groups: tl.constexpr, inner_size: tl.constexpr,
):  # fmt: skip
    part, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows = part * many_rows + tl.arange(0, many_rows)
    groups = block * many_groups + tl.arange(0, many_groups)
    inner = tl.arange(0, inner_size)
    values, place, channel, there = _load(
        x, shift, image, rows, groups, inner, pixels, channels, width, shifted
    )
    own = image * (channels // width) + groups
    middle, factor = tl.load(mean + own), tl.load(scale + own)
    inside = (inner < width)[None, :]
    gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    values = (values - middle[None, :, None]) * factor[None, :, None]
    values = values * gain[None, :, :] + offset[None, :, :]
    if silu:
        values = values / (1.0 + tl.exp(-values))
    tl.store(out + place, values.to(out.dtype.element_ty), mask=there)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    added: Tensor | None,
) -> Tensor:
    """Does what `sd_core.gpu.group_norm.plain_group_norm` says; x is copied from another layout."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, height, width_pixels = x.shape
    pixels, width = height * width_pixels, channels // groups
    together = GROUPS_TOGETHER if groups % GROUPS_TOGETHER == 0 else 1
    inner = triton.next_power_of_2(width)
    rows = max(1, min(triton.next_power_of_2(pixels), TILE // (together * inner)))
    parts = triton.cdiv(pixels, rows)
    means, squares = (x.new_empty(images * groups * parts, dtype=torch.float32) for _ in range(2))
    mean, scale = (x.new_empty(images * groups, dtype=torch.float32) for _ in range(2))
    shift = x if added is None else added.contiguous()
    out = torch.empty_like(x)
    grid = parts, groups // together, images
    tiles = {"many_rows": rows, "many_groups": together, "inner_size": inner}
    sizes = pixels, channels, width
    shifted = added is not None
    _part[grid](x, shift, means, squares, *sizes, parts, shifted=shifted, **tiles)
    _join[(images * groups,)](
        means, squares, mean, scale, pixels, width, parts, eps, many_rows=rows, many_parts=128
    )
    _apply[grid](
        *(x, shift, weight, bias, mean, scale, out, *sizes), shifted=shifted, silu=silu, **tiles
    )
    return out
