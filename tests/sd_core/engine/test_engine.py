"""The engine: images join and leave a shared batch and never notice each other."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import threading
import time
import weakref
from concurrent.futures import CancelledError

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from PIL import Image

from sd_core.device import resolve_dtype
from sd_core.engine import model_runner
from sd_core.engine.batch_rows import CHECKS, DECODED_TOGETHER, RECOVER_AFTER, Rows
from sd_core.engine.engine import Batch, Engine, EngineClosedError
from sd_core.engine.request import Request
from sd_core.engine.sample import sample_latents
from sd_core.execution import make_ready
from sd_core.pixels import to_uint8
from sd_core.sampler_table import SAMPLERS
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.spec import Sampling
from sd_core.transfer import CopyOut
from tests.sd_core.small import LEVEL, ODD, numbers, small_model

# Where the CPU only emulates bfloat16, these tests take minutes in it.
NATIVE = resolve_dtype("auto", torch.device("cpu")) is torch.bfloat16
BFLOAT16 = pytest.param(("auto", "bfloat16"), marks=[] if NATIVE else [pytest.mark.slow])


@pytest.fixture(scope="module", params=[("packed", "float32"), ("eager", "float32"), BFLOAT16])
def model(request):
    execution, dtype = request.param
    return make_ready(small_model(ODD).to(getattr(torch, dtype)), execution)


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
    return [numbers(future.result(timeout=600)) for future in futures]


def assert_alike(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> None:
    """Numbers of one image from batches of other row counts, whose kernels round differently."""
    difference = (one - other).abs()
    if dtype is torch.float32:
        assert difference.max() < 1e-3 + LEVEL
    else:  # how far apart single pixels are is luck
        assert difference.mean() < 0.01


KINDS = {
    "plms": {},
    "seed 0": {"seed": 0},
    "one row": {"guidance": 1.0},
    "guidance 0": {"guidance": 0.0},
    "fresh noise": {"sampler": "euler_a", "steps": 5},
    "noise of two rows": {"sampler": "dpmpp_sde", "steps": 4, "schedule": "karras"},
    "corrected": {"sampler": "unipc", "steps": 6, "schedule": "beta"},
    "noise of GPUs": {"sampler": "euler_a", "steps": 5, "noise": "gpu"},
    "variation": {"variation_seed": 5, "variation_strength": 0.4, "eta_noise_seed_delta": 31337},
    "strength rule": {"init": True, "sampler": "lcm", "strength_rule": "a1111", "noise": "gpu"},
    "guidance for a while": {"guidance_from": 0.3, "guidance_to": 0.7, "guidance": 5.0},
    "guidance at last": {"guidance_from": 0.5, "init": True, "sampler": "heun", "strength": 0.7},
    "cut off": {"thresholding": 0.9, "guidance_rescale": 0.5, "guidance": 9.0},
    "guidance rescaled": {"guidance_rescale": 0.7, "guidance_to": 0.5, "guidance": 9.0},
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
    for place in (0, len(crowd) // 2, len(crowd)):
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
    assert torch.equal(rendered.latents, latents[0])
    assert np.array_equal(rendered.pixels, to_uint8(model.decode(latents))[0])
    assert rendered.evaluations == 6


def test_strength_zero_only_goes_through_the_autoencoder(engine, model):
    wanted = request(init=True, strength=0.0, seed=4)
    rendered = engine.submit(wanted).result(timeout=60)
    image = torch.from_numpy(wanted.init_image).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = model.encode_image(image, [generator_for(4)])
    assert np.array_equal(rendered.pixels, to_uint8(model.decode(latents))[0])


def test_inpainting_keeps_what_is_not_masked_and_paints_the_rest(engine):
    wanted = request(init=True, mask=True)
    pixels = engine.submit(wanted).result(timeout=60).pixels
    assert np.array_equal(pixels[32:], wanted.init_image[32:])
    assert np.abs(pixels[:32] - wanted.init_image[:32].astype(float)).mean() > 12


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


def misshapen(real):
    """Latents of another size for the image with seed 9."""

    def noise_of(sampling, **more):
        noise, generator = real(sampling, **more)
        return noise.new_zeros(4, 8, 9) if sampling.seed == 9 else noise, generator

    return noise_of


FLAWS = {
    "latents": ("noise_of", misshapen, {}),
    "mask": ("_latent_mask", lambda real: lambda mask: real(mask)[:, 1:], {"mask": True}),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_cannot_be_joined_with_others_fails_alone(model, monkeypatch, flaw):
    """The others keep their bits, fresh noise included, and no step of theirs is taken twice."""
    name, spoil, settings = FLAWS[flaw]
    others = [request(seed=n, sampler="euler_a", steps=7) for n in range(2)]
    steps: list[tuple[int, int]] = []
    submitted = threading.Event()

    def on_step(done: int, of: int) -> None:
        steps.append((done, of))
        assert submitted.wait(60)

    with Engine(model, rows=8) as engine:
        calm = render(engine, *others)
        monkeypatch.setattr(model_runner, name, spoil(getattr(model_runner, name)))
        futures = [engine.submit(other, on_step=on_step) for other in others]
        bad = engine.submit(request(seed=9, init="mask" in settings, **settings))
        submitted.set()
        with pytest.raises((RuntimeError, ValueError)):
            bad.result(timeout=60)
        rendered = [future.result(timeout=60) for future in futures]
    assert all(torch.equal(numbers(r), c) for r, c in zip(rendered, calm, strict=True))
    assert all(r.exact for r in rendered)
    assert sorted(steps) == sorted([(n, 7) for n in range(1, 8)] * 2)


class Picky:
    """Stands for a model that fails whenever one image is among others, or alone."""

    def __init__(self, model) -> None:
        self.marked: torch.Tensor | None = None
        self._denoise = model.denoise

    def denoise(self, latents, timesteps, context):
        if any(torch.equal(row, self.marked) for row in latents):
            raise RuntimeError("this one I do not draw")
        return self._denoise(latents, timesteps, context)


def test_an_evaluation_that_fails_is_the_failure_of_one_image(model, monkeypatch):
    picky = Picky(model)
    picky.marked = draw_noise(generator_for(9), (4, 8, 8))
    with Engine(model, rows=8) as engine:
        others = [request(seed=n) for n in range(2)]
        calm = render(engine, *others)
        monkeypatch.setattr(model, "denoise", picky.denoise)
        good, bad, late = (engine.submit(r) for r in (others[0], request(seed=9), others[1]))
        with pytest.raises(RuntimeError, match="this one"):
            bad.result(timeout=60)
        rendered = [numbers(future.result(timeout=60)) for future in (good, late)]
    assert all(torch.equal(r, c) for r, c in zip(rendered, calm, strict=True))


def test_a_decode_that_fails_is_the_failure_of_one_image(model, monkeypatch):
    """Where several are decoded together, as on an accelerator."""
    monkeypatch.setitem(DECODED_TOGETHER, "cpu", 4)
    decode = model.decode
    wanted = [request(seed=n) for n in range(3)]
    with Engine(model, rows=8) as engine:
        calm = render(engine, *wanted)
        bad = engine.submit(request(seed=9)).result(timeout=60).latents
        sizes: list[int] = []

        def picky(latents, vae):
            sizes.append(len(latents))
            if any(torch.equal(image, bad) for image in latents):
                raise RuntimeError("this one I do not decode")
            return decode(latents, vae)

        monkeypatch.setattr(model, "decode", picky)
        futures = [engine.submit(r) for r in (wanted[0], request(seed=9), *wanted[1:])]
        with pytest.raises(RuntimeError, match="this one"):
            futures.pop(1).result(timeout=60)
        rendered = [numbers(future.result(timeout=60)) for future in futures]
    assert all(torch.equal(r, c) for r, c in zip(rendered, calm, strict=True))


def test_a_picture_that_is_not_finite_is_an_error_of_that_image(model, monkeypatch):
    monkeypatch.setitem(DECODED_TOGETHER, "cpu", 2)
    decode = model.decode

    def spoilt(latents, vae):
        images = decode(latents, vae)
        images[0, 0, 0, 0] = float("nan")
        return images

    with Engine(model, rows=8) as engine:
        (calm,) = render(engine, request(seed=1))
        monkeypatch.setattr(model, "decode", spoilt)
        bad, good = (engine.submit(request(seed=n)) for n in range(2))
        with pytest.raises(ArithmeticError, match="decoded image is not finite"):
            bad.result(timeout=60)
        assert torch.equal(numbers(good.result(timeout=60)), calm)


def test_nothing_is_compiled_ahead_where_nothing_is_compiled(model):
    batches: list[Batch] = []
    with Engine(model, rows=8, on_batch=batches.append) as engine:
        engine.compile_ahead()
        assert not engine.compiling
    assert batches == []


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


def test_a_finished_image_is_not_kept_alive(engine):
    """Its init image and latents would be, until other images come."""
    wanted = request(init=True)
    watched = weakref.ref(wanted)
    render(engine, wanted)
    del wanted
    deadline = time.monotonic() + 60
    while watched() is not None:  # the engine's thread may still be about to wait
        gc.collect()
        assert time.monotonic() < deadline, gc.get_referrers(watched())


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


SAMPLING = Sampling(width=64, height=64)
PICTURE = np.zeros((64, 64, 3), np.uint8)

WRONG_TYPES = {
    "prompt": (lambda: Request(7, SAMPLING), "prompt 7 is no text; expected a str"),
    "no prompt": (lambda: Request(None, SAMPLING), "prompt None is no text"),
    "bytes": (lambda: Request(b"a cat", SAMPLING), "prompt b'a cat' is no text"),
    "half a character": (lambda: Request("a \ud800", SAMPLING), r"prompt holds '\\ud800'"),
    "negative": (lambda: Request("x", SAMPLING, ["ugly"]), r"negative \['ugly'\] is no text"),
    "sampling": (lambda: Request("x", {"steps": 5}), "expected an sd_core.Sampling"),
    "order": (lambda: Request(SAMPLING, "x"), "prompt Sampling.* is no text"),
    "list": (
        lambda: Request("x", SAMPLING, init_image=PICTURE.tolist()),
        r"init image is a list; expected a numpy array, such as np\.asarray\(image",
    ),
    "PIL": (
        lambda: Request("x", SAMPLING, init_image=Image.fromarray(PICTURE)),
        r"init image is a Image; expected a numpy array, .*\('RGB'\)",
    ),
    "floats": (
        lambda: Request("x", SAMPLING, init_image=PICTURE / 255),
        "init image is of float64; expected uint8 of 0 to 255",
    ),
    "mask": (
        lambda: Request("x", SAMPLING, init_image=PICTURE, mask=PICTURE[..., 0] > 0),
        r"mask is of bool; expected uint8 .*\('L'\)",
    ),
    "priority": (lambda: Request("x", SAMPLING, priority="high"), "priority 'high' is no whole"),
    "exact": (lambda: Request("x", SAMPLING, exact="yes"), "exact 'yes' is neither True nor False"),
    "model": (lambda: Engine("demo"), "model is 'demo'; expected a LatentDiffusion"),
    "rows": (lambda: Engine(None, rows="4"), "rows '4' is no whole number"),
}


@pytest.mark.parametrize("wrong", WRONG_TYPES)
def test_a_wrong_type_names_the_field_the_value_and_what_is_expected(wrong):
    build, said = WRONG_TYPES[wrong]
    with pytest.raises(ValueError, match=said):
        build()


def test_a_wrong_type_is_no_request(model, engine):
    for wrong in ("a red circle", None, SAMPLING):
        with pytest.raises(ValueError, match=r"request is .*; expected an sd_core\.Request"):
            engine.submit(wrong)
    with pytest.raises(ValueError, match="on_step 'print' cannot be called"):
        engine.submit(request(), on_step="print")
    with pytest.raises(ValueError, match="state is a str; expected bytes"):
        engine.submit(request(), state="half-way")
    with pytest.raises(ValueError, match="on_batch 1 cannot be called"):
        Engine(model, on_batch=1)


def test_numbers_of_numpy_are_taken_as_pythons_own(engine):
    ours = request(seed=7, steps=3, guidance=2.0, init=True, strength=0.5)
    theirs = request(
        seed=np.uint64(7),
        steps=np.int64(3),
        guidance=np.float32(2),
        init=True,
        strength=np.float64(0.5),
    )
    theirs = dataclasses.replace(theirs, priority=np.int8(0))
    assert theirs.digest() == ours.digest()
    assert [type(value) for value in dataclasses.astuple(theirs.sampling)] == [
        type(value) for value in dataclasses.astuple(ours.sampling)
    ]
    one, other = render(engine, ours, theirs)
    assert torch.equal(one, other)


class Late(CopyOut):
    """A copy whose device tells only now that something went wrong before."""

    def result(self):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_an_error_that_the_device_tells_late_reaches_its_image(model, monkeypatch):
    with Engine(model, rows=2) as engine:
        with monkeypatch.context() as patch:
            patch.setattr("sd_core.engine.model_runner.CopyOut", Late)
            with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
                engine.submit(request()).result(timeout=60)
        assert engine.alive
        render(engine, request())


class TestPriority:
    def test_urgent_work_waits_for_one_step(self, model):
        """It arrives during a step of a full batch, and has the next one."""
        with Engine(model, rows=2) as engine:
            order: list[str] = []
            arrived = threading.Event()

            def slow(done: int, _all: int) -> None:
                order.append("slow")
                if done == 3:
                    urgent.append(engine.submit(hurry, on_step=lambda *_: order.append("urgent")))
                    arrived.set()

            hurry = dataclasses.replace(request(seed=2, steps=3, sampler="ddim"), priority=9)
            urgent: list = []
            first = engine.submit(request(steps=10, sampler="ddim"), on_step=slow)
            assert arrived.wait(60)
            urgent[0].result(timeout=60)
            first.result(timeout=60)
        assert order == ["slow"] * 3 + ["urgent"] * 3 + ["slow"] * 7

    def test_being_displaced_changes_nothing(self, model):
        with Engine(model, rows=2) as engine:
            (alone,) = render(engine, request(sampler="euler_a"))
            reached = threading.Event()

            def on_step(done: int, _all: int) -> None:
                if done == 2:
                    reached.set()

            displaced = engine.submit(request(sampler="euler_a"), on_step=on_step)
            assert reached.wait(60)
            render(engine, dataclasses.replace(request(seed=5), priority=1))
            assert torch.equal(numbers(displaced.result(timeout=60)), alone)


@pytest.fixture
def unproved(monkeypatch):
    """No row count but the fixed one ever serves exact images."""
    monkeypatch.setattr(Rows, "unchecked", lambda self, shape, used: None)


class TestProvedRows:
    """Exact images at smaller row counts, where these give the bits of the fixed one."""

    def test_the_bytes_are_those_of_the_fixed_count(self, model, monkeypatch):
        batches: list[Batch] = []
        wanted = [request(**{"seed": n, **kind}) for n, kind in enumerate(KINDS.values())]
        with Engine(model, rows=8, on_batch=batches.append) as engine:
            found = [engine.submit(one).result(timeout=60) for one in wanted]
        assert all(one.exact for one in found)
        monkeypatch.setattr(Rows, "unchecked", lambda self, shape, used: None)
        with Engine(model, rows=8) as engine:
            fixed = render(engine, *wanted)
        assert all(torch.equal(numbers(one), two) for one, two in zip(found, fixed, strict=True))
        assert {batch.rows for batch in batches[:2]} == {8}

    def test_a_count_with_other_bits_does_not_serve(self, model, monkeypatch):
        """Stands for kernels that round by the row count. Fast images take it all the same."""
        denoise = model.denoise

        def rounding(latents, timesteps, context):
            return denoise(latents, timesteps, context) * (1 + 1e-6 * len(latents))

        monkeypatch.setattr(model, "denoise", rounding)
        batches: list[Batch] = []
        with Engine(model, rows=8, on_batch=batches.append) as engine:
            (alone,) = render(engine, request(steps=9))
            together = render(engine, request(steps=9), *(request(seed=n) for n in range(2, 5)))
            assert {batch.rows for batch in batches} == {8}
            render(engine, dataclasses.replace(request(), exact=False))
        assert torch.equal(alone, together[0])
        assert batches[-1].rows == 2

    def test_where_the_bits_are_the_same_few_rows_serve(self, model, monkeypatch):
        """Stands for kernels that do not mind the row count: rows one by one."""
        denoise = model.denoise

        def one_by_one(latents, timesteps, context):
            rows = [
                denoise(
                    latents[n : n + 1],
                    timesteps[n : n + 1],
                    [(k[n : n + 1], v[n : n + 1]) for k, v in context],
                )
                for n in range(len(latents))
            ]
            return torch.cat(rows)

        monkeypatch.setattr(model, "denoise", one_by_one)
        batches: list[Batch] = []
        with Engine(model, rows=8, on_batch=batches.append) as engine:
            rendered = engine.submit(request(steps=9)).result(timeout=60)
        assert rendered.exact
        assert [batch.rows for batch in batches] == [8] * CHECKS + [2] * (len(batches) - CHECKS)


@pytest.mark.usefixtures("unproved")
class TestFast:
    def test_batches_have_no_more_rows_than_they_need(self, model):
        batches: list[Batch] = []
        with Engine(model, rows=8, on_batch=batches.append) as engine:
            wanted = dataclasses.replace(request(), exact=False)
            rendered = engine.submit(wanted).result(timeout=60)
            exact = engine.submit(request()).result(timeout=60)
        assert {(b.rows_used, b.rows) for b in batches[:7]} == {(2, 2)}
        assert {(b.rows_used, b.rows) for b in batches[7:]} == {(2, 8)}
        assert (rendered.exact, exact.exact) == (False, True)
        assert_alike(numbers(rendered), numbers(exact), model.dtype)

    def test_beside_exact_ones_they_are_padded_too(self, model):
        batches: list[Batch] = []
        together = threading.Event()
        with Engine(model, rows=8, on_batch=batches.append) as engine:
            first = engine.submit(request(steps=30), on_step=lambda *_: together.set())
            assert together.wait(60)
            render(engine, dataclasses.replace(request(seed=2), exact=False))
            first.result(timeout=60)
        assert {b.rows for b in batches} == {8}


class Short:
    """Stands for the model's memory: an evaluation of more rows than `fits` runs out of it."""

    def __init__(self, model, fits: int) -> None:
        self.fits = fits
        self.calls: list[int] = []
        self._denoise = model.denoise

    def denoise(self, latents, timesteps, context):
        self.calls.append(len(latents))
        if len(latents) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self._denoise(latents, timesteps, context)


