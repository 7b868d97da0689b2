"""Adapters by kernels of our own: torch's numbers, and bits that no other row has a part in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.cpu.native_adapters import add_low_rank, lay_out, shares_of
from sd_core.cpu.native_products import geglu, in_turns, linear, linear_weight
from sd_core.model.adapters import Gain, LowRank, RowShares, Share
from tests.sd_core.cpu.kernel_checks import Drawn, error, merged, needs_kernels

RANKS = (1, 4, 16, 40, 100)


def low_rank_of(drawn: Drawn, rank: int, out: int, into: int, *kernel: int) -> LowRank:
    return LowRank(drawn.whole(1, rank, into, *kernel), drawn.whole(1, out, rank), 2.0)


def laid_out(all_rows: list[RowShares]) -> list[RowShares]:
    """As the kernels take them; the same shares stay the same."""
    known: dict[int, tuple[Share, ...]] = {}
    for _, shares in all_rows:
        if id(shares) not in known:
            known[id(shares)] = tuple(Share(lay_out(one), weight) for one, weight in shares)
    return [RowShares(rows, known[id(shares)]) for rows, shares in all_rows]


def given(sets: list[tuple[Share, ...]]) -> list[RowShares]:
    """For six rows: one without, two neighbours of one set, two of another, one of the first."""
    first, second = sets
    return [
        RowShares(slice(row, row + 1), shares)
        for row, shares in ((1, first), (2, first), (3, second), (4, second), (5, first))
    ]


def sets_of(drawn: Drawn, out: int, into: int, *kernel: int) -> list[tuple[Share, ...]]:
    """One of an adapter, and one of four, of all ranks."""
    one, *others = (Share(low_rank_of(drawn, r, out, into, *kernel), 1.0) for r in RANKS)
    return [(one,), tuple(share._replace(weight=-0.5) for share in others)]


@needs_kernels
@pytest.mark.parametrize("tokens", [1, 37, 256])
def test_a_linear_layer_of_small_whole_numbers_is_exact(tokens):
    """So that any row, column or rank in a wrong place shows."""
    drawn = Drawn()
    x, weight, bias = drawn.whole(1, 6, tokens, 40), drawn.whole(2, 128, 40), drawn.whole(9, 128)
    added = drawn.whole(9, 6, tokens, 128)
    sets = sets_of(drawn, 128, 40)
    factor = drawn.whole(2, 128)
    gained = sets[1][0].low_rank._replace(gain=Gain(factor, -factor * bias))
    sets[1] = (Share(gained, -0.5), *sets[1][1:])
    all_rows = given(sets)
    expected = x.double() @ weight.double().t()
    for rows, shares in all_rows:
        expected[rows] = x[rows].double() @ merged(weight, shares).t()
    expected += bias.double() + added.double()
    shares = shares_of([(laid_out(all_rows), 0, 128)], tokens, 40)
    assert torch.equal(linear(x, linear_weight(weight), bias, added, shares), expected.bfloat16())


@needs_kernels
def test_layers_together_have_adapters_of_their_own():
    drawn = Drawn()
    x, weight = drawn.whole(1, 6, 20, 40), drawn.whole(2, 192, 40)
    columns = [given(sets_of(drawn, 64, 40)) for _ in range(2)]
    expected = x.double() @ weight.double().t()
    for number, all_rows in zip((0, 2), columns, strict=True):
        part = slice(64 * number, 64 * number + 64)
        for rows, shares in all_rows:
            expected[rows, :, part] = x[rows].double() @ merged(weight[part], shares).t()
    parts = [(laid_out(columns[0]), 0, 64), ([], 64, 64), (laid_out(columns[1]), 128, 64)]
    found = linear(x, linear_weight(weight), shares=shares_of(parts, 20, 40))
    assert torch.equal(found, expected.bfloat16())


@needs_kernels
def test_a_geglu_is_that_of_the_weight_with_the_adapter_in_it():
    drawn = Drawn()
    x, weight, bias = drawn.whole(1, 6, 37, 40), drawn.whole(2, 256, 40), drawn.whole(3, 256)
    one = low_rank_of(drawn, 20, 256, 40)
    turns = lay_out(one._replace(up=in_turns(one.up)))
    own = (Share(turns, 0.5),)
    shares = shares_of([([RowShares(slice(2, 4), own)], 0, 256)], 37, 40)
    changed = merged(weight, (Share(one, 0.5),)).bfloat16()
    with_it, without = (
        geglu(x, linear_weight(in_turns(w)), in_turns(bias)) for w in (changed, weight)
    )
    found = geglu(x, linear_weight(in_turns(weight)), in_turns(bias), shares)
    assert torch.equal(found[2:4], with_it[2:4])
    assert torch.equal(found[[0, 1, 4, 5]], without[[0, 1, 4, 5]])
    assert not torch.equal(found, without)


@needs_kernels
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        *((3, 1, 1, size) for size in ((16, 16), (1, 1), (5, 131), (7, 2))),
        *((3, 2, 1, size) for size in ((16, 16), (9, 7), (2, 1))),
        *((1, 1, 0, (6, 5)), (3, 2, 0, (9, 9))),
    ],
    ids=str,
)
def test_a_convolution_of_small_whole_numbers_is_exact(kernel, stride, padding, size):
    drawn = Drawn()
    x = drawn.whole(1, 6, 8, *size).to(memory_format=torch.channels_last)
    kernels = (kernel, kernel)
    all_rows = given(sets_of(drawn, 128, 8, *kernels))
    none = torch.zeros(128, 8, *kernels).bfloat16()
    out = F.conv2d(x, none, None, stride, padding)
    y = drawn.whole(9, *out.shape).to(memory_format=torch.channels_last)
    expected = y.double()
    for rows, shares in all_rows:
        expected[rows] += F.conv2d(x[rows].double(), merged(none, shares), None, stride, padding)
    add_low_rank(y, x, laid_out(all_rows), kernel=kernel, stride=stride, padding=padding)
    assert torch.equal(y, expected.bfloat16())


@needs_kernels
def test_as_near_to_the_truth_as_torch():
    drawn = Drawn()
    x, weight = drawn.real(6, 100, 320), drawn.real(128, 320) / 18
    one = LowRank(drawn.real(32, 320) / 18, drawn.real(128, 32) / 4, 0.7)
    every = [RowShares(slice(0, 6), (Share(lay_out(one), 0.9),))]
    exact = x.double() @ merged(weight, (Share(one, 0.9),)).t()
    torchs = F.linear(x, weight).flatten(0, 1)
    torchs.addmm_(F.linear(x, one.down).flatten(0, 1), one.up.t(), alpha=0.9 * 0.7)
    ours = linear(x, linear_weight(weight), shares=shares_of([(every, 0, 128)], 100, 320))
    assert error(ours.flatten(0, 1), exact.flatten(0, 1)) < error(torchs, exact.flatten(0, 1))


@needs_kernels
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_row_depends_on_no_other_and_on_no_thread(value):
    """Not either on one whose adapter has blown up. A zero keeps its sign."""
    drawn = Drawn()
    x, weight, bias = drawn.real(6, 70, 64), drawn.real(64, 64) / 8, drawn.real(64)
    maps = drawn.real(6, 64, 7, 10).to(memory_format=torch.channels_last)
    y = drawn.real(6, 64, 7, 10).to(memory_format=torch.channels_last)
    y[0] = -0.0
    x[0] = 0
    sets = [
        tuple(Share(LowRank(drawn.real(r, 64), drawn.real(64, r), 0.1), 0.7) for r in ranks)
        for ranks in ((4,), (40, 100))
    ]
    sets[1][0].low_rank.up[3] = value
    all_rows = laid_out(given(sets))

    def run(rows: slice, own: list[RowShares]) -> tuple[Tensor, Tensor]:
        one = y[rows].clone(memory_format=torch.channels_last)
        add_low_rank(one, maps[rows], own)
        shares = shares_of([(own, 0, 64)], 70, 64)
        return linear(x[rows], linear_weight(weight), bias, None, shares), one

    def bits(t: Tensor) -> Tensor:
        return t.contiguous().view(torch.int16)

    whole = run(slice(6), all_rows)
    assert [bool(t.isfinite().all()) for t in whole[0]] == [True] * 3 + [False] * 2 + [True]
    assert torch.equal(bits(whole[1][0]), bits(y[0]))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for row in range(6):
                own = [RowShares(slice(0, 1), s) for rows, s in all_rows if rows.start == row]
                for one, all_of_them in zip(run(slice(row, row + 1), own), whole, strict=True):
                    assert torch.equal(bits(one[0]), bits(all_of_them[row])), (count, row)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_an_adapter_of_another_layer_is_refused():
    drawn = Drawn()
    own = [RowShares(slice(0, 1), (Share(lay_out(low_rank_of(drawn, 4, 64, 40)), 1.0),))]
    with pytest.raises(ValueError, match="from 40 to 64 numbers is added to a product from 40"):
        shares_of([(own, 0, 128)], 1, 40)
    y = torch.zeros(1, 64, 2, 2).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="from 40 to 64 numbers is added to a product from 72"):
        add_low_rank(y, torch.zeros(1, 8, 2, 2), own, kernel=3)
    with pytest.raises(ValueError, match=r"adapters of 40 channels are added to \(1, 63, 2, 2\)"):
        add_low_rank(torch.zeros(1, 63, 2, 2), torch.zeros(1, 40, 2, 2), own)
