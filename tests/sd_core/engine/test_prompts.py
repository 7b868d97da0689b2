"""Prompts of any length and syntax in one batch: each image's bits are those that it has alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import Request
from sd_core.engine.sample import sample_latents
from sd_core.execution import make_ready
from sd_core.model.layers import LongContext
from sd_core.sampler_table import SAMPLERS
from sd_core.sampling.noise import draw_noise, generator_for, noise_of
from sd_core.sampling.samplers import step_table
from sd_core.sampling.slots import Slots
from sd_core.sampling.trajectory import Trajectory, from_noise
from sd_core.spec import Sampling
from tests.sd_core.engine.suspending import calm_and_resumed
from tests.sd_core.engine.test_engine import BFLOAT16
from tests.sd_core.small import ODD, numbers, small_model


@pytest.fixture(scope="module", params=[("eager", "float32"), ("packed", "float32"), BFLOAT16])
def model(request):
    execution, dtype = request.param
    return make_ready(small_model(ODD).to(getattr(torch, dtype)), execution)


def ask(prompt: str, negative: str = "", **settings) -> Request:
    values = {"width": 64, "height": 64, "steps": 6, "seed": 1, "syntax": "a1111"} | settings
    return Request(prompt, Sampling(**values), negative)


LONG = ", ".join(f"word {n}" for n in range(40))  # two chunks and more

MIXED = [
    ask("a red circle", syntax="plain"),
    ask("a (red:1.4) circle", seed=2, sampler="euler_a", guidance=3.0),
    ask(LONG, seed=3, steps=5, sampler="dpmpp_2m"),
    ask("a [red:blue:0.5] circle", "(blur:1.2)", seed=4, sampler="heun"),
    ask("[sun|moon|star]", seed=5, sampler="ddim", guidance=1.0),
    ask("a circle :0.8 AND a star :-0.3", seed=6, sampler="lms", steps=7),
    ask("sun BREAK moon BREAK star", LONG, seed=7, emphasis="comfy"),
    ask("a ring", seed=8, clip_skip=2, guidance=1.0),
    ask(f"[a sun:{LONG}:2]", seed=9, emphasis="none"),
    ask(LONG, seed=10, syntax="plain", guidance=1.0),
]


def rendered(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    futures = [engine.submit(request) for request in requests]
    return [numbers(future.result(timeout=600)) for future in futures]


def test_all_of_them_share_batches_and_never_notice_each_other(model):
    batches: list[Batch] = []
    with Engine(model, rows=16, on_batch=batches.append) as engine:
        alone = [rendered(engine, one)[0] for one in MIXED]
        batches.clear()
        together = rendered(engine, *MIXED)
        used = sum(batch.rows_used for batch in batches)
        backwards = rendered(engine, *MIXED[::-1])[::-1]
    for request, one, *others in zip(MIXED, alone, together, backwards, strict=True):
        assert all(torch.equal(one, other) for other in others), request.prompt
    assert max(batch.rows_used for batch in batches) >= 15
    assert used == sum(len(table_of(one)) * one.rows for one in MIXED)


def table_of(request: Request):
    sampling = request.sampling
    return step_table(sampling.sampler, sampling.steps)


def test_rows_of_an_image_that_a_batch_cannot_hold_are_evaluated_in_parts(model):
    """Three and four rows, where a batch has two: as large images have on a CPU. What is left of
    three is padded, until a row alone was seen to give the same bits.
    """
    parts = [ask("a AND b"), ask("a AND b AND c", seed=2), ask("a", seed=3)]
    batches: list[Batch] = []
    with Engine(model, rows=2, on_batch=batches.append) as engine:
        alone = [rendered(engine, one)[0] for one in parts]
        together = rendered(engine, *parts)
        images = [engine.submit(one).result(timeout=60) for one in parts]
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))
    counts = {(batch.rows_used, batch.rows) for batch in batches}
    assert counts - {(3, 3)} == {(3, 4), (4, 4), (2, 2)}
    assert all(image.exact for image in images)


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_it_goes_on_where_it_was(model, number: int):
    calm, again = calm_and_resumed(model, MIXED[number], MIXED[::3], after=4)
    assert torch.equal(calm, again)


def sampled_by_hand(model, request: Request, contexts) -> torch.Tensor:
    """Latents of an image, whose rows are evaluated one by one.

    contexts: for each step the text states of the negative prompt's row, and of each part of the
    prompt with its weight.
    """
    sampling = request.sampling
    table = table_of(request)
    trajectory = Trajectory(
        table,
        from_noise(table, noise_of(sampling)[0]),
        generator_for(sampling.seed + 10**6),  # the samplers here take no more noise
        sampling.guidance,
    )
    slots = Slots(1, sampling.latent_shape, torch.device("cpu"))
    slots.put(0, trajectory)
    while not trajectory.done:
        t = torch.tensor([trajectory.timestep])
        negative, parts = contexts(int(table.steps[trajectory.position]))
        x = slots.latents.clone()
        without = model.denoise(x, t, negative)
        given = without.clone()
        for states, weight in parts:
            given += weight * (model.denoise(x, t, states) - without)
        extent = slots.stage()
        slots.step(without, given, extent)
        slots.stepped()
    return trajectory.latents.clone()


@pytest.fixture(scope="module")
def plain():
    return small_model(ODD)


def test_a_schedule_is_each_text_in_its_steps(plain):
    request = ask("a [red:blue:0.5] circle", sampler="heun")
    states = {text: plain.encode_prompt([text]) for text in ("", "a red circle", "a blue circle")}

    def contexts(step: int):
        return states[""], [(states["a red circle" if step <= 3 else "a blue circle"], 1.0)]

    with Engine(plain, rows=2) as engine:
        found = engine.submit(request).result(timeout=60).latents
    by_hand = sampled_by_hand(plain, request, contexts)
    assert (found - by_hand).abs().max() <= 1e-4 * by_hand.abs().max()


def test_parts_are_added_by_their_weights(plain):
    request = ask("a circle :0.8 AND a star :-0.3", "blur", sampler="dpmpp_2m")
    blur, circle, star = (plain.encode_prompt([one]) for one in ("blur", "a circle", " a star"))
    with Engine(plain, rows=4) as engine:
        found = engine.submit(request).result(timeout=60).latents
    by_hand = sampled_by_hand(plain, request, lambda step: (blur, [(circle, 0.8), (star, -0.3)]))
    assert (found - by_hand).abs().max() <= 1e-4 * by_hand.abs().max()


def test_a_long_prompt_is_attended_to_whole(plain):
    request = ask(LONG, sampler="ddim", syntax="plain")
    ids = plain.tokenizer.ids(LONG)
    framed = [plain.tokenizer.framed(ids[at : at + 75]) for at in range(0, len(ids), 75)]
    chunks = [plain.encode_tokens(torch.tensor([one])) for one in framed]
    assert len(chunks) > 1
    states = torch.cat(chunks, dim=1)
    with Engine(plain, rows=2) as engine:
        found = engine.submit(request).result(timeout=60).latents
    empty = plain.encode_prompt([""])
    by_hand = sampled_by_hand(plain, request, lambda step: (empty, [(states, 1.0)]))
    assert (found - by_hand).abs().max() <= 1e-4 * by_hand.abs().max()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_schedule_of_one_text_changes_nothing(plain, sampler: str):
    with Engine(plain, rows=2) as engine:
        once, again = rendered(
            engine,
            ask("a [red:red:3] circle", sampler=sampler),
            ask("a red circle", sampler=sampler, syntax="plain"),
        )
    assert torch.equal(once, again)


def test_a_prompt_that_changes_does_so_between_two_steps(plain):
    """The second evaluation of a step is told what the first was."""
    told: list[float] = []
    denoise = plain.denoise

    def watched(latents, timesteps, context):
        keys = context[0][0]
        told.append(float(keys[1].double().sum()))
        return denoise(latents, timesteps, context)

    request = ask("[a|b]", sampler="heun", steps=4)
    with pytest.MonkeyPatch.context() as patch, Engine(plain, rows=2) as engine:
        patch.setattr(plain, "denoise", watched)
        engine.submit(request).result(timeout=60)
    steps = [int(step) for step in table_of(request).steps]
    assert steps == [1, 1, 2, 2, 3, 3, 4]
    changes = [one != other for one, other in itertools.pairwise(told)]
    assert changes == [one != other for one, other in itertools.pairwise(steps)]


def test_longer_rows_are_given_to_the_model_by_themselves(plain, monkeypatch):
    seen = []
    denoise = plain.denoise

    def watched(latents, timesteps, context):
        seen.append(context[0])
        return denoise(latents, timesteps, context)

    monkeypatch.setattr(plain, "denoise", watched)
    with Engine(plain, rows=4) as engine:
        rendered(engine, ask("short"))
        assert not any(isinstance(one, LongContext) for one in seen)
        rendered(engine, ask(LONG, "short"))
    last = seen[-1]
    assert isinstance(last, LongContext)
    assert [(row.row, row.keys.shape[2]) for row in last.longer] == [(1, 2 * 77)]
    assert last.keys.shape[2] == 77


def test_what_the_model_cannot_read_fails_that_image_alone(plain):
    with Engine(plain, rows=4) as engine:
        bad = engine.submit(ask("a", clip_skip=9))
        long = engine.submit(ask("cat " * 1300))
        good = engine.submit(ask("a"))
        with pytest.raises(ValueError, match="clip_skip is 9"):
            bad.result(timeout=60)
        with pytest.raises(ValueError, match="chunks of 75 tokens; at most 16"):
            long.result(timeout=60)
        assert good.result(timeout=60).exact


def test_by_hand_is_what_the_engine_does_without_any_of_it(plain):
    request = ask("a red circle", syntax="plain", sampler="dpmpp_2m")
    states, empty = plain.encode_prompt(["a red circle"]), plain.encode_prompt([""])
    noise = draw_noise(generator_for(1), (4, 8, 8))[None]
    straight = sample_latents(
        plain, noise, states, empty, sampler="dpmpp_2m", steps=6, guidance=7.5
    )
    by_hand = sampled_by_hand(plain, request, lambda step: (empty, [(states, 1.0)]))
    assert (straight[0] - by_hand).abs().max() <= 1e-4 * by_hand.abs().max()
    assert dataclasses.replace(request).rows == 2
