"""Guidance in a part of the steps, and rescaled: by hand, and in batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import Request
from sd_core.sampling.guidance import rescale
from sd_core.sampling.noise import generator_for, noise_of
from sd_core.sampling.samplers import rows, step_table
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Trajectory, from_noise
from sd_core.spec import Sampling
from tests.sd_core.small import ODD, small_model


@pytest.fixture(scope="module")
def model():
    return small_model(ODD)


def ask(seed: int = 1, **settings) -> Request:
    return Request("a ring", Sampling(**{"width": 64, "height": 64, "seed": seed} | settings))


def by_hand(model, request: Request, guided: set[int]) -> torch.Tensor:
    """Latents of a request whose steps of these numbers have guidance."""
    sampling = request.sampling
    table = step_table(sampling.sampler, sampling.steps)
    image = Trajectory(table, from_noise(table, noise_of(sampling)[0]), generator_for(0), 1.0)
    slots = Slots(1, sampling.latent_shape, model.device)
    slots.put(0, image)
    prompts = [model.project_context(model.encode_prompt([text])) for text in ("a ring", "")]
    for position in range(len(table)):
        time = model.embed_timesteps(torch.tensor([image.timestep]))
        given, without = (model.denoise(slots.latents, time, context) for context in prompts)
        if int(table.steps[position]) in guided:
            mixed = without + sampling.guidance * (given - without)
            if sampling.guidance_rescale:
                mixed = rescale_noise_cfg(mixed, given, sampling.guidance_rescale)
            given = mixed
        slots.step(given, given.clone(), slots.stage())
        slots.stepped()
    return image.latents


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        ({"guidance_from": 0.3, "guidance_to": 0.7}, {4, 5, 6, 7}),
        ({"guidance_from": 0.5}, {6, 7, 8, 9, 10}),
        ({"guidance_to": 0.05, "sampler": "heun"}, {1}),
        ({"guidance_from": 0.99}, set()),
        ({"guidance_rescale": 0.7}, set(range(1, 11))),
        ({"guidance_rescale": 1.0, "guidance_from": 0.2}, set(range(3, 11))),
    ],
)
def test_guidance_is_in_its_steps_only(model, settings, guided):
    request = ask(steps=10, guidance=6.0, **settings)
    with Engine(model, rows=2) as engine:
        found = engine.submit(request).result(timeout=60).latents
    wanted = by_hand(model, request, guided)
    assert (found - wanted).norm() / wanted.norm() < 1e-4


def test_rescaled_outputs_are_those_of_diffusers():
    given, guided = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = rescale_noise_cfg(guided, given, 0.7)
    rescale(guided[0], given[0], 0.7)
    assert (guided - wanted).abs().max() < 1e-5


def test_steps_without_guidance_take_one_row_and_batches_stay_full(model):
    """Twelve images that begin and end with guidance at other steps: their rows come and go, and
    the batch has next to none to spare; each has the bits that it has alone.
    """
    shares = [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.0, 1.0)]
    requests = [
        ask(n, steps=12, guidance=5.0, guidance_from=first, guidance_to=last)
        for n, (first, last) in enumerate(shares * 3)
    ]
    batches: list[Batch] = []
    with Engine(model, rows=6, on_batch=batches.append) as engine:
        alone = [engine.submit(one).result(timeout=60).latents for one in requests]
        batches.clear()
        futures = [engine.submit(one) for one in requests]
        together = [future.result(timeout=60).latents for future in futures]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    used = sum(batch.rows_used for batch in batches)
    assert used == sum(rows(one.sampling) for one in requests)
    busy = batches[: -len(batches) // 4]  # until there are too few images to fill a batch
    assert sum(batch.rows_used for batch in busy) >= 0.95 * sum(batch.rows for batch in busy)


def test_settings_that_the_model_refuses_fail_alone():
    """A model without signal at its first timestep refuses a sampler; other images go on."""
    spec = dataclasses.replace(ODD, prediction="v", zero_snr=True)
    with Engine(small_model(spec), rows=4) as engine:
        bad = engine.submit(ask(sampler="heun", schedule="trailing", steps=3))
        good = engine.submit(ask(sampler="euler", schedule="trailing", steps=3))
        with pytest.raises(ValueError, match="heun loses its numbers"):
            bad.result(timeout=60)
        assert torch.isfinite(good.result(timeout=60).latents).all()


def test_rows_are_counted_by_schedule():
    few = {"sampler": "lcm", "schedule": "karras", "steps": 60, "guidance": 3.0}
    assert rows(Sampling(**few, guidance_to=0.5)) == 90
