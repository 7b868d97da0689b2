"""Kernels of our own: torch's numbers, and bits that depend on nothing else."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core import kernels
from sd_core.kernels import (
    attention,
    geglu,
    group_norm,
    have_kernels,
    in_turns,
    layer_norm,
    linear,
    linear_weight,
    winograd,
    winograd_weight,
)
from sd_core.layers import split_heads

needs_kernels = pytest.mark.skipif(
    not have_kernels(), reason="no AVX-512 for bfloat16, or built without a compiler"
)
needs_amx = pytest.mark.skipif(not kernels.have_amx(), reason="no AMX")


@pytest.fixture
def amx(request, monkeypatch):
    """Whether attention runs by AMX."""
    monkeypatch.setattr(kernels, "have_amx", lambda: request.param)


def in_both_ways(test):
    both = [False, pytest.param(True, marks=needs_amx)]
    used = pytest.mark.usefixtures("amx")(test)
    return needs_kernels(pytest.mark.parametrize("amx", both, indirect=True)(used))


# Whole and broken blocks of queries and keys, head sizes below, at and above those of tiles.
SHAPES = [
    # rows, heads, queries, keys, dim
    (2, 8, 256, 256, 40),
    (2, 8, 64, 77, 40),
    (1, 3, 100, 300, 80),
    (1, 2, 40, 129, 160),
    (3, 1, 33, 31, 8),
    (1, 1, 1, 1, 2),
    (1, 2, 32, 128, 32),
    (2, 2, 7, 200, 98),
]


def inputs(
    rows: int, heads: int, queries: int, keys: int, dim: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """As a model gives them: views of what a product made, heads side by side."""
    generator = torch.Generator().manual_seed(0)

    def made(tokens: int) -> Tensor:
        wide = torch.randn(rows, tokens, 2 * heads * dim, generator=generator).bfloat16()
        return split_heads(wide[..., : heads * dim], heads)

    return made(queries) * spread, made(keys), made(keys)


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double())


def error(result: Tensor, wanted: Tensor) -> float:
    return ((result.double() - wanted).norm() / wanted.norm()).item()


def test_there_are_kernels_where_they_can_be_built_and_run():
    if not torch.cpu._is_avx512_bf16_supported():
        assert not have_kernels()
    elif shutil.which("g++"):
        assert have_kernels()


@needs_kernels
def test_kernels_that_cannot_be_loaded_are_not_there(monkeypatch):
    def refused(path: str) -> None:
        raise OSError(f"{path}: undefined symbol: GOMP_parallel")

    monkeypatch.setattr(kernels.ctypes, "CDLL", refused)
    kernels._library.cache_clear()
    try:
        assert not have_kernels()
        with pytest.raises(ValueError, match="the kernels are not on this machine"):
            attention(*inputs(1, 2, 4, 5, 8))
    finally:
        kernels._library.cache_clear()


# Attention


@in_both_ways
@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_near_to_the_truth_as_torch(shape, spread):
    q, k, v = inputs(*shape, spread)
    wanted = exact(q, k, v)
    ours = attention(q, k, v)
    assert ours.shape == wanted.shape
    assert ours.dtype is torch.bfloat16
    theirs = F.scaled_dot_product_attention(q, k, v)
    assert error(ours, wanted) < 1.1 * error(theirs, wanted) + 1e-3


@in_both_ways
@pytest.mark.parametrize("order", [1, -1])
def test_the_greatest_score_may_come_first_or_last(order):
    """Later blocks then count for nothing, or all former ones do."""
    q, k, v = inputs(1, 2, 40, 640, 40)
    growing = torch.linspace(0, 400 * order, 640)[:, None]
    k = (growing * q.float().mean(2, keepdim=True) + k).bfloat16()
    wanted = exact(q, k, v)
    assert error(attention(q, k, v), wanted) < 5e-3


@in_both_ways
def test_a_query_depends_on_no_other_row_or_query():
    q, k, v = inputs(3, 4, 200, 150, 40)
    whole = attention(q, k, v)
    for row, query in ((0, 0), (1, 31), (2, 32), (1, 199)):
        one = slice(row, row + 1)
        alone = attention(q[one, :, query : query + 1], k[one], v[one])
        assert torch.equal(alone, whole[one, :, query : query + 1])


@in_both_ways
@pytest.mark.parametrize("shape", [(2, 8, 200, 77, 40), (1, 1, 200, 77, 40)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(shape):
    q, k, v = inputs(*shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(attention(q, k, v))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@in_both_ways
def test_what_is_not_a_number_stays_in_its_row():
    q, k, v = inputs(2, 2, 40, 77, 40)
    wanted = attention(q, k, v)
    q = q.clone()
    q[1, 1, 3, 5] = torch.nan
    result = attention(q, k, v)
    assert result[1, 1, 3].isnan().all()
    result[1, 1, 3] = wanted[1, 1, 3]
    assert torch.equal(result, wanted)


@in_both_ways
def test_numbers_may_be_apart_in_memory():
    q, k, v = inputs(1, 2, 40, 77, 40)
    apart = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))
    assert torch.equal(attention(*apart), attention(q, k, v))


@in_both_ways
def test_other_inputs_are_refused():
    q, k, v = inputs(1, 2, 4, 5, 8)
    with pytest.raises(ValueError, match="for bfloat16 on a CPU"):
        attention(q.float(), k, v)
    for wrong in (k[:, :1], k[..., :4], k[:, :, :3], k[:, :, :0]):
        with pytest.raises(ValueError, match=r"attention of \(1, 2, 4, 8\)"):
            attention(q, wrong, v)
    with pytest.raises(ValueError, match="d is even"):
        attention(q[..., :7], k[..., :7], v[..., :7])


# Group norm

MAPS = [
    # rows, channels, groups, height, width
    (2, 320, 32, 16, 16),
    (1, 128, 32, 70, 50),
    (3, 24, 8, 5, 7),
    (1, 2, 1, 1, 1),
    (2, 2560, 32, 2, 3),
    (2, 72, 4, 40, 33),
]


def feature_map(
    rows: int, channels: int, groups: int, height: int, width: int, offset: float = 0.0
) -> tuple[Tensor, int, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, height, width, generator=generator) + offset
    weight, bias = (torch.randn(channels, generator=generator).bfloat16() for _ in range(2))
    return x.bfloat16().to(memory_format=torch.channels_last), groups, weight, bias


def exact_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, *, silu: bool) -> Tensor:
    normed = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    return F.silu(normed) if silu else normed


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_group_norm_is_rounded_once(shape, silu, offset):
    """So it is as near to the truth as bfloat16 can be, and a little."""
    inputs = feature_map(*shape, offset=offset)
    wanted = exact_norm(*inputs, silu=silu)
    result = group_norm(*inputs, 1e-5, silu=silu)
    assert result.shape == wanted.shape
    assert result.is_contiguous(memory_format=torch.channels_last)
    # Where SiLU is close to nothing, the exponential's own error counts, relative to the input.
    torch.testing.assert_close(result.double(), wanted, rtol=2**-8, atol=1e-3)
    assert error(result, wanted) < 1.05 * error(wanted.bfloat16(), wanted) + 1e-4


@needs_kernels
@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_what_is_added_before_a_group_norm_is_not_rounded(shape, spread):
    x, *others = feature_map(*shape)
    generator = torch.Generator().manual_seed(1)
    added = (spread * torch.randn(x.shape[:2], generator=generator)).bfloat16()
    before = x.clone()
    wanted = exact_norm(x.double() + added.double()[:, :, None, None], *others, silu=False)
    result = group_norm(x, *others, 1e-5, silu=False, added=added)
    torch.testing.assert_close(result.double(), wanted, rtol=2**-8, atol=1e-3)
    assert error(result, wanted) < 1.05 * error(wanted.bfloat16(), wanted) + 1e-4
    assert torch.equal(x, before)


@needs_kernels
def test_silu_of_large_numbers_is_they_or_nothing():
    """The exponential in it overflows for one half of them."""
    x = torch.tensor([-1.0, 1.0]).repeat(32).bfloat16().view(1, 2, 32, 1)
    x = x.to(memory_format=torch.channels_last)
    weight, bias = torch.full((2,), 1e4).bfloat16(), torch.zeros(2).bfloat16()
    silent = group_norm(x, 1, weight, bias, 1e-5, silu=False)
    wanted = torch.where(silent > 0, silent, 0.0)
    assert torch.equal(group_norm(x, 1, weight, bias, 1e-5, silu=True).abs(), wanted)


@needs_kernels
@pytest.mark.parametrize("value", [1e20, torch.inf, torch.nan])
def test_a_map_that_blew_up_does_not_become_ordinary(value):
    x, groups, weight, bias = feature_map(2, 72, 4, 40, 33)
    wanted = group_norm(x, groups, weight, bias, 1e-5, silu=True)
    x[1, 20, 3, 3] = value
    result = group_norm(x, groups, weight, bias, 1e-5, silu=True)
    assert result[1, 18:36].isnan().all()
    result[1, 18:36] = wanted[1, 18:36]
    assert torch.equal(result, wanted)


@needs_kernels
def test_a_row_of_a_group_norm_depends_on_no_other_and_on_no_thread():
    x, groups, weight, bias = feature_map(3, 128, 32, 70, 50)
    whole = group_norm(x, groups, weight, bias, 1e-5, silu=True)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for row in range(3):
                alone = group_norm(x[row : row + 1], groups, weight, bias, 1e-5, silu=True)
                assert torch.equal(alone, whole[row : row + 1])
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_a_map_in_another_order_is_brought_into_order():
    x, groups, weight, bias = feature_map(2, 72, 4, 40, 33)
    other = group_norm(x.contiguous(), groups, weight, bias, 1e-5, silu=False)
    assert torch.equal(other, group_norm(x, groups, weight, bias, 1e-5, silu=False))


@needs_kernels
def test_other_maps_are_refused():
    x, groups, weight, bias = feature_map(1, 24, 8, 2, 2)
    with pytest.raises(ValueError, match="for bfloat16 on a CPU"):
        group_norm(x.float(), groups, weight, bias, 1e-5, silu=False)
    with pytest.raises(ValueError, match="24 channels in 7 groups"):
        group_norm(x, 7, weight, bias, 1e-5, silu=False)
    with pytest.raises(ValueError, match=r"with \(23,\) weights"):
        group_norm(x, groups, weight[1:], bias, 1e-5, silu=False)
    with pytest.raises(ValueError, match=r"\(1, 23\) numbers added to 1 rows of 24 channels"):
        group_norm(x, groups, weight, bias, 1e-5, silu=False, added=x[:, 1:, 0, 0])


# Layer norm


@needs_kernels
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(
    "shape", [(2, 40, 320), (1, 3, 1280), (5, 72), (3, 7, 1), (1, 2, 65)], ids=str
)
def test_layer_norm_is_rounded_once(shape, offset):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + offset).bfloat16()
    weight, bias = (torch.randn(shape[-1], generator=generator).bfloat16() for _ in range(2))
    wanted = F.layer_norm(x.double(), shape[-1:], weight.double(), bias.double(), 1e-5)
    result = layer_norm(x, weight, bias, 1e-5)
    assert (result.shape, result.dtype) == (x.shape, torch.bfloat16)
    torch.testing.assert_close(result.double(), wanted, rtol=2**-8, atol=1e-3)
    assert error(result, wanted) < 1.05 * error(wanted.bfloat16(), wanted) + 1e-4


@needs_kernels
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_row_of_a_layer_norm_depends_on_no_other_and_on_no_thread(value):
    x = torch.randn(2, 37, 320, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight, bias = torch.ones(320).bfloat16(), torch.zeros(320).bfloat16()
    whole = layer_norm(x, weight, bias, 1e-5)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(layer_norm(x[1, 3:9], weight, bias, 1e-5), whole[1, 3:9])
    finally:
        torch.set_num_threads(threads)
    x[0, 5, 7] = value
    result = layer_norm(x, weight, bias, 1e-5)
    assert result[0, 5].isnan().all()
    result[0, 5] = whole[0, 5]
    assert torch.equal(result, whole)


@needs_kernels
def test_other_inputs_of_a_layer_norm_are_refused():
    x, weight = torch.ones(2, 8).bfloat16(), torch.ones(8).bfloat16()
    with pytest.raises(ValueError, match="layer_norm is for bfloat16 on a CPU"):
        layer_norm(x.float(), weight, weight, 1e-5)
    with pytest.raises(ValueError, match=r"layer norm of \(2, 8\), with \(7,\) weights"):
        layer_norm(x, weight[1:], weight, 1e-5)
    apart = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).bfloat16().T
    assert torch.equal(
        layer_norm(apart, weight, weight, 1e-5),
        layer_norm(apart.contiguous(), weight, weight, 1e-5),
    )


# Convolutions by Winograd's algorithm

CONVOLUTIONS = [
    # rows, channels, out channels, height, width
    (2, 320, 64, 16, 16),
    (1, 48, 128, 33, 20),
    (3, 16, 64, 5, 7),
    (1, 64, 192, 1, 1),
    (2, 128, 64, 2, 3),
    (1, 16, 64, 70, 50),
]


def convolution(
    rows: int, channels: int, out: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A map, weight and bias as a model gives them, and what is added to the result."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, added = made(rows, channels, height, width), made(rows, out, height, width)
    weight = made(out, channels, 3, 3) / (9 * channels) ** 0.5
    maps = [t.bfloat16().to(memory_format=torch.channels_last) for t in (x, added)]
    return maps[0], weight.bfloat16(), made(out).bfloat16(), maps[1]


@needs_kernels
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_a_convolution_of_small_whole_numbers_is_exact(shape):
    """Nothing is rounded in between then, so that any pixel, channel or kernel in a wrong place
    shows. Fours, for a kernel's parts are quarters of its sums."""
    rows, channels, out, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def whole(most: int, *shape: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=generator).bfloat16()

    x, weight = whole(3, rows, channels, height, width), 4 * whole(2, out, channels, 3, 3)
    bias, added = whole(200, out), whole(200, rows, out, height, width)
    x, added = (t.to(memory_format=torch.channels_last) for t in (x, added))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    result = winograd(x, winograd_weight(weight), bias)
    assert torch.equal(result, exact.bfloat16())
    assert result.is_contiguous(memory_format=torch.channels_last)
    together = winograd(x, winograd_weight(weight), bias, added)
    assert torch.equal(together, (exact + added.double()).bfloat16())


