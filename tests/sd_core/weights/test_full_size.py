"""Loading and parity at the size of Stable Diffusion v1: 1.07 billion weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from sd_core.cpu.packing import can_pack
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.text import clip_config
from sd_core.sampling.noise import generator_for
from sd_core.spec import ModelSpec
from sd_core.weights.export import save_single_file, unet_config, vae_config
from sd_core.weights.key_map import clip_names, diffusers_unet_name, diffusers_vae_names
from tests.sd_core.small import small_model
from tests.sd_core.weights.sparse import write_sparse_model

pytestmark = pytest.mark.slow

V1_WEIGHTS = {"text": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Runs in a process of its own, whose peak is that of loading and nothing else. The kernel's VmHWM
# begins anew in a new program; getrusage's ru_maxrss begins at what the starting process took.
MEASURE = r"""
import json, re, sys, time
import sd_core
from sd_core import load_model
import transformers.models.clip.modeling_clip

path, dtype, execution = sys.argv[1:]
peak = lambda: int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024
before, started = peak(), time.perf_counter()
model = load_model(path, device="cpu", dtype=dtype, execution=execution)
seconds = time.perf_counter() - started
print(json.dumps({"peak": peak() - before, "seconds": seconds}))
"""


def test_v1_has_the_known_number_of_weights():
    with torch.device("meta"):
        model = LatentDiffusion(ModelSpec())
    for name, count in V1_WEIGHTS.items():
        assert sum(p.numel() for p in getattr(model, name).parameters()) == count


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v1")
    write_sparse_model(folder / "F32.safetensors", ModelSpec(), dtype="F32")
    write_sparse_model(folder / "F16.safetensors", ModelSpec(), dtype="F16")
    with torch.device("meta"):
        model = LatentDiffusion(ModelSpec())
    model = model.half().to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    save_single_file(model, folder / "F16.ckpt")
    return folder


def measure(path, dtype, execution):
    command = [sys.executable, "-c", MEASURE, str(path), dtype, execution]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sys.stderr.write(f"\n{path.name} as {dtype}, {execution}: {done.stdout}")
    return json.loads(done.stdout)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


@on_linux
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("name", ["F32.safetensors", "F16.safetensors", "F16.ckpt"])
def test_peak_memory_while_loading(files, name, dtype):
    measured = measure(files / name, dtype, "eager")
    weights = sum(V1_WEIGHTS.values()) * BYTES[dtype]
    assert 0.95 * weights < measured["peak"] < 1.2 * weights + 500e6


@on_linux
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packing_holds_no_second_copy_of_the_weights(files, dtype):
    if not can_pack(torch.device("cpu"), getattr(torch, dtype)):
        pytest.skip(f"this CPU has no kernels for {dtype}")
    measured = measure(files / "F16.safetensors", dtype, "packed")
    assert measured["peak"] < 1.2 * sum(V1_WEIGHTS.values()) * BYTES[dtype] + 500e6


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


@pytest.fixture(scope="module")
def model():
    return small_model(ModelSpec())


def peer_with(build, weights):
    """A peer that shares the given tensors, as two copies of the model would fill the memory."""
    with torch.device("meta"):
        peer = build()
    peer.load_state_dict(weights, strict=True, assign=True)
    return peer.eval()


@torch.no_grad()
def test_text_states_equal_transformers(model):
    inner = {clip_names(n)[1]: t for n, t in model.text.state_dict().items()}
    peer = peer_with(lambda: CLIPTextModel(clip_config(model.spec.text)), inner)
    peer.embeddings.position_ids = torch.arange(77)[None]
    ids = model.tokenize(["a photograph of an astronaut riding a horse", ""])
    assert_close(model.encode_tokens(ids), peer(ids).last_hidden_state)


@torch.no_grad()
def test_noise_equals_diffusers(model):
    blocks = model.spec.unet.num_res_blocks
    weights = {diffusers_unet_name(n, blocks): t for n, t in model.unet.state_dict().items()}
    peer = peer_with(lambda: UNet2DConditionModel.from_config(unet_config(model.spec)), weights)
    x = torch.randn((1, 4, 32, 40), generator=generator_for(0))
    states, timesteps = model.encode_prompt(["a cat"]), torch.tensor([501.0])
    assert_close(model.denoise(x, timesteps, states), peer(x, timesteps, states).sample)


@torch.no_grad()
def test_autoencoder_equals_diffusers(model):
    weights = {
        diffusers_vae_names(n, 4)[0]: t[..., 0, 0] if ".attn_1." in n and t.dim() == 4 else t
        for n, t in model.vae.state_dict().items()
    }
    peer = peer_with(lambda: AutoencoderKL.from_config(vae_config(model.spec)), weights)
    images = torch.rand((1, 3, 256, 192), generator=generator_for(0)) * 2 - 1
    scale = model.spec.vae.scale_factor
    assert_close(model.encode_image(images), peer.encode(images).latent_dist.mean * scale)
    z = torch.randn((1, 4, 32, 24), generator=generator_for(1))
    assert_close(model.decode(z), peer.decode(z / scale).sample.clamp(-1, 1))
