"""Kernels of our own: torch's numbers, and bits that depend on nothing else."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.cpu import kernels
from sd_core.cpu.kernels import attention, group_norm, have_kernels, layer_norm
from sd_core.device import cpu_has, uses_avx512
from sd_core.model.layers import split_heads
from tests.sd_core.cpu.kernel_checks import error, needs_kernels

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


def _compiler_knows_such_cpus() -> bool:
    if shutil.which("g++") is None:
        return False
    options = ["-march=cooperlake", "-mamx-bf16", "-fsyntax-only", "-xc++", "-"]
    return subprocess.run(["g++", *options], input=b"", check=False).returncode == 0


def test_there_are_kernels_where_they_can_be_built_and_run():
    if not (uses_avx512() and cpu_has("_is_avx512_bf16_supported")):
        assert not have_kernels()
    elif _compiler_knows_such_cpus():
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
