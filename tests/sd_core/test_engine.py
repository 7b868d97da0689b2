"""The engine: images join and leave a shared batch and never notice each other."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from sd_core.device import resolve_dtype
from sd_core.engine import Engine, EngineClosedError, Request, batch_rows
from sd_core.noise import draw_noise, generator_for
from sd_core.sampling import sample_latents
from sd_core.spec import Sampling
from tests.sd_core.small import ODD, small_model

# Where the CPU only emulates bfloat16, these tests take minutes in it.
NATIVE = resolve_dtype("auto", torch.device("cpu")) is torch.bfloat16
BFLOAT16 = pytest.param("bfloat16", marks=[] if NATIVE else [pytest.mark.slow])


@pytest.fixture(scope="module", params=["float32", BFLOAT16])
def model(request):
    return small_model(ODD).to(getattr(torch, request.param))


@pytest.fixture
def engine(model):
    with Engine(model, rows=8) as engine:
        yield engine


def request(prompt: str = "a red circle", *, init: bool = False, mask: bool = False, **settings):
    sampling = Sampling(**({"width": 64, "height": 64, "steps": 6, "seed": 1} | settings))
    shape = (sampling.height, sampling.width)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8) if init else None
    painted = np.zeros(shape, dtype=np.uint8)
    painted[: shape[0] // 2] = 255
    return Request(prompt, sampling, "", picture, painted if mask else None)


def render(engine: Engine, *requests: Request) -> list[torch.Tensor]:
    futures = [engine.submit(r) for r in requests]
    return [future.result(timeout=600).pixels for future in futures]


KINDS = {
    "plms": {},
    "seed 0": {"seed": 0},
    "one row": {"guidance": 1.0},
    "guidance 0": {"guidance": 0.0},
    "fresh noise": {"sampler": "euler_a", "steps": 5},
    "other shape": {"width": 96},
    "img2img": {"init": True, "sampler": "heun", "strength": 0.6},
    "inpainting": {"init": True, "mask": True, "sampler": "dpmpp_2m"},
    "unchanged": {"init": True, "strength": 0.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_image_does_not_depend_on_its_neighbours(engine, kind):
    """Alone, first, last and between others that come and go: the same bits."""
    wanted = request(**KINDS[kind])
    crowd = [
        request("a green star", seed=5, steps=3),
        request("a blue ring", seed=6, guidance=1.0, sampler="ddim"),
        request("", seed=7, steps=9, sampler="lms"),
        request("a cross", seed=8, init=True, strength=0.5, sampler="ddpm"),
    ]
    (alone,) = render(engine, wanted)
    for place in range(len(crowd) + 1):
        images = render(engine, *crowd[:place], wanted, *crowd[place:])
        assert torch.equal(alone, images[place]), f"differs at place {place}"


def test_joining_a_running_batch_changes_nothing(engine):
    wanted = request(seed=3)
    (alone,) = render(engine, wanted)
    joined = threading.Event()
    first = engine.submit(
        request("a star", steps=40), on_step=lambda done, _all: joined.set() if done == 5 else None
    )
    assert joined.wait(60)
    (late,) = render(engine, wanted)
    assert torch.equal(alone, late)
    assert not first.cancelled()
    first.result(timeout=60)


def test_engine_gives_what_sampling_by_hand_gives(model):
    """Text, noise, sampling and decoding in one straight line, rows padded alike."""
    with Engine(model, rows=2) as engine:
        rendered = engine.submit(request(seed=11, steps=5)).result(timeout=60)
    x_T = draw_noise(generator_for(11), (4, 8, 8))[None]
    contexts = [model.encode_prompt([prompt]) for prompt in ("a red circle", "")]
    latents = sample_latents(model, x_T, *contexts, steps=5)
    assert torch.equal(rendered.pixels, model.decode(latents)[0])
    assert rendered.evaluations == 6


def test_strength_zero_only_goes_through_the_autoencoder(engine, model):
    wanted = request(init=True, strength=0.0, seed=4)
    (pixels,) = render(engine, wanted)
    image = torch.from_numpy(wanted.init_image).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = model.encode_image(image, [generator_for(4)])
    assert torch.equal(pixels, model.decode(latents)[0])


def test_inpainting_keeps_what_is_not_masked_and_paints_the_rest(engine):
    wanted = request(init=True, mask=True)
    (pixels,) = render(engine, wanted)
    start = torch.from_numpy(wanted.init_image).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(pixels[:, 32:], start[:, 32:])
    assert (pixels[:, :32] - start[:, :32]).abs().mean() > 0.1


def test_steps_are_reported_one_by_one(engine):
    seen: list[tuple[int, int]] = []
    engine.submit(request(steps=4), on_step=lambda *step: seen.append(step)).result(timeout=60)
    assert seen == [(n, 5) for n in range(1, 6)]


def test_cancel_takes_effect_between_steps(engine):
    reached = threading.Event()
    steps = []

    def on_step(done: int, _all: int) -> None:
        steps.append(done)
        if done == 3:
            assert long.cancel()
            reached.set()

    ready = threading.Event()
    blocker = engine.submit(request(), on_step=lambda *_: ready.wait(60))
    long = engine.submit(request(steps=500), on_step=on_step)
    ready.set()
    assert reached.wait(60)
    blocker.result(timeout=60)
    with pytest.raises(CancelledError):
        long.result(timeout=60)
    render(engine, request())  # the engine goes on
    assert steps == [1, 2, 3]


def test_a_failing_image_fails_alone(engine):
    def explode(done: int, _all: int) -> None:
        raise RuntimeError("observer broke")

    bad = engine.submit(request(steps=20), on_step=explode)
    (good,) = render(engine, request())
    with pytest.raises(RuntimeError, match="observer broke"):
        bad.result(timeout=60)
    assert torch.equal(good, render(engine, request())[0])


def test_latents_that_blow_up_are_an_error_not_a_black_image(engine):
    future = engine.submit(request(guidance=1e38))
    with pytest.raises(ArithmeticError, match="no longer finite"):
        future.result(timeout=60)


def test_close_finishes_what_was_submitted(model):
    engine = Engine(model, rows=2)
    futures = [engine.submit(request(seed=n, steps=2)) for n in range(4)]
    engine.close()
    assert all(future.done() and not future.cancelled() for future in futures)
    with pytest.raises(EngineClosedError):
        engine.submit(request())
    engine.close()


def test_close_with_cancel_drops_what_is_left(model):
    engine = Engine(model, rows=2)
    started = threading.Event()
    futures = [
        engine.submit(request(steps=500), on_step=lambda *_: started.set()) for _ in range(3)
    ]
    assert started.wait(60)
    engine.close(cancel=True)
    assert all(future.cancelled() for future in futures)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Engine(None, rows=1), "at least 2"),
        (
            lambda: Request("x", Sampling(width=64, height=64), init_image=np.zeros((8, 8, 3))),
            r"not \(64, 64, 3\)",
        ),
        (
            lambda: Request("x", Sampling(width=64, height=64), mask=np.zeros((64, 64))),
            "goes with an init image",
        ),
    ],
)
def test_impossible_requests_name_what_is_wrong(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def test_row_counts_are_even_and_bounded():
    assert batch_rows("cpu", (64, 64)) == 2
    assert batch_rows("cpu", (16, 16)) == 16
    assert batch_rows("cpu", (128, 128)) == 2
