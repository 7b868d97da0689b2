"""The model's methods: equal to diffusers' on the same weights, and strict about their inputs."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer

import sd_core
from sd_core.loading import load_model
from sd_core.model.text import TextEncoder, weight_shapes
from sd_core.sampling.noise import generator_for
from sd_core.spec import ModelSpec
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers
from tests.sd_core.small import ODD, SMALL, small_model

PROMPTS = ["a photograph of an astronaut riding a horse", "", "x" * 500]


@pytest.fixture(scope="module", params=[SMALL, ODD], ids=["small", "odd"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_diffusers(small_model(request.param), path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, device="cpu", dtype="float32")


def assert_close(ours, theirs, limit=1e-5):
    """Within a relative error, over the whole tensor."""
    assert ours.shape == theirs.shape
    assert ((ours - theirs).norm() / theirs.norm()).item() < limit


def latents(model, *, batch=2, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, 4, height, width), generator=generator)


def context(model, batch=2):
    return model.encode_prompt(PROMPTS[:batch])


@pytest.mark.parametrize("spec", [SMALL, ODD, ModelSpec()], ids=["small", "odd", "v1"])
def test_text_weights_are_those_of_transformers(spec):
    with torch.device("meta"):
        text = TextEncoder(spec.text)
    named = {name: tuple(weight.shape) for name, weight in text.state_dict().items()}
    assert list(weight_shapes(spec.text).items()) == list(named.items())


@torch.no_grad()
def test_text_states_equal_transformers(model, folder):
    peer = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    ids = model.tokenize(PROMPTS)
    assert (ids.shape, ids.dtype) == ((3, 77), torch.int64)
    assert_close(model.encode_tokens(ids), peer(ids).last_hidden_state)
    assert torch.equal(model.encode_prompt(PROMPTS), model.encode_tokens(ids))


def test_tokens_equal_those_of_the_exported_tokenizer(model, folder):
    peer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = peer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(ids.input_ids, model.tokenize(PROMPTS))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (9, 11), (13, 8)])
def test_noise_equals_diffusers(model, folder, height, width):
    """Also where the sides do not halve evenly on every level."""
    peer = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    x, timesteps, states = latents(model, height=height, width=width), [981, 1], context(model)
    ours = model.denoise(x, torch.tensor(timesteps), states)
    assert_close(ours, peer(x, torch.tensor(timesteps), states).sample)


@torch.no_grad()
def test_fractional_timesteps_equal_diffusers(model, folder):
    peer = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    x, timesteps, states = latents(model), torch.tensor([420.25, 3.5]), context(model)
    assert_close(model.denoise(x, timesteps, states), peer(x, timesteps, states).sample)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 88), (64, 200)])
def test_autoencoder_equals_diffusers(model, folder, height, width):
    peer = AutoencoderKL.from_pretrained(folder / "vae").eval()
    scale = model.spec.vae.scale_factor
    images = latents(model, height=height, width=width)[:, :3].clamp(-1, 1)
    posterior = peer.encode(images).latent_dist
    assert_close(model.encode_image(images), posterior.mean * scale)

    ours = model.encode_image(images, [generator_for(7), generator_for(8)])
    theirs = [
        peer.encode(image[None]).latent_dist.sample(generator_for(seed)) * scale
        for image, seed in zip(images, (7, 8), strict=True)
    ]
    assert_close(ours, torch.cat(theirs))

    z = latents(model, height=height // 8, width=width // 8)
    decoded = peer.decode(z / scale).sample
    assert_close(model.decode(z), decoded.clamp(-1, 1))


def test_exported_folder_is_a_pipeline(model, folder):
    """diffusers' own pipeline takes the folder as it is."""
    diffusers_logging.disable_progress_bar()
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_stays_close_and_gives_float32(folder, model, dtype):
    low = load_model(folder, device="cpu", dtype=dtype)
    x, timesteps, states = latents(model), torch.tensor([981.0, 999.0]), context(model)
    for ours, full in (
        (low.encode_prompt(PROMPTS[:2]), states),
        (low.denoise(x, timesteps, states), model.denoise(x, timesteps, states)),
        (low.decode(x), model.decode(x)),
        (low.encode_image(x[:, :3].clamp(-1, 1)), model.encode_image(x[:, :3].clamp(-1, 1))),
    ):
        assert ours.dtype == torch.float32
        assert_close(ours, full, 0.05)


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_leaves_pythons_collector_as_it_was(folder, tmp_path, enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load_model(folder, device="cpu", dtype="float32")
        assert gc.isenabled() == enabled
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "nothing.safetensors")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_results_may_be_changed_in_place(model):
    for result in (
        context(model),
        model.denoise(latents(model), torch.tensor([1, 2]), context(model)),
        model.decode(latents(model)),
        model.encode_image(torch.zeros(1, 3, 64, 64)),
    ):
        assert not result.requires_grad
        result.mul_(2.0)


