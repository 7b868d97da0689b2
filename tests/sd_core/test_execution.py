"""Packed models: the numbers of the eager one, and bits that depend on nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from math import prod

import pytest
import torch

from sd_core.cpu.native_layers import OwnGEGLU, OwnLinear, PointwiseConv2d, WinogradConv2d
from sd_core.cpu.packed_weight import MOST_PADDING
from sd_core.cpu.packing import (
    PackedConv2d,
    PackedLinear,
    can_pack,
    input_sizes,
    pack,
    packed_bytes,
)
from sd_core.execution import make_ready, run_as
from sd_core.loading import load_model
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.layers import TransformerBlock
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.spec import ModelSpec
from sd_core.weights.export import save_single_file
from tests.sd_core.cpu.kernel_checks import needs_kernels
from tests.sd_core.small import ODD, SMALL, small_model

CPU = torch.device("cpu")
TYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(not can_pack(CPU, dtype), reason="no such kernels on this CPU"),
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]
# Of one evaluation, over the whole tensor: the order of additions, then a type's own rounding.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}


# Ways of running that are not eager, where this CPU has them.
PACKED = [pytest.param("packed", *p.values, marks=p.marks) for p in TYPES]
FUSED = pytest.param("fused", torch.bfloat16, marks=needs_kernels)


def built(spec: ModelSpec, dtype: torch.dtype, execution: str) -> LatentDiffusion:
    return make_ready(small_model(spec).to(dtype), execution)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, limit: float) -> None:
    assert ours.shape == theirs.shape
    assert ((ours - theirs).norm() / theirs.norm()).item() < limit


@pytest.mark.parametrize(("execution", "dtype"), [*PACKED, FUSED])
@pytest.mark.parametrize("spec", [SMALL, ODD], ids=["small", "odd"])
def test_packed_gives_the_numbers_of_eager(spec, execution, dtype):
    """At sizes that it was not packed for, too, and where sides do not halve evenly."""
    eager, packed = (built(spec, dtype, name) for name in ("eager", execution))
    generator = torch.Generator().manual_seed(0)
    for rows, height, width in ((2, 16, 16), (1, 8, 8), (3, 9, 11)):
        x = torch.randn(rows, 4, height, width, generator=generator)
        timesteps = torch.linspace(1, 981, rows)
        context = eager.encode_prompt(["a red circle"] * rows)
        assert_close(
            packed.denoise(x, timesteps, context),
            eager.denoise(x, timesteps, context),
            LIMITS[dtype],
        )
        pixels = packed.decode(x)
        assert pixels.is_contiguous()
        assert_close(pixels, eager.decode(x), LIMITS[dtype])
        assert_close(packed.encode_image(pixels), eager.encode_image(pixels), LIMITS[dtype])


@pytest.mark.parametrize("dtype", TYPES)
def test_packed_convolutions_give_the_bits_of_torch(dtype):
    conv = torch.nn.Conv2d(24, 40, 3, padding=1).to(dtype).requires_grad_(False)
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.randn(2, 24, 12, 10).to(dtype, memory_format=torch.channels_last)
    scratch = torch.full((conv.weight.numel() + 5,), torch.nan, dtype=dtype)
    assert torch.equal(PackedConv2d(conv, tuple(x.shape), scratch)(x), conv(x))


LAID_OUT_ONCE = """
import sys

import torch

from sd_core.cpu.packing import PackedConv2d, PackedLinear

conv = torch.nn.Conv2d(192, 160, 3, padding=1)
linear = torch.nn.Linear(192, 160)
for name in sys.argv[1:]:
    dtype = getattr(torch, name)
    conv, linear = conv.to(dtype, memory_format=torch.channels_last), linear.to(dtype)
    images = [torch.randn(n, 192, h, w) for n, h, w in ((2, 4, 4), (2, 4, 5), (7, 8, 10))]
    images = [x.to(dtype, memory_format=torch.channels_last) for x in images]
    tokens = [torch.randn(n, 192).to(dtype) for n in (32, 7, 640)]
    with torch.inference_mode():
        convs = PackedConv2d(conv, (2, 192, 4, 4), torch.empty(conv.weight.numel(), dtype=dtype))
        linears = PackedLinear(linear.weight, linear.bias, 32)
        for layer, inputs in ((convs, images), (linears, tokens)):
            for x in inputs:
                first = layer(x)
                print("again", flush=True)
                assert torch.equal(layer(x), first)
                print("end", flush=True)
