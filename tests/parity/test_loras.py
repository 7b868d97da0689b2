"""Whole images with adapters beside diffusers' pipelines with the same files, float32: latents
within 1e-4 relative. At a small size, and (slow) once with the architecture of v1 in full.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from sd_core.engine.engine import Engine
from sd_core.engine.request import Lora, Request
from sd_core.spec import ModelSpec
from sd_core.weights.key_map import clip_names, diffusers_unet_name
from sd_core.weights.lora.names import layers_of
from tests.parity.test_images import NEGATIVE, PROMPT, Peers
from tests.sd_core.lora_files import lora_tensors
from tests.sd_core.small import SMALL, small_model

WEIGHT = 0.7
OF_UNET = (".attn1.", ".attn2.", ".ff.net.")
ATTENTIONS = (*OF_UNET, ".self_attn.", ".mlp.")
CONVOLUTIONS = (".in_layers.2", ".out_layers.3", ".op", ".conv", ".proj_in", ".proj_out")


def kohya(spec: ModelSpec, rank: int, *, parts: tuple[str, ...], dora: bool = False) -> dict:
    """Tensors under kohya's names of diffusers' layers, of those that have one of the parts."""
    ours = lora_tensors(spec, 1, rank=rank, dora=dora)
    tensors = {}
    for component, name in layers_of(spec)[1]:
        if not any(part in name for part in parts):
            continue
        if component == "unet":
            theirs = diffusers_unet_name(f"{name}.weight", spec.unet.num_res_blocks)
            theirs = f"lora_unet_{theirs.removesuffix('.weight')}"
        else:
            theirs = f"lora_te_{clip_names(name)[0]}"
        prefix = ("lora_unet_" if component == "unet" else "lora_te_") + name.removeprefix(
            "transformer."
        ).replace(".", "_")
        for key, tensor in ours.items():
            if key.startswith(f"{prefix}."):
                leaf = key.removeprefix(f"{prefix}.")
                tensors[f"{theirs.replace('.', '_')}.{leaf}"] = tensor
    return tensors


def peft(tensors: dict) -> dict:
    """The same under PEFT's names: diffusers reads no DoRA under kohya's. There is no alpha."""
    leaves = {
        "lora_down.weight": "lora_A.weight",
        "lora_up.weight": "lora_B.weight",
        "dora_scale": "lora_magnitude_vector",
    }
    found = {}
    for component, name in layers_of(SMALL)[1]:
        theirs = f"text_encoder.{clip_names(name)[0]}"
        if component == "unet":
            theirs = diffusers_unet_name(f"{name}.weight", SMALL.unet.num_res_blocks)
            theirs = f"unet.{theirs.removesuffix('.weight')}"
        mangled = theirs.replace("text_encoder", "lora_te").replace("unet", "lora_unet", 1)
        for leaf, new in leaves.items():
            tensor = tensors.get(f"{mangled.replace('.', '_')}.{leaf}")
            if tensor is not None:
                found[f"{theirs}.{new}"] = tensor.flatten() if "magnitude" in new else tensor
    return found


def check(peers: Peers, tensors: dict, folder, *, weight: float) -> None:
    path = folder / "lora.safetensors"
    save_file(tensors, path)
    pipeline = peers.txt2img
    pipeline.load_lora_weights(folder, weight_name=path.name, adapter_name="a")
    try:
        pipeline.set_adapters(["a"], [weight])
        (theirs,) = peers.call(
            pipeline, "ddim", 3, height=peers.side, width=peers.side, output_type="latent"
        )
    finally:
        pipeline.unload_lora_weights()
    sampling = peers.sampling("ddim", 3)
    lora = Lora.of(path, weight)
    with Engine(peers.model, rows=2) as engine:
        ours = engine.submit(Request(PROMPT, sampling, NEGATIVE, loras=(lora,))).result()
        without = engine.submit(Request(PROMPT, sampling, NEGATIVE)).result()
    scale = theirs.abs().max()
    assert (ours.latents - theirs).abs().max() / scale < 1e-4
    assert (without.latents - theirs).abs().max() / scale > 1e-2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Peers(small_model(SMALL), tmp_path_factory.mktemp("peer"), side=64, steps=6)


@pytest.mark.parametrize(
    ("parts", "dora", "weight"),
    [
        (ATTENTIONS, False, WEIGHT),
        ((*ATTENTIONS, *CONVOLUTIONS), False, WEIGHT),
        # PEFT goes another way besides 1 (`sd_core.model.adapters`), and transformers does not
        # read DoRA's lengths of a text encoder.
        (OF_UNET, True, 1.0),
    ],
    ids=["attentions", "convolutions", "dora"],
)
def test_a_small_model(small, tmp_path, parts, dora, weight):
    tensors = kohya(SMALL, 4, parts=parts, dora=dora)
    check(small, peft(tensors) if dora else tensors, tmp_path, weight=weight)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [32, 128])
def test_the_architecture_of_v1_in_full(tmp_path, tmp_path_factory, rank):
    model = small_model(ModelSpec())
    peers = Peers(model, tmp_path_factory.mktemp("peer"), side=64, steps=3)
    tensors = kohya(ModelSpec(), rank, parts=(*ATTENTIONS, *CONVOLUTIONS))
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    check(peers, tensors, tmp_path, weight=WEIGHT)
