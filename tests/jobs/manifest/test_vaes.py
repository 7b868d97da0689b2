"""VAEs in manifests: which image has which, and what is refused where it stands."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from jobs.errors import ManifestError
from jobs.manifest.load import load_manifest
from jobs.manifest.named_files import FileRules
from jobs.models import ModelSource, load_models
from jobs.task import VaeUse
from tests.jobs.manifests import HEAD, load, messages, tasks, write

OWN = "vaes: {soft: vae/soft.safetensors, sharp: sharp.safetensors}\n"
FIRST = "decoder.conv_in.weight"


@pytest.fixture(autouse=True)
def uses(tmp_path):
    """By name what tasks have."""
    (tmp_path / "vae").mkdir()
    found = {}
    for seed, (name, path) in enumerate((("soft", "vae/soft"), ("sharp", "sharp"))):
        file = tmp_path / f"{path}.safetensors"
        save_file({FIRST: torch.full((8, 4, 3, 3), float(seed))}, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found[name] = VaeUse(name, digest, f"{digest}.safetensors")
    return found


def chosen(folder, body):
    return [task.vae for task in tasks(folder, OWN + body)]


def test_of_defaults_prompts_and_rows(tmp_path, uses):
    write(tmp_path, "prompt,vae\nb,sharp\nc,\nd,model\n", "rows.csv")
    body = """\
defaults: {vae: soft}
prompts: [a, {prompt: a, vae: sharp.safetensors}, {prompt: a, vae: model}, {file: rows.csv},
  {file: rows.csv, vae: model}]
"""
    soft, sharp = uses["soft"], uses["sharp"]
    assert chosen(tmp_path, body) == [
        *(soft, sharp, None),
        *(sharp, soft, None),
        *(sharp, None, None),
    ]


def test_as_an_axis(tmp_path, uses):
    body = "matrix: {vae: [model, soft, sharp.safetensors]}\nprompts: [{prompt: a, vae: sharp}]"
    assert chosen(tmp_path, body) == [None, uses["soft"], uses["sharp"]]


def test_only_those_that_are_used_go_with_the_job(tmp_path, uses):
    job = load(tmp_path, f"{OWN}prompts: [{{prompt: a, vae: soft}}]")
    assert list(job.inputs) == [uses["soft"].file]
    assert list(job.vaes) == ["soft"]


def test_of_the_model_list_also_as_a_folder_of_diffusers(tmp_path, uses):
    folder = tmp_path / "mse"
    folder.mkdir()
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes((tmp_path / "sharp.safetensors").read_bytes())
    far = {"source": "hf:owner/name/file.pt", "digest": "5a" * 32}
    listed = load_models(json.dumps({"vaes": {"mse": str(folder), "far": far}}))
    assert listed.vaes["mse"].source == str(file)
    path = write(tmp_path, f"{HEAD}matrix: {{vae: [mse, far]}}\nprompts: [a]")
    job = load_manifest(path, vaes=FileRules(lambda: listed.vaes))
    expected = [VaeUse("mse", uses["sharp"].sha256), VaeUse("far", "5a" * 32)]
    assert [task.vae for task in job.tasks()] == expected


CHOICE = "a name or path of a VAE, or model for the model's own"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "defaults: {vae: sift}\nprompts: [a]",
            "3:17: defaults.vae: VAE 'sift' is not known; did you mean 'soft'?",
        ),
        (
            "matrix: {vae: [soft, no]}\nprompts: [a]",
            "3:22: matrix.vae[1]: VAE 'no' is not known; known are soft, sharp",
        ),
        (
            "matrix: {vae: [soft, soft]}\nprompts: [a]",
            "3:22: matrix.vae[1]: a VAE is in the list twice",
        ),
        (
            "matrix: {vae: soft}\nprompts: [a]",
            f"3:15: matrix.vae: found 'soft', expected a list of values, each {CHOICE}",
        ),
        (
            "prompts: [{prompt: a, vae: [soft]}]",
            f"3:28: prompts[0].vae: found a list, expected {CHOICE}",
        ),
        (
            "prompts: [{prompt: a, vae: no.safetensors}]",
            "3:28: prompts[0].vae: 'no.safetensors' does not exist",
        ),
    ],
)
def test_what_cannot_be_used(tmp_path, body, said):
    (found,) = messages(tmp_path, OWN + body)
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({FIRST: (8, 16, 3, 3)}, "it is an autoencoder for latents of 16 channels"),
        ({"lora_unet_a.lora_up.weight": (4, 4)}, "expected an autoencoder (VAE)"),
        ({"model.diffusion_model.out.2.weight": (4, 4)}, "a model without an autoencoder"),
    ],
)
def test_files_of_other_things(tmp_path, tensors, said):
    save_file({k: torch.zeros(shape) for k, shape in tensors.items()}, tmp_path / "x.safetensors")
    (found,) = messages(tmp_path, "vaes: {x: x.safetensors}\nprompts: [a]")
    assert found.startswith("2:11: vaes.x: 'x.safetensors'")
    assert said in found


def test_the_name_of_the_models_own_is_taken(tmp_path):
    (found,) = messages(tmp_path, "vaes: {model: sharp.safetensors}\nprompts: [a]")
    assert found == ("2:15: vaes.model: model stands for the model's own VAE; choose another name")


def test_one_of_the_list_needs_its_digest(tmp_path):
    rules = FileRules(lambda: {"mse": ModelSource("s3://bucket/mse.pt")})
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(tmp_path, f"{HEAD}prompts: [{{prompt: a, vae: mse}}]"), vaes=rules)
    assert "the model list has to say its sha256" in str(caught.value)