"""


def test_a_packed_weight_is_laid_out_once_for_a_size():
    """oneDNN tells of all that it runs: no weight is laid out at a size that was there before.
    What it does with the inputs, and whether it runs at all, is its own business."""
    names = [str(t.values[0]).removeprefix("torch.") for t in TYPES if not t.marks[0].args[0]]
    command = [sys.executable, "-c", LAID_OUT_ONCE, *names]
    env = {**os.environ, "ONEDNN_VERBOSE": "1"}
    told = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    first, *calls = told.split("again\n")
    weights = re.compile(r",reorder,.*,(160x192x3x3|192x160|160x192),")
    assert weights.search(first)
    assert len(calls) == 6 * len(names)
    for call in calls:
        assert not weights.search(call.split("end\n")[0])


@pytest.mark.parametrize(("execution", "dtype"), [*PACKED, FUSED])
@pytest.mark.parametrize("spec", [SMALL, ODD], ids=["small", "odd"])
def test_a_row_of_a_packed_batch_depends_on_no_other(spec, execution, dtype):
    model = built(spec, dtype, execution)
    x = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context = model.encode_prompt(["a red circle"] * 8)
    timesteps = torch.full((8,), 500.0)
    wanted = model.denoise(x, timesteps, context)[0]
    for place in range(1, 8):
        others = torch.randn(x.shape, generator=torch.Generator().manual_seed(place))
        others[place] = x[0]
        assert torch.equal(model.denoise(others, timesteps, context)[place], wanted)


@pytest.mark.parametrize("spec", [SMALL, ODD, ModelSpec()], ids=["small", "odd", "v1"])
@pytest.mark.parametrize("side", [16, 13])
def test_sizes_of_inputs_are_those_of_a_run(spec, side):
    """On `meta`, where a run takes no arithmetic; of sides that do not halve evenly, too."""
    with torch.device("meta"):
        unet, vae = UNet(spec.unet), AutoencoderKL(spec.vae)
        latents, images = torch.empty(2, 4, side, side), torch.empty(1, 3, 8 * side, 8 * side)
        context = torch.empty(2, 77, spec.unet.context_dim)
        runs = (
            (unet, 2, side, lambda: unet(latents, torch.empty(2), context)),
            (vae, 1, 8 * side, lambda: vae.decode(vae.moments(images)[0])),
        )
    for part, rows, outer, run in runs:
        seen: dict[str, tuple[int, ...]] = {}
        for name, layer in part.named_modules():
            if isinstance(layer, torch.nn.Conv2d | TransformerBlock):
                layer.register_forward_pre_hook(
                    lambda _, inputs, name=name, seen=seen: seen.update(
                        {name: tuple(inputs[0].shape)}
                    )
                )
        with torch.device("meta"), torch.no_grad():
            run()
        assert input_sizes(part, rows, outer) == seen


def padded_bytes(weight: torch.Tensor) -> int:
    """The most memory that a packed weight may take."""
    if weight.dim() == 1:
        return weight.nbytes
    channels = [count + MOST_PADDING for count in weight.shape[:2]]
    return prod(channels) * prod(weight.shape[2:]) * weight.element_size()


def test_with_linear_layers_every_layer_of_the_steps_is_packed():
    """In float32 for the numbers' sake. What stays as it is runs once for an image: prompts and
    timesteps are embedded ahead."""
    unet = small_model(SMALL).unet
    x = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    times = unet.embed(torch.tensor([981.0, 1.0]))
    context = unet.project(torch.randn(2, 77, 128, generator=torch.Generator().manual_seed(1)))
    wanted = unet(x, times, context)
    bound = sum(padded_bytes(weight) for weight in unet.parameters())

    pack(unet, 2, 16, linears=True)

    assert_close(unet(x, times, context), wanted, 1e-5)
    ahead = re.compile(r"time_embed\.|.*\.(emb_layers\.1|attn2\.to_[kv])")
    for name, layer in unet.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            assert ahead.match(name), f"{name} is not packed"
    after = sum(weight.nbytes for weight in unet.parameters()) + packed_bytes(unet)
    assert after <= bound


@needs_kernels
@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 18)])
def test_products_of_our_own_give_the_numbers_of_eager(height, width):
    """Where sides do not halve evenly, and on CPUs that do not choose them, too."""
    eager, packed = (small_model(SMALL).to(torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        pack(packed.unet, 2, 64, linears=True, fused=True, own=True)
        pack(packed.vae, 1, 512, linears=True, fused=True, own=True)
    packed = run_as(packed, "fused", None)
    for kind in (OwnGEGLU, OwnLinear, PointwiseConv2d, WinogradConv2d, PackedConv2d, PackedLinear):
        assert any(isinstance(layer, kind) for layer in packed.unet.modules()), kind
    x = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    context = eager.encode_prompt(["a red circle", ""])
    ours, theirs = (m.denoise(x, torch.tensor([981.0, 1.0]), context) for m in (packed, eager))
    assert_close(ours, theirs, LIMITS[torch.bfloat16])
    pixels = packed.decode(x)
    assert_close(pixels, eager.decode(x), LIMITS[torch.bfloat16])
    assert_close(packed.encode_image(pixels), eager.encode_image(pixels), LIMITS[torch.bfloat16])


def test_which_layers_of_v1_have_products_of_our_own():
    """Convolutions by Winograd's algorithm are those of 3 x 3 whose maps are large, and that come
    after the first halving."""
    with torch.device("meta"):
        unet, vae = UNet(ModelSpec().unet).bfloat16(), AutoencoderKL(ModelSpec().vae).bfloat16()
        pack(unet, 2, 64, linears=True, own=True)
        pack(vae, 1, 512, linears=True, own=True)
    assert not any(isinstance(layer, PackedLinear) for layer in unet.modules())
    names = [n for n, layer in unet.named_modules() if isinstance(layer, WinogradConv2d)]
    blocks = {re.sub(r"\.(in_layers\.2|out_layers\.3|conv)$", "", name) for name in names}
    down = {f"input_blocks.{n}.0" for n in (4, 5, 7, 8)}
    up = {f"output_blocks.{n}.0" for n in range(3, 12)}
    assert blocks == down | up | {f"output_blocks.{n}" for n in ("2.1", "5.2", "8.2")}
    assert len(names) == 2 * (len(down) + len(up)) + 3
    direct = {n for n, layer in vae.named_modules() if isinstance(layer, PackedConv2d)}
    assert "encoder.down.0.block.0.conv1" in direct
    assert {n for n in direct if re.match(r"decoder\..*conv", n)} == {
        "decoder.conv_in",
        "decoder.conv_out",
    }


@pytest.mark.parametrize("native_size", [128, 256, 1024])
def test_which_kernels_are_ours_does_not_depend_on_the_native_size(native_size):
    """It is advice, and no part of a model's digest."""

    def kinds(native_size: int) -> dict[str, str]:
        with torch.device("meta"):
            model = LatentDiffusion(replace(SMALL, native_size=native_size)).bfloat16()
            pack(model.unet, 2, native_size // 8, linears=True, own=True)
            pack(model.vae, 1, native_size, linears=True, own=True)
        return {name: type(layer).__name__ for name, layer in model.named_modules()}

    assert kinds(native_size) == kinds(512)


@needs_kernels
def test_auto_is_fused_where_there_are_kernels():
    """And they are what runs: the results are not those of torch's."""
    fused = make_ready(small_model(ODD).to(torch.bfloat16))
    assert fused.execution == "fused"
    packed = built(ODD, torch.bfloat16, "packed")
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context = fused.encode_prompt(["a red circle"] * 2)
    one, other = (m.denoise(x, torch.full((2,), 500.0), context) for m in (fused, packed))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("execution", "dtype"), [*PACKED, FUSED])