@needs_kernels
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_a_convolution_is_nearly_as_near_to_the_truth_as_torch(shape):
    """Besides the result, parts of the map and of kernels are rounded. They are larger than what
    they stand for: of independent numbers each adds (5/3)^2 times the variance of the result's.
    """
    x, weight, bias, added = convolution(*shape)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1) + added.double()
    result = winograd(x, winograd_weight(weight), bias, added)
    once = error(exact.bfloat16(), exact)
    assert error(result, exact) < (1 + 2 * (5 / 3) ** 2) ** 0.5 * once


@needs_kernels
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_a_map_that_is_doubled_on_the_way_gives_the_same_bits(shape):
    """What is left out is nothing."""
    x, weight, bias, _ = convolution(*shape)
    twice = F.interpolate(x, scale_factor=2, mode="nearest")
    laid_out = winograd_weight(weight)
    added = torch.randn(twice.shape[0], weight.shape[0], *twice.shape[2:]).bfloat16()
    for more in (None, added):
        wanted = winograd(twice, laid_out, bias, more)
        assert torch.equal(winograd(x, laid_out, bias, more, doubled=True), wanted)


@needs_kernels
def test_a_row_of_a_convolution_depends_on_no_other_and_on_no_thread():
    x, weight, bias, added = convolution(3, 64, 128, 37, 21)
    laid_out = winograd_weight(weight)
    whole = winograd(x, laid_out, bias, added)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(winograd_weight(weight), laid_out)
            for row in range(3):
                one = slice(row, row + 1)
                assert torch.equal(winograd(x[one], laid_out, bias, added[one]), whole[one])
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_blew_up_stays_near_and_is_not_hidden(value):
    x, weight, bias, _ = convolution(2, 64, 64, 20, 20)
    laid_out = winograd_weight(weight)
    wanted = winograd(x, laid_out, bias)
    x[1, 5, 8, 8] = value
    result = winograd(x, laid_out, bias)
    assert not result[1, :, 7:10, 7:10].isfinite().any()
    result[1, :, 6:12, 6:12] = wanted[1, :, 6:12, 6:12]
    assert torch.equal(result, wanted)


