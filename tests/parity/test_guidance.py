"""Perturbed-attention guidance and FreeU beside diffusers' pipelines: same weights, same seeds."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPAGPipeline, StableDiffusionPipeline

from sd_core.engine.engine import Engine
from sd_core.engine.request import Request
from sd_core.sampling.noise import generator_for
from sd_core.spec import Sampling
from sd_core.weights.export import save_diffusers
from tests.parity import schedulers
from tests.sd_core.small import SMALL, small_model

PROMPT, NEGATIVE, SIDE, STEPS = "a red circle left of a blue square", "blurry", 128, 4

WHOLE = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS, "output_type": "latent"}


@pytest.fixture(scope="module")
def model():
    return small_model(SMALL)


@pytest.fixture(scope="module")
def peer(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    save_diffusers(model, folder)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = schedulers.scheduler("ddim")
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    return pipeline


def ours(model, guidance: float, **settings) -> torch.Tensor:
    sampling = Sampling("ddim", STEPS, guidance, SIDE, SIDE, seed=3, **settings)
    with Engine(model, rows=4) as engine:
        return engine.submit(Request(PROMPT, sampling, NEGATIVE)).result(timeout=60).latents


def theirs(pipeline, guidance: float, **settings) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=guidance,
        generator=generator_for(3),
        **WHOLE,
        **settings,
    ).images[0]


def distance(mine: torch.Tensor, other: torch.Tensor) -> float:
    return float((mine - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("guidance", "layers", "called", "rescale"),
    [
        (5.0, "mid", ["mid"], 0.0),
        (5.0, "mid", ["mid"], 0.7),
        (1.0, "mid", ["mid"], 0.0),
        (5.0, "down.2 up.1.0", ["down_blocks.2", "up_blocks.1.attentions.0"], 0.0),
        (
            2.0,
            "down.0.1, mid_block, up_blocks.3",
            ["down_blocks.0.attentions.1", "mid", "up_blocks.3"],
            0.0,
        ),
    ],
)
def test_perturbed_attention(model, peer, guidance, layers, called, rescale):
    pipeline = StableDiffusionPAGPipeline(
        **peer.components, pag_applied_layers=called, requires_safety_checker=False
    )
    wanted = theirs(pipeline, guidance, pag_scale=3.0, guidance_rescale=rescale)
    settings = {"pag_layers": layers, "guidance_rescale": rescale}
    found = ours(model, guidance, pag_scale=3.0, **settings)
    assert distance(found, wanted) < 1e-4
    assert distance(ours(model, guidance, guidance_rescale=rescale), wanted) > 1e-3


@pytest.mark.parametrize("factors", [(1.5, 1.6, 0.9, 0.2), (1.0, 1.3, 1.2, 0.4)])
def test_freeu(model, peer, factors):
    b1, b2, s1, s2 = factors
    peer.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
    try:
        wanted = theirs(peer, 5.0)
    finally:
        peer.disable_freeu()
    found = ours(model, 5.0, freeu=" ".join(map(str, factors)))
    assert distance(found, wanted) < 1e-4
    assert distance(ours(model, 5.0), wanted) > 1e-3