@pytest.mark.parametrize("spec", [SMALL, ODD], ids=["small", "odd"])
def test_made_ready_while_it_loads_a_model_is_the_same(spec, execution, dtype, tmp_path):
    path = tmp_path / "model.safetensors"
    save_single_file(small_model(spec), path, dtype=torch.float16)
    loaded = load_model(path, device="cpu", dtype=dtype, execution=execution)
    afterwards = make_ready(load_model(path, device="cpu", dtype=dtype), execution)
    assert (loaded.execution, loaded.digest) == (execution, afterwards.digest)
    assert packed_bytes(loaded) == packed_bytes(afterwards)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        (m.denoise(x, torch.tensor([981.0, 1.0]), m.encode_prompt(["a", "b"])), m.decode(x[:1]))
        for m in (loaded, afterwards)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_auto_is_packed_on_a_cpu_and_only_once():
    model = make_ready(small_model(ODD))
    assert model.execution == "packed"
    with pytest.raises(ValueError, match="the model is packed already"):
        make_ready(model)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="execution 'fast' is unknown; expected auto, eager"):
        make_ready(small_model(ODD), "fast")
    model = small_model(ODD).to(torch.float64)
    with pytest.raises(ValueError, match="execution packed is for CPUs with kernels for float64"):
        make_ready(model, "packed")
    with pytest.raises(ValueError, match="execution fused is for bfloat16 on CPUs with AVX-512"):
        make_ready(model, "fused")
    assert model.execution == "eager"


COMPILED = """
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from sd_core.execution import make_ready
from tests.sd_core.small import ODD, small_model

eager = small_model(ODD)
compiled = make_ready(small_model(ODD), "compiled", cache=Path(sys.argv[1]))
x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
times = eager.embed_timesteps(torch.linspace(1, 981, 4))
context = eager.project_context(eager.encode_prompt(["a red circle"] * 4))
for ours, theirs in (
    (compiled.denoise(x, times, context), eager.denoise(x, times, context)),
    (compiled.decode(x[:1]), eager.decode(x[:1])),
):
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5
wanted = compiled.denoise(x, times[:1].expand(4, -1), context)[0]
others = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
others[2] = x[0]
assert torch.equal(compiled.denoise(others, times[:1].expand(4, -1), context)[2], wanted)
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_compiled_gives_the_numbers_of_eager_and_the_next_process_finds_its_programs(tmp_path):
    """Each process compares both, and moves an image to another place of a batch."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")

    def hits_and_misses() -> tuple[int, int]:
        command = [sys.executable, "-c", COMPILED, str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        hits, misses = map(int, done.stdout.split())
        return hits, misses

    hits, compiled = hits_and_misses()
    assert (hits, compiled > 0) == (0, True)
    assert hits_and_misses() == (compiled, 0)


def test_a_missing_compiler_is_said_before_anything_is_rendered(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    model = small_model(ODD)
    with pytest.raises(ValueError, match="execution compiled needs a C\\+\\+ compiler"):
        make_ready(model, "compiled")
    assert model.execution == "eager"