@needs_kernels
def test_maps_of_a_convolution_in_another_order_are_brought_into_order():
    x, weight, bias, added = convolution(2, 16, 64, 9, 11)
    laid_out = winograd_weight(weight.to(memory_format=torch.channels_last))
    assert torch.equal(
        winograd(x.contiguous(), laid_out, bias, added.contiguous()),
        winograd(x, winograd_weight(weight), bias, added),
    )


@needs_kernels
def test_other_convolutions_are_refused():
    x, weight, bias, added = convolution(2, 16, 64, 4, 4)
    laid_out = winograd_weight(weight)
    for wrong in (weight[:63], weight[:, :15], weight[..., :2]):
        with pytest.raises(ValueError, match="Winograd's convolution with a weight of"):
            winograd_weight(wrong)
    with pytest.raises(ValueError, match="winograd_weight is for bfloat16 on a CPU"):
        winograd_weight(weight.float())
    with pytest.raises(ValueError, match="winograd is for bfloat16 on a CPU"):
        winograd(x.float(), laid_out, bias)
    with pytest.raises(ValueError, match=r"\(2, 14, 4, 4\) with a weight for 16 channels"):
        winograd(x[:, :14], laid_out, bias)
    with pytest.raises(ValueError, match=r"\(63,\) is added to \(64,\)"):
        winograd(x, laid_out, bias[1:])
    with pytest.raises(ValueError, match=r"\(1, 64, 4, 4\) is added to \(2, 64, 4, 4\)"):
        winograd(x, laid_out, bias, added[:1])
    with pytest.raises(ValueError, match=r"\(2, 64, 4, 4\) is added to \(2, 64, 8, 8\)"):
        winograd(x, laid_out, bias, added, doubled=True)


