"""Models that are told their guidance, as full LCM checkpoints: beside diffusers' pipelines."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import Request
from sd_core.engine.sample import sample_latents
from sd_core.loading import load_model
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.spec import Sampling
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers, save_single_file, single_file_weights
from tests.parity import schedulers
from tests.sd_core.small import SMALL, numbers, small_model
from tests.sd_core.weights.test_single_file import original_config

TOLD = dataclasses.replace(SMALL, unet=dataclasses.replace(SMALL.unet, guidance_dim=256))
PROMPT = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def model():
    return small_model(TOLD)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("told")
    save_diffusers(model, path)
    return path


def ask(guidance: float, seed: int = 3, **settings) -> Request:
    values = {"sampler": "lcm", "steps": 4, "width": 64, "height": 64} | settings
    return Request(PROMPT, Sampling(guidance=guidance, seed=seed, **values), "unread")


@pytest.mark.parametrize("guidance", [1.0, 8.5])
@pytest.mark.parametrize("sampler", ["lcm", "ddim"])
def test_latents(model, folder, sampler, guidance):
    kind = LatentConsistencyModelPipeline if sampler == "lcm" else StableDiffusionPipeline
    peer = kind.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    peer.scheduler = schedulers.scheduler(sampler)
    assert isinstance(peer.scheduler, LCMScheduler) == (sampler == "lcm")
    peer.set_progress_bar_config(disable=True)
    size = {"width": 64, "height": 64, "num_inference_steps": 4, "output_type": "latent"}
    generator = generator_for(3)
    wanted = peer(PROMPT, guidance_scale=guidance, generator=generator, **size).images[0]
    batches: list[Batch] = []
    with Engine(model, rows=4, on_batch=batches.append) as engine:
        found = engine.submit(ask(guidance, sampler=sampler)).result(timeout=60).latents
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    assert {batch.rows_used for batch in batches} == {1}
    x_T = draw_noise(generator := generator_for(3), (4, 8, 8))[None]
    alone = {"sampler": sampler, "steps": 4, "guidance": guidance, "generators": [generator]}
    by_hand = sample_latents(model, x_T, model.encode_prompt([PROMPT]), None, **alone)[0]
    assert float((by_hand - wanted).norm() / wanted.norm()) < 1e-4


def test_images_of_other_guidance_share_batches_and_never_notice_each_other(model):
    requests = [ask(guidance, seed) for seed, guidance in enumerate((1.0, 2.0, 8.0, 8.0))]
    batches: list[Batch] = []
    with Engine(model, rows=4, on_batch=batches.append) as engine:
        alone = [numbers(engine.submit(one).result(timeout=60)) for one in requests]
        batches.clear()
        futures = [engine.submit(one) for one in requests]
        together = [numbers(future.result(timeout=60)) for future in futures]
    assert all(map(torch.equal, alone, together))
    assert not torch.equal(alone[2], alone[3])
    assert batches[-1].rows_used == 4


def test_weighted_prompts_are_told_from_the_negative_one_all_the_same(model):
    """Perturbed attention is guidance that such a model can have, too."""
    requests = [
        ask(8.0, 1, syntax="a1111"),
        dataclasses.replace(ask(8.0, 1, syntax="a1111"), prompt="a star AND a moon :0.5"),
        ask(8.0, 2, pag_scale=3.0, pag_layers="down.0", guidance_to=0.5),
    ]
    batches: list[Batch] = []
    with Engine(model, rows=6, on_batch=batches.append) as engine:
        alone = [numbers(engine.submit(one).result(timeout=60)) for one in requests]
        used = [batch.rows_used for batch in batches]
        futures = [engine.submit(one) for one in requests]
        together = [numbers(future.result(timeout=60)) for future in futures]
    assert used == [1] * 4 + [3] * 4 + [2, 2, 1, 1]
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize(
    "settings",
    [{"apg": "0 2 0"}, {"guidance_rescale": 0.5}, {"guidance_from": 0.5}, {"guidance_to": 0.5}],
    ids=str,
)
def test_guidance_that_such_a_model_cannot_have_is_refused(model, settings):
    with Engine(model, rows=4) as engine:
        bad, good = engine.submit(ask(8.0, **settings)), engine.submit(ask(8.0))
        with pytest.raises(ValueError, match="does not go with a model that is told its guidance"):
            bad.result(timeout=60)
        assert torch.isfinite(good.result(timeout=60).latents).all()


def test_every_container_has_it(model, folder, tmp_path):
    save_single_file(model, tmp_path / "ours.safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file(single_file_weights(model), bare)
    config = tmp_path / "v1-inference.yaml"
    config.write_text(original_config(TOLD))
    loaded = [
        load_model(folder),
        load_model(tmp_path / "ours.safetensors"),
        load_model(bare),
        load_model(bare, config=config),
    ]
    assert {one.spec.unet.guidance_dim for one in loaded} == {256}
    assert len({one.digest for one in loaded}) == 1
    assert loaded[0].digest != load_digest(tmp_path)


def load_digest(tmp_path) -> str:
    """Digest of a model of the same other weights, that is told nothing."""
    save_single_file(small_model(SMALL), tmp_path / "plain.safetensors")
    return load_model(tmp_path / "plain.safetensors").digest


@pytest.mark.parametrize("dim", [-2, 3, "256", True, 10**9])
def test_sizes_that_no_model_has_are_refused(folder, tmp_path, dim):
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time_cond_proj_dim": dim}))
    with pytest.raises(CheckpointError, match="guidance_dim"):
        load_model(copy)
