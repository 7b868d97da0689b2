"""Perturbed-attention guidance, FreeU and projected guidance, in batches with images without."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from sd_core.engine.engine import Batch, Engine
from sd_core.engine.request import Request
from sd_core.execution import make_ready
from sd_core.sampling import guidance
from sd_core.sampling.guidance import Guide
from sd_core.sampling.samplers import rows
from sd_core.setting_texts import Projection
from sd_core.spec import Sampling
from tests.sd_core.engine.suspending import calm_and_resumed
from tests.sd_core.engine.test_loras import WAYS
from tests.sd_core.small import ODD, SMALL, numbers, small_model

FREEU = "1.5 1.6 0.9 0.2"


@pytest.fixture(scope="module", params=WAYS, ids=str)
def model(request):
    execution, dtype = request.param
    return make_ready(small_model(ODD).to(getattr(torch, dtype)), execution)


def ask(prompt: str, **settings) -> Request:
    values = {"width": 64, "height": 64, "steps": 6, "sampler": "ddim"} | settings
    return Request(prompt, Sampling(**values), "blurry")


MIXED = [
    ask("a red circle", seed=1),
    ask("a red circle", seed=2, pag_scale=3.0),
    ask("a star", seed=3, pag_scale=2.0, pag_layers="down.1 up.0.1", guidance=1.0),
    ask("a moon", seed=4, freeu=FREEU, sampler="euler_a"),
    ask("a moon", seed=5, freeu="1.1 1.2 0 0", guidance=1.0),
    ask("a ring", seed=6, apg="0 2 -0.5", steps=8),
    ask("a ring", seed=7, apg="0.3 0 0", pag_scale=1.0, guidance_rescale=0.5, sampler="heun"),
    ask("a cat AND a dog :0.5", seed=8, syntax="a1111", pag_scale=3.0, guidance_to=0.5),
    ask("a cat", seed=9, pag_scale=3.0, freeu=FREEU, guidance_from=0.3, guidance_to=0.7),
    ask("a sun", seed=10, pag_scale=3.0, guidance=1.0, guidance_from=0.4, steps=9),
    ask("a LAND :0.5", seed=11, syntax="a1111", guidance_to=0.5),
]


def rendered(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    futures = [engine.submit(request) for request in requests]
    return [numbers(future.result(timeout=600)) for future in futures]


def test_all_of_them_share_batches_and_never_notice_each_other(model):
    batches: list[Batch] = []
    with Engine(model, rows=9, on_batch=batches.append) as engine:
        alone = [rendered(engine, one)[0] for one in MIXED]
        batches.clear()
        together = rendered(engine, *MIXED)
        used = sum(batch.rows_used for batch in batches)
        backwards = rendered(engine, *MIXED[::-1])[::-1]
    for request, one, *others in zip(MIXED, alone, together, backwards, strict=True):
        assert all(torch.equal(one, other) for other in others), request
    weighted = [one for one in MIXED if one.sampling.syntax == "a1111"]
    single = sum(rows(one.sampling) for one in MIXED if one not in weighted)
    assert used == single + (3 * 5 + 3 * 3) + (6 * 2)  # of a cat and a dog, and of a land
    assert all(place.change is None for place in model.unet.places.values())


def test_rows_beyond_a_batch_take_a_part_of_their_own():
    """Three rows an image, where a batch has two: the third is evaluated without padding, unless
    its bits would be others.
    """
    exact = [ask("a red circle", seed=seed, pag_scale=3.0) for seed in range(3)]
    batches: list[Batch] = []
    with Engine(small_model(ODD), rows=2, on_batch=batches.append) as engine:
        images = [engine.submit(one).result(timeout=600) for one in exact]
        again = rendered(engine, *exact)
        batches.clear()
        for one in exact:
            engine.submit(dataclasses.replace(one, exact=False)).result(timeout=600)
    assert all(image.exact for image in images)
    assert all(map(torch.equal, map(numbers, images), again))
    assert {(batch.rows_used, batch.rows) for batch in batches} == {(3, 3)}


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_it_goes_on_where_it_was(number):
    calm, again = calm_and_resumed(small_model(ODD), MIXED[number], MIXED[::3], after=3)
    assert torch.equal(calm, again)


def large(**settings: Any) -> Request:
    return ask("a red circle", width=128, height=128, **settings)


@functools.cache
def in_float32(**settings: Any) -> torch.Tensor:
    with Engine(small_model(SMALL), rows=4) as engine:
        return rendered(engine, large(**settings))[0]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"pag_scale": 3.0, "pag_layers": "down.0 down.1 down.2 mid up.1 up.2 up.3"},
        {"freeu": "10 10 0 0"},
    ],
    ids=["pag", "freeu"],
)
def test_close_to_float32_in_every_way_of_running(way, settings):
    """Sizes that suit kernels of our own."""
    expected, without = in_float32(**settings), in_float32()
    execution, dtype = way
    model = make_ready(small_model(SMALL).to(getattr(torch, dtype)), execution)
    with Engine(model, rows=4) as engine:
        (own,) = rendered(engine, large(**settings))
    assert (own - expected).abs().mean() < 0.2 * (without - expected).abs().mean()


def test_a_step_that_fails_moves_no_momentum(monkeypatch):
    """The evaluation is made again, for each image alone."""
    requests = [ask("a ring", seed=seed, apg="0 2 -0.5", thresholding=0.9) for seed in (1, 2)]
    with Engine(small_model(ODD), rows=4) as engine:
        wanted = rendered(engine, *requests)
    calls = []

    def threshold(*arguments):
        calls.append(arguments)
        if len(calls) == 6:  # the second image's, at its third step
            raise torch.OutOfMemoryError("no room")
        return the_real_one(*arguments)

    the_real_one = guidance.threshold
    monkeypatch.setattr(guidance, "threshold", threshold)
    with Engine(small_model(ODD), rows=4) as engine:
        found = rendered(engine, *requests)
    assert len(calls) > 12
    assert all(map(torch.equal, found, wanted))


def test_projected_guidance_of_a_model_that_predicts_the_velocity():
    """With nothing left out it is plain guidance, of whatever the model predicts."""
    spec = dataclasses.replace(ODD, prediction="v")
    projected, plain = ask("a ring", seed=1, apg="1 1000 0"), ask("a ring", seed=1)
    with Engine(small_model(spec), rows=4) as engine:
        own, other = (engine.submit(one).result(timeout=60).latents for one in (projected, plain))
    assert (own - other).norm() / other.norm() < 1e-4


def test_an_attention_that_the_model_lacks_fails_its_image_alone():
    with Engine(small_model(ODD), rows=4) as engine:
        bad = engine.submit(ask("a ring", pag_scale=3.0, pag_layers="up.3"))
        good = engine.submit(ask("a ring"))
        with pytest.raises(
            ValueError, match=r"pag_layers up\.3 is none of this model's: down\.1\.0"
        ):
            bad.result(timeout=60)
        assert torch.isfinite(good.result(timeout=60).latents).all()


@pytest.mark.parametrize(
    "by", [Projection(0.0, 2.5, -0.5), Projection(0.4, 0.0, 0.3), Projection(1.0, 10.0, 0.0)]
)
def test_projection_is_that_of_diffusers(by):
    clean, other = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs, before = MomentumBuffer(by.momentum), torch.zeros(4, 8, 8)
    guide = Guide(0.0, 0.0, by, 7.5, (0.0, 1.0))  # the outputs are clean latents
    for one, two in zip(clean, other, strict=True):
        projected = guide.project(one, two, one, before)
        assert projected is not None
        own, before = projected
        wanted = normalized_guidance(
            *(one[None], two[None], 6.5, theirs, by.eta, by.norm_threshold),
            use_original_formulation=True,
        )[0]
        assert (own - wanted).abs().max() < 1e-5


def test_a_projection_that_leaves_all_is_plain_guidance():
    """Momentum 0, no limit, and all that points along the clean latent."""
    given, without, x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    guide = Guide(0.0, 0.0, Projection(1.0, 0.0, 0.0), 7.5, (1.2, -0.8))
    projected = guide.project(given, without, x, torch.zeros_like(x))
    assert projected is not None
    own, _ = projected
    assert (own - (without + 7.5 * (given - without))).abs().max() < 1e-4
    assert Sampling(apg="1 0 0") == Sampling()
    changed = dataclasses.replace(Sampling(), apg="1.0, 0, 0.25")
    assert changed.apg == "1 0 0.25"