def test_on_meta_a_weight_has_its_shape_alone():
    laid_out = winograd_weight(torch.empty(128, 48, 3, 3, dtype=torch.bfloat16, device="meta"))
    assert laid_out.is_meta
    assert laid_out.shape == (2, 16, 24, 64, 2)


# Linear layers

LINEARS = [
    # rows, in, out
    (200, 320, 64),
    (7, 2, 192),
    (1, 1280, 128),
    (13, 2600, 64),
    (500, 40, 640),
]


def linear_layer(rows: int, into: int, out: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, and what is added."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight = made(out, into) / into**0.5
    return tuple(t.bfloat16() for t in (made(1, rows, into), weight, made(out), made(1, rows, out)))


@needs_kernels
@pytest.mark.parametrize("shape", LINEARS, ids=str)
def test_a_linear_layer_and_a_sum_are_rounded_once(shape):
    x, weight, bias, added = linear_layer(*shape)
    laid_out = linear_weight(weight)
    products = F.linear(x.double(), weight.double())
    for biases, more in ((None, None), (bias, None), (None, added), (bias, added)):
        wanted = products + sum(t.double() for t in (biases, more) if t is not None)
        result = linear(x, laid_out, biases, more)
        assert (result.shape, result.dtype) == (wanted.shape, torch.bfloat16)
        torch.testing.assert_close(result.double(), wanted, rtol=2**-8, atol=1e-5)
        assert error(result, wanted) < 1.05 * error(wanted.bfloat16(), wanted)


@needs_kernels
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(200, 320, 128), (1, 2, 64), (13, 2600, 192)], ids=str)
def test_a_geglu_is_rounded_once(shape, spread):
    """But for the exponential in it, which counts where a gate is nearly closed."""
    rows, into, out = shape
    x, weight, bias, _ = linear_layer(rows, into, 2 * out)
    x = spread * x
    values, gates = F.linear(x.double(), weight.double(), bias.double()).chunk(2, dim=-1)
    wanted = values * F.gelu(gates)
    result = geglu(x, linear_weight(in_turns(weight)), in_turns(bias))
    assert (result.shape, result.dtype) == (wanted.shape, torch.bfloat16)
    torch.testing.assert_close(result.double(), wanted, rtol=2**-7, atol=1e-3)
    assert error(result, wanted) < 1.05 * error(wanted.bfloat16(), wanted)


