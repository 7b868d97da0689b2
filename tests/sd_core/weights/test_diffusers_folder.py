"""diffusers folders in the forms they are published in, most of them written by diffusers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from sd_core.loading import load_model
from sd_core.weights.export import save_diffusers, save_single_file
from tests.sd_core.small import ODD, SMALL, small_model

PEERS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers") / "small"
    save_diffusers(model, path)
    return path


@pytest.fixture(scope="module")
def digest(model, tmp_path_factory):
    """Of the same weights in a single file."""
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_single_file(model, path)
    return load_model(path, dtype="float32").digest


@pytest.fixture
def rewritten(folder, tmp_path):
    """A function that has diffusers and transformers write the folder's components anew."""

    def rewrite(half=False, **options):
        target = tmp_path / "rewritten"
        for name, cls in PEERS.items():
            peer = cls.from_pretrained(folder / name)
            (peer.half() if half else peer).save_pretrained(target / name, **options)
        shutil.copy(folder / "model_index.json", target)
        return target

    return rewrite


def test_folder_holds_the_same_model(model, folder, digest):
    loaded = load_model(folder, dtype="float32")
    assert loaded.spec == SMALL
    assert loaded.digest == digest
    assert loaded.provenance.format == "diffusers"
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_sizes_come_from_the_configs(tmp_path):
    model = small_model(ODD)
    save_diffusers(model, tmp_path)
    loaded = load_model(tmp_path, dtype="float32")
    assert loaded.spec == ODD
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_written_by_diffusers(rewritten, digest):
    assert load_model(rewritten(), dtype="float32").digest == digest


def test_sharded(rewritten, digest):
    target = rewritten(max_shard_size="5MB")
    for name in PEERS:
        assert len(list((target / name).glob("*-of-*.safetensors"))) > 1
    assert load_model(target, dtype="float32").digest == digest


def test_fp16_variant(rewritten, model, tmp_path):
    """The variant alone is read; beside full precision it is left, so the digest stays one."""
    target = rewritten(half=True, variant="fp16")
    single = tmp_path / "half.safetensors"
    save_single_file(model, single, dtype=torch.float16)
    assert load_model(target).digest == load_model(single).digest


def test_fp16_variant_sharded(rewritten, model, tmp_path):
    target = rewritten(half=True, variant="fp16", max_shard_size="3MB")
    assert list(target.glob("*/*.index.fp16.json"))
    single = tmp_path / "half.safetensors"
    save_single_file(model, single, dtype=torch.float16)
    assert load_model(target).digest == load_model(single).digest


def test_full_precision_comes_before_the_variant(model, folder, digest, tmp_path):
    target = tmp_path / "both"
    save_diffusers(model, target)
    save_diffusers(model, target, dtype=torch.float16, variant="fp16")
    assert load_model(target).digest == digest


def test_pickled(folder, digest, tmp_path):
    target = tmp_path / "pickled"
    shutil.copytree(folder, target)
    for path in target.rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.name == "model.safetensors" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    assert load_model(target, dtype="float32").digest == digest


def test_names_of_older_versions(folder, digest, tmp_path):
    """The first SD v1 folders: another naming of the autoencoder's attention, position_ids, a
    config without scaling_factor.
    """
    target = tmp_path / "old"
    shutil.copytree(folder, target)
    vae = target / "vae" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in load_file(vae).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name.replace(".to_out.0.", ".proj_attn.")] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, vae)
    text = target / "text_encoder" / "model.safetensors"
    save_file(
        load_file(text) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, text
    )
    config = json.loads((target / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (target / "vae" / "config.json").write_text(json.dumps(config))
    assert load_model(target, dtype="float32").digest == digest


def test_vae_of_another_folder(model, folder, tmp_path):
    other = small_model(seed=1)
    save_diffusers(other, tmp_path / "other")
    expected = other.vae.state_dict()
    file = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    for source in (tmp_path / "other", tmp_path / "other" / "vae", file):
        loaded = load_model(folder, dtype="float32", vae=source)
        assert loaded.spec == SMALL
        for name, tensor in loaded.vae.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_scale_factor_of_another_vae(folder, tmp_path):
    """A folder says its scale factor; a file does not, and the model's stays."""
    save_diffusers(small_model(), tmp_path / "other")
    config = tmp_path / "other" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.5}))
    file = tmp_path / "other" / "vae" / "diffusion_pytorch_model.safetensors"
    assert load_model(folder, vae=config.parent).spec.vae.scale_factor == 0.5
    assert load_model(folder, vae=file).spec.vae.scale_factor == 0.18215