class TestMemory:
    def test_fewer_rows_and_nothing_lost(self, model, monkeypatch):
        with Engine(model, rows=8) as engine:
            wanted = [request(seed=n) for n in range(4)]
            calm = render(engine, *wanted)
            short = Short(model, fits=2)
            monkeypatch.setattr(model, "denoise", short.denoise)
            futures = [engine.submit(r) for r in wanted]
            rendered = [future.result(timeout=60) for future in futures]
        assert short.calls[:3] == [8, 4, 2]
        assert set(short.calls[3:]) == {2}
        for image, usual in zip(rendered, calm, strict=True):
            assert_alike(numbers(image), usual, model.dtype)
            assert not image.exact  # other row counts, so perhaps other bits

    def test_every_part_must_give_the_bits_of_the_fixed_count(self, model, monkeypatch):
        """A batch of six in parts of four and two, where two would be right and four are not."""
        short = Short(model, fits=4)
        monkeypatch.setattr(model, "denoise", short.denoise)
        right: set[int] = set()
        limits: list[int] = []

        def ran_out(rows, shape, size):
            limits.append(size - 2)
            return True

        monkeypatch.setattr(Rows, "padded", lambda rows, shape, used, exact: 6)
        monkeypatch.setattr(Rows, "ran_out", ran_out)
        monkeypatch.setattr(Rows, "limit", lambda rows, shape, size: min(size, *limits, 6))
        monkeypatch.setattr(Rows, "gives_exact", lambda rows, shape, size: size in right)
        for proved, exact in (({6, 2}, False), ({6, 4, 2}, True)):
            right |= proved
            limits.clear()
            short.calls.clear()
            with Engine(model, rows=8) as engine:
                rendered = engine.submit(request(sampler="ddim", steps=2)).result(timeout=60)
            assert short.calls == [6, 4, 2, 4, 2]
            assert rendered.exact is exact

    def test_the_row_count_recovers(self, model, monkeypatch, unproved):
        short = Short(model, fits=4)
        monkeypatch.setattr(model, "denoise", short.denoise)
        batches: list[Batch] = []

        def on_batch(batch: Batch) -> None:
            batches.append(batch)
            short.fits = 8

        with Engine(model, rows=8, on_batch=on_batch) as engine:
            engine.submit(request(steps=RECOVER_AFTER + 5, sampler="ddim")).result(timeout=60)
            again = engine.submit(request()).result(timeout=60)
        assert short.calls[-1] == 8
        assert again.exact

    def test_what_fits_in_no_way_fails_alone(self, model, monkeypatch):
        short = Short(model, fits=0)
        with Engine(model, rows=2) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(model, "denoise", short.denoise)
                with pytest.raises(torch.OutOfMemoryError):
                    engine.submit(request()).result(timeout=60)
            assert short.calls == [2, 1]
            render(engine, request())  # the engine goes on

    def test_an_image_that_the_device_cannot_hold_is_refused(self, model, monkeypatch):
        monkeypatch.setattr("sd_core.engine.engine.own_memory", lambda device: 80 * 2**20)
        with Engine(model) as engine:
            with pytest.raises(MemoryError, match="2048x2048 pixels needs about"):
                engine.submit(request(width=2048, height=2048)).result(timeout=60)
            assert engine.rows_of(request().sampling) >= 2
            render(engine, request())