@needs_kernels
def test_a_row_of_a_linear_layer_depends_on_no_other_and_on_no_thread():
    x, weight, bias, added = linear_layer(333, 1290, 128)
    laid_out = linear_weight(weight)
    whole, gated = linear(x, laid_out, bias, added), geglu(x, laid_out, bias)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(100, 113), slice(7, 333)):
                rows = x[:, part]
                assert torch.equal(linear(rows, laid_out, bias, added[:, part]), whole[:, part])
                assert torch.equal(geglu(rows, laid_out, bias), gated[:, part])
    finally:
        torch.set_num_threads(threads)
    x[0, 5, 7] = torch.nan
    result = linear(x, laid_out, bias, added)
    assert result[0, 5].isnan().all()
    result[0, 5] = whole[0, 5]
    assert torch.equal(result, whole)


@needs_kernels
def test_other_inputs_of_linear_layers_are_refused():
    x, weight, bias, added = linear_layer(5, 8, 128)
    laid_out = linear_weight(weight)
    for wrong in (weight[1:], weight[:, 1:], weight[0]):
        with pytest.raises(ValueError, match="a linear layer with a weight of"):
            linear_weight(wrong)
    with pytest.raises(ValueError, match="linear is for bfloat16 on a CPU"):
        linear_weight(weight.float())
    with pytest.raises(ValueError, match="linear is for bfloat16 on a CPU"):
        linear(x.float(), laid_out)
    with pytest.raises(ValueError, match=r"\(1, 5, 7\) with a weight for 8 channels"):
        linear(x[..., 1:], laid_out)
    with pytest.raises(ValueError, match=r"\(127,\) is added to \(128,\)"):
        linear(x, laid_out, bias[1:])
    with pytest.raises(ValueError, match=r"\(1, 4, 128\) is added to \(1, 5, 128\)"):
        linear(x, laid_out, bias, added[:, 1:])
    with pytest.raises(ValueError, match=r"\(127,\) is added to \(128,\)"):
        geglu(x, laid_out, bias[1:])
    with pytest.raises(ValueError, match="a GEGLU of 64 values and gates"):
        geglu(x, laid_out[:1], bias[:64])
    apart = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(linear(apart, laid_out), linear(x, laid_out))
