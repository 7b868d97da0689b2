"""Digests of models stay what they were: the names of all pictures ever made depend on them."""

from __future__ import annotations

import pytest
import torch

from sd_core.loading import load_model
from sd_core.model.diffusion import LatentDiffusion
from sd_core.weights.export import save_diffusers, save_single_file
from tests.sd_core.small import ODD, SMALL

DEMO = "5664a1ec817d110c6938efafb221fc7f3ee500101c2c26af8587141ea51d1e75"
COUNTED = {
    "small": "bb5d7309e475bb33dddd0df1fe2530bce4b8496efa8d63ee416125a0ac2be0f7",
    "odd": "ba91afbb4928420e0f2200e7c843ab4fdd17f3bd74f430da711b16fd06ef52f6",
}


def counted_model(spec):
    """Weights counted off, the same on every machine, which random ones are not."""
    with torch.device("meta"):
        model = LatentDiffusion(spec)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        numbers = torch.arange(parameter.numel()) % 251
        parameter.data = (numbers.view(parameter.shape) - 125) / 1024
    return model.requires_grad_(False).eval()


def test_digest_of_the_demo_model():
    assert load_model("demo").digest == DEMO


@pytest.mark.parametrize("name", COUNTED)
def test_digests_of_all_containers(tmp_path, name):
    model = counted_model({"small": SMALL, "odd": ODD}[name])
    save_single_file(model, tmp_path / "model.safetensors")
    save_single_file(model, tmp_path / "model.ckpt")
    save_diffusers(model, tmp_path / "folder")
    found = {source.name: load_model(source).digest for source in tmp_path.iterdir()}
    assert found == dict.fromkeys(("model.safetensors", "model.ckpt", "folder"), COUNTED[name])