@st.composite
def arrivals(draw) -> list[tuple[int, Request]]:
    """(after which evaluation of the first image it arrives, request), at most eight."""
    settings = st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**64 - 1),
            "steps": st.integers(1, 9),
            "sampler": st.sampled_from(SAMPLERS),
            "guidance": st.sampled_from((1.0, 0.0, 5.0)),
            "width": st.sampled_from((64, 72)),
            "init": st.booleans(),
        }
    )
    found = []
    for values in draw(st.lists(settings, min_size=1, max_size=8)):
        made = request(draw(st.sampled_from(("a red circle", "a star", ""))), **values)
        exact = draw(st.booleans())
        priority = draw(st.integers(0, 2))
        when = draw(st.integers(1, 12))
        found.append((when, dataclasses.replace(made, exact=exact, priority=priority)))
    return found


WATCHED = request("a blue ring", seed=9, sampler="euler_a", steps=12)


@pytest.fixture(scope="module")
def watched_digest(model):
    with Engine(model, rows=6) as engine:
        return digest(engine.submit(WATCHED).result(timeout=60))


def digest(rendered) -> str:
    return hashlib.sha256(numbers(rendered).numpy().tobytes()).hexdigest()


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(crowd=arrivals())
def test_no_arrivals_whatever_change_the_bytes_of_an_exact_image(model, watched_digest, crowd):
    futures = []
    with Engine(model, rows=6) as engine:

        def on_step(done: int, _all: int) -> None:
            futures.extend(engine.submit(r) for when, r in crowd if when == done)

        watched = engine.submit(WATCHED, on_step=on_step)
        assert digest(watched.result(timeout=60)) == watched_digest
        for future in futures:
            future.result(timeout=60)
