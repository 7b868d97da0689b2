"""The kernel for attention: torch's numbers, and bits that depend on nothing else."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.attention import attention, has_kernel
from sd_core.layers import split_heads

needs_kernel = pytest.mark.skipif(not has_kernel(), reason="no AMX, or built without a compiler")

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


def test_there_is_a_kernel_where_it_can_be_built_and_run():
    if torch.cpu._is_amx_tile_supported() and shutil.which("g++"):
        assert has_kernel()
    elif not torch.cpu._is_amx_tile_supported():
        assert not has_kernel()


@needs_kernel
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


@needs_kernel
@pytest.mark.parametrize("order", [1, -1])
def test_the_greatest_score_may_come_first_or_last(order):
    """Later blocks then count for nothing, or all former ones do."""
    q, k, v = inputs(1, 2, 40, 640, 40)
    growing = torch.linspace(0, 400 * order, 640)[:, None]
    k = (growing * q.float().mean(2, keepdim=True) + k).bfloat16()
    wanted = exact(q, k, v)
    assert error(attention(q, k, v), wanted) < 5e-3


@needs_kernel
def test_a_query_depends_on_no_other_row_or_query():
    q, k, v = inputs(3, 4, 200, 150, 40)
    whole = attention(q, k, v)
    for row, query in ((0, 0), (1, 31), (2, 32), (1, 199)):
        one = slice(row, row + 1)
        alone = attention(q[one, :, query : query + 1], k[one], v[one])
        assert torch.equal(alone, whole[one, :, query : query + 1])


@needs_kernel
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


@needs_kernel
def test_what_is_not_a_number_stays_in_its_row():
    q, k, v = inputs(2, 2, 40, 77, 40)
    wanted = attention(q, k, v)
    q = q.clone()
    q[1, 1, 3, 5] = torch.nan
    result = attention(q, k, v)
    assert result[1, 1, 3].isnan().all()
    result[1, 1, 3] = wanted[1, 1, 3]
    assert torch.equal(result, wanted)


@needs_kernel
def test_numbers_may_be_apart_in_memory():
    q, k, v = inputs(1, 2, 40, 77, 40)
    apart = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in (q, k, v))
    assert torch.equal(attention(*apart), attention(q, k, v))


@needs_kernel
def test_other_inputs_are_refused():
    q, k, v = inputs(1, 2, 4, 5, 8)
    with pytest.raises(ValueError, match="for bfloat16 on a CPU"):
        attention(q.float(), k, v)
    for wrong in (k[:, :1], k[..., :4], k[:, :, :3], k[:, :, :0]):
        with pytest.raises(ValueError, match=r"attention of \(1, 2, 4, 8\)"):
            attention(q, wrong, v)
    with pytest.raises(ValueError, match="d is even"):
        attention(q[..., :7], k[..., :7], v[..., :7])
