"""torch's private operators for oneDNN are a help and no need: without them models render too."""

from __future__ import annotations

import logging
import threading

import pytest
import torch

from sd_core import loading
from sd_core.cpu import mkldnn, mkldnn_tensor, packed_weight
from sd_core.cpu.mkldnn import Geometry
from sd_core.cpu.packed_weight import ConvReorder, LinearReorder, PackedWeight
from sd_core.cpu.packing import PackedConv2d, PackedLinear
from sd_core.execution import make_ready
from sd_core.weights.export import save_single_file
from tests.sd_core.small import ODD, small_model

pytestmark = pytest.mark.skipif(
    not mkldnn.works(torch.float32), reason="this torch was built without oneDNN"
)

OPERATORS = (
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_nbytes",
    "data_ptr",
)


class Operators:
    """torch's operators for oneDNN, but for some of them."""

    def __init__(self, changed):
        self._theirs, self._changed = torch.ops.mkldnn, changed

    def __getattr__(self, name):
        if self._changed.get(name, self) is None:
            raise AttributeError(f"'mkldnn' has no operator {name!r}")
        return self._changed.get(name) or getattr(self._theirs, name)


def refuse(*arguments):
    raise RuntimeError("could not create a primitive\nat line 1")


def change_signature(only_this):
    raise AssertionError("called with one argument")


@pytest.fixture
def operators(monkeypatch):
    """A function that takes operators away, or puts others in their place."""
    caches = (
        mkldnn.works,
        mkldnn_tensor.can_rebuild,
        packed_weight._layout,
        packed_weight._say_plain,
    )

    def change(**changed):
        monkeypatch.setattr(torch.ops, "mkldnn", Operators(changed))
        for cached in caches:
            cached.cache_clear()

    yield change
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def inputs():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 9, 11, generator=draw), torch.tensor([981.0, 1.0])


def evaluate(model, inputs):
    latents, timesteps = inputs
    context = model.encode_prompt(["a red circle", ""])
    return model.denoise(latents, timesteps, context), model.decode(latents)


@pytest.mark.parametrize("instead", [None, refuse, change_signature])
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_that_is_gone_or_changed(operators, name, instead, inputs, caplog):
    wanted = evaluate(small_model(ODD), inputs)
    operators(**{name: instead})
    with caplog.at_level(logging.WARNING):
        models = [make_ready(small_model(ODD)) for _ in range(2)]
    (line,) = caplog.messages
    assert "in another way than sdbatch knows" in line
    assert "\n" not in line
    for model in models:
        assert model.execution == "eager"
        for ours, theirs in zip(evaluate(model, inputs), wanted, strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="execution packed is for CPUs with kernels for float32"):
        make_ready(small_model(ODD), "packed")


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("_convolution_pointwise", lambda x, weight, *_: x.new_zeros(2, 32, 6, 5)),
        ("_linear_pointwise", lambda x, *_: x.new_full((6, 32), torch.nan)),
        ("_nbytes", lambda weight: 7),
    ],
)
def test_an_operator_that_does_something_else(operators, name, result, caplog):
    operators(**{name: result})
    assert make_ready(small_model(ODD)).execution == "eager"
    assert len(caplog.messages) == 1


def test_a_torch_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    mkldnn.works.cache_clear()
    try:
        assert make_ready(small_model(ODD)).execution == "eager"
    finally:
        mkldnn.works.cache_clear()


def test_a_size_without_a_layout(operators, caplog):
    """Inputs of other sizes keep theirs; the numbers are torch's."""
    theirs = torch.ops.mkldnn

    def no_layout_for_7_columns(*arguments):
        return (refuse if arguments[-1][-1] == 7 else theirs._reorder_convolution_weight)(
            *arguments
        )

    def no_layout_for_7_tokens(weight, tokens):
        return (refuse if tokens == 7 else theirs._reorder_linear_weight)(weight, tokens)

    operators(
        _reorder_convolution_weight=no_layout_for_7_columns,
        _reorder_linear_weight=no_layout_for_7_tokens,
    )
    conv = torch.nn.Conv2d(32, 48, 3, padding=1).requires_grad_(False)
    linear = torch.nn.Linear(32, 48).requires_grad_(False)
    packed_conv = PackedConv2d(conv, (2, 32, 8, 8), torch.empty(conv.weight.numel()))
    packed_linear = PackedLinear(linear.weight, linear.bias, 64)
    for height, width in ((8, 8), (5, 7), (8, 8), (5, 7)):
        x = torch.randn(2, 32, height, width).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(packed_conv(x), conv(x))
    for tokens in (64, 7, 64, 7):
        x, factor = torch.randn(tokens, 32), torch.randn(tokens, 48)
        wanted = linear(x)
        torch.testing.assert_close(packed_linear(x), wanted)
        torch.testing.assert_close(packed_linear.gelu(x), torch.nn.functional.gelu(wanted))
        torch.testing.assert_close(packed_linear.times(x, factor), wanted * factor)
    assert caplog.messages == [
        "a weight stays as it is, and slower, for oneDNN has no layout for it: "
        "could not create a primitive"
    ]


@pytest.mark.parametrize(
    ("reorder", "shape", "size"),
    [
        (ConvReorder(Geometry((1, 1), (1, 1))), (48, 32, 3, 3), (2, 32, 8, 8)),
        (LinearReorder(), (48, 32), (64,)),
    ],
)
def test_a_weight_that_never_had_a_layout(operators, reorder, shape, size):
    """It does not share the memory that it came from, which the next layer takes."""
    operators(_reorder_convolution_weight=refuse, _reorder_linear_weight=refuse)
    scratch = torch.randn(shape)
    weight, wanted = PackedWeight(scratch, reorder, size), scratch.clone()
    scratch.zero_()
    assert torch.equal(weight.first, wanted)
    assert torch.equal(weight.laid_out((9, *size[1:])), wanted)
    assert weight.nbytes == wanted.nbytes


def test_weights_that_cannot_be_taken_back_are_laid_out_anew(tmp_path, monkeypatch, inputs, caplog):
    if not mkldnn_tensor.can_rebuild():
        pytest.skip("this torch keeps no laid-out weights")
    monkeypatch.setattr(loading, "LEAST_BYTES", 0)
    path = tmp_path / "model.safetensors"
    save_single_file(small_model(ODD), path)

    def load():
        model = loading.load_model(
            path, device="cpu", dtype="float32", execution="packed", cache=tmp_path / "cache"
        )
        for thread in threading.enumerate():
            if thread.name == "keep":
                thread.join()
        return model

    wanted = evaluate(load(), inputs)
    monkeypatch.setattr(mkldnn_tensor, "_library", lambda: None)
    for ours, theirs in zip(evaluate(load(), inputs), wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert any("weights are laid out anew" in message for message in caplog.messages)


def test_nothing_is_kept_where_the_way_back_is_broken(operators, monkeypatch):
    mkldnn_tensor.can_rebuild.cache_clear()
    monkeypatch.setattr(mkldnn_tensor, "rebuilt", refuse)
    assert not mkldnn_tensor.can_rebuild()