def test_decoded_images_are_clamped(model):
    images = model.decode(1000 * latents(model))
    assert images.min() == -1
    assert images.max() == 1


def test_a_sample_does_not_depend_on_the_batch(model):
    images = latents(model)[:, :3]
    together = model.encode_image(images, [generator_for(1), generator_for(0)])
    alone = model.encode_image(images[1:], [generator_for(0)])
    assert_close(together[1:], alone)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.tokenize("a cat"), "expected a list of strings"),
        (lambda m: m.encode_tokens(torch.zeros(2, 70)), r"ids have shape \(2, 70\); .*\(any, 77\)"),
        (
            lambda m: m.denoise(torch.zeros(2, 3, 8, 8), torch.zeros(2), context(m)),
            r"latents have shape \(2, 3, 8, 8\); expected \(any, 4, any, any\)",
        ),
        (
            lambda m: m.denoise(torch.zeros(2, 4, 8, 8), torch.zeros(1), context(m)),
            r"timesteps have shape \(1,\); expected \(2\)",
        ),
        (
            lambda m: m.denoise(torch.zeros(2, 4, 8, 8), torch.zeros(2), context(m, 1)),
            r"context have shape \(1, 77, \d+\); expected \(2, any, \d+\)",
        ),
        (lambda m: m.decode(torch.zeros(4, 8, 8)), r"latents have shape \(4, 8, 8\); expected"),
        (lambda m: m.encode_image(torch.zeros(1, 1, 64, 64)), "images have shape"),
        (lambda m: m.encode_image(torch.zeros(1, 3, 60, 64)), "64x60 pixels; expected multiples"),
        (
            lambda m: m.encode_image(torch.zeros(2, 3, 64, 64), [generator_for(0)]),
            "1 generators for 2 images",
        ),
    ],
)
def test_wrong_inputs(model, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)


@pytest.mark.slow
def test_unet_and_decoder_trace_without_graph_breaks(model):
    torch.compiler.reset()
    unet = torch.compile(model.unet, backend="eager", fullgraph=True)
    decoder = torch.compile(model.vae.decoder, backend="eager", fullgraph=True)
    encoder = torch.compile(model.vae.encoder, backend="eager", fullgraph=True)
    x, timesteps, states = (
        latents(model, height=9, width=11),
        torch.tensor([1.0, 2.0]),
        context(model),
    )
    with torch.inference_mode():
        assert_close(unet(x, timesteps, states), model.unet(x, timesteps, states))
        assert_close(decoder(x), model.vae.decoder(x))
        images = x[:, :3].repeat(1, 1, 8, 8)
        assert_close(encoder(images), model.vae.encoder(images))


def test_public_names_resolve():
    for name in sd_core.__all__:
        assert getattr(sd_core, name).__name__ == name
        assert name in dir(sd_core)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sd_core.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["sd_core", "sd_core.spec", "sd_core.weights.errors"])
def test_importing_is_cheap(module):
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
