"""Products of our own: torch's numbers, and bits that depend on nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.cpu.native_products import (
    geglu,
    in_turns,
    linear,
    linear_weight,
    winograd,
    winograd_weight,
)
from tests.sd_core.cpu.kernel_checks import error, needs_kernels

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
    with pytest.raises(ValueError, match=r"\(2, 8, 4, 4\) with a weight for 8 channels"):
        winograd(x[:, :8], laid_out[:, :, :4], bias)
    with pytest.raises(ValueError, match=r"\(63,\) is added to \(64,\)"):
        winograd(x, laid_out, bias[1:])
    with pytest.raises(ValueError, match=r"\(1, 64, 4, 4\) is added to \(2, 64, 4, 4\)"):
        winograd(x, laid_out, bias, added[:1])
    with pytest.raises(ValueError, match=r"\(2, 64, 4, 4\) is added to \(2, 64, 8, 8\)"):
        winograd(x, laid_out, bias, added, doubled=True)


def test_on_meta_a_weight_has_its_shape_alone():
    kernels = torch.empty(128, 48, 3, 3, dtype=torch.bfloat16, device="meta")
    for laid_out, shape in (
        (winograd_weight(kernels), (2, 16, 24, 64, 2)),
        (linear_weight(in_turns(kernels[..., 0, 0])), (2, 24, 64, 2)),
    ):
        assert laid_out.is_meta
        assert laid_out.shape == shape


@needs_kernels
def test_nothing_gives_nothing():
    x, weight, bias, added = convolution(2, 16, 64, 4, 4)
    laid_out = winograd_weight(weight)
    assert winograd(x[:0], laid_out, bias, added[:0]).shape == (0, 64, 4, 4)
    assert winograd(x[:0], laid_out, bias, doubled=True).shape == (0, 64, 8, 8)
    x, weight, bias, added = linear_layer(5, 8, 128)
    laid_out = linear_weight(weight)
    assert linear(x[:, :0], laid_out, bias, added[:, :0]).shape == (1, 0, 128)
    assert geglu(x[:, :0], laid_out, bias).shape == (1, 0, 64)


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
    """But for the GELU's own error, which counts where a gate is nearly closed."""
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
