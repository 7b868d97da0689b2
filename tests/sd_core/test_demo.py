"""The demo model draws what it is asked for, also combinations that training never showed."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from sd_core import load_model, make_ready, to_pil
from sd_core.demo.judge import judge
from sd_core.demo.scenes import (
    COLOURS,
    SHAPES,
    Item,
    Scene,
    draw,
    held_out,
    held_out_triples,
    random_scene,
)
from sd_core.engine.engine import Engine
from sd_core.engine.request import Request
from sd_core.spec import Sampling

SIDE = 128


@pytest.fixture(scope="module")
def model():
    return make_ready(load_model("demo", device="cpu"))


@pytest.fixture(scope="module")
def engine(model):
    with Engine(model) as engine:
        yield engine


def to_tensor(images: list[Image.Image]) -> torch.Tensor:
    """RGB images to (B, 3, H, W) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def render(engine: Engine, prompts: list[str], **settings) -> list[Image.Image]:
    defaults = {"width": SIDE, "height": SIDE, "steps": 50, "guidance": 2.0}
    init, negative = settings.pop("init_image", None), settings.pop("negative", "")
    futures = [
        engine.submit(Request(p, Sampling(**(defaults | {"seed": n} | settings)), negative, init))
        for n, p in enumerate(prompts)
    ]
    return [to_pil(future.result().pixels) for future in futures]


def test_the_judge_reads_drawn_scenes():
    rng = random.Random(0)
    scenes = [s for s in (random_scene(rng) for _ in range(400)) if s.relation is None]
    for scene in scenes:
        seen, item = judge(draw(scene)), scene.items[0]
        assert (seen.background, seen.colour, seen.shape) == (
            scene.background,
            item.colour,
            item.shape,
        )


def test_training_never_shows_what_is_held_out_but_every_pair_of_it():
    triples = held_out_triples()
    assert len(triples) >= 30
    rng = random.Random(1)
    shown = {
        (i.shape, i.colour, s.background)
        for s in (random_scene(rng) for _ in range(20_000))
        for i in s.items
    }
    assert shown.isdisjoint(triples)
    pairs = {(shape, colour) for shape, colour, _ in shown}
    assert pairs == set(product(SHAPES, COLOURS))
    assert not held_out("circle", "red", "blue")


@pytest.mark.slow
def test_training_makes_a_model_from_nothing(tmp_path):
    """All stages of the command in the README, a few steps each; the result loads."""
    path = tmp_path / "trained.safetensors"
    steps = [f"--{stage}-steps=2" for stage in ("vae", "text", "unet")]
    command = [sys.executable, "-m", "sd_core.demo.train", f"--work={tmp_path}", f"--out={path}"]
    subprocess.run([*command, *steps, "--scenes=64"], check=True)
    with Engine(load_model(str(path), device="cpu")) as engine:
        (image,) = render(engine, ["a red circle on a blue background"], steps=2)
    assert image.size == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("every", "times"), [(4, 1), pytest.param(1, 2, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_held_out_combinations_are_drawn_as_asked(engine, every, times):
    """At least 95 % of single-shape images: background, colour and shape all right."""
    triples = held_out_triples()[::every] * times
    prompts = [
        f"{article(f'{colour} {shape}')} on {article(f'{background} background')}"
        for shape, colour, background in triples
    ]
    images = render(engine, prompts)
    right = 0
    for (shape, colour, background), image in zip(triples, images, strict=True):
        seen = judge(image)
        right += (seen.shape, seen.colour, seen.background) == (shape, colour, background)
    assert right >= 0.95 * len(triples), f"{right} of {len(triples)}"


def test_four_steps_of_one_row_draw_what_is_asked(engine):
    """Settings of `jobs/examples/few-steps.yaml`."""
    asked = [(s, c, b) for s in SHAPES for c, b in (("red", "blue"), ("white", "black"))]
    prompts = [
        f"a large {colour} {shape} on a {ground} background" for shape, colour, ground in asked
    ]
    images = render(engine, prompts, sampler="lcm", steps=4, guidance=1.0)
    seen = [judge(image) for image in images]
    right = [(one.shape, one.colour, one.background) for one in seen]
    assert sum(map(tuple.__eq__, right, asked)) >= len(asked) - 1


def test_the_autoencoder_keeps_edges(model):
    """At least 30 dB on scenes that training did not show."""
    rng = random.Random(12345)
    images = to_tensor([draw(random_scene(rng)) for _ in range(32)])
    decoded = model.decode(model.encode_image(images))
    mse = (decoded - images).square().mean(dim=(1, 2, 3))
    psnr = 10 * torch.log10(4 / mse)  # a range of 2, squared
    assert psnr.mean() >= 30.0


def layout(image: Image.Image) -> np.ndarray:
    """Where a picture differs from its background."""
    pixels = np.asarray(image, dtype=np.float64)
    background = np.median(pixels.reshape(-1, 3)[:SIDE], axis=0)
    return np.linalg.norm(pixels - background, axis=-1) > 70


@pytest.mark.parametrize("shape", ["circle", "star"])
def test_img2img_keeps_layout_when_weak_and_recolours_when_strong(engine, shape):
    scene = Scene("white", (Item(shape, "red", SIDE / 2, SIDE / 2, radius=34),))
    picture = draw(scene)
    start = np.asarray(picture)
    words = f"{article(f'red {shape}')} on a white background"
    (weak,) = render(engine, [words], init_image=start, strength=0.3)
    before, after = layout(picture), layout(weak)
    assert (before & after).sum() / (before | after).sum() > 0.8

    recoloured = f"{article(f'green {shape}')} on a white background"
    strong = render(engine, [recoloured] * 4, init_image=start, strength=0.75)
    assert sum(judge(image).colour == "green" for image in strong) >= 3


@pytest.mark.slow
def test_float16_draws_the_same():
    """Where a GPU has no bfloat16; here on the CPU, which may emulate it."""
    prompts = ["a red circle on a blue background", "a large green star on a white background"]
    with Engine(load_model("demo", device="cpu", dtype="float32")) as exact:
        expected = render(exact, prompts, steps=20)
    with Engine(load_model("demo", device="cpu", dtype="float16")) as half:
        found = render(half, prompts, steps=20)
    for picture, other in zip(found, expected, strict=True):
        seen, wanted = judge(picture), judge(other)
        assert (seen.shape, seen.colour, seen.background) == (
            wanted.shape,
            wanted.colour,
            wanted.background,
        )
        difference = np.asarray(picture, dtype=int) - np.asarray(other, dtype=int)
        assert np.abs(difference).mean() < 0.5  # edges move by a fraction of a pixel


def red_share(images: list[Image.Image]) -> float:
    """Share of the pixels that are red, over all images."""
    pixels = np.stack([np.asarray(image) for image in images])
    red, green, blue = (pixels[..., channel] for channel in range(3))
    return float(((red > 150) & (green < 100) & (blue < 100)).mean())


A1111 = {"syntax": "a1111", "sampler": "dpmpp_2m", "steps": 25}


class TestSyntax:
    """Pictures show what syntax a1111 says of a prompt."""

    @pytest.mark.parametrize("emphasis", ["a1111", "comfy"])
    def test_a_weight_strengthens_and_weakens(self, engine, emphasis: str):
        weak, plain, strong = (
            red_share(
                render(
                    engine,
                    [f"a (red circle:{weight}) on a blue background"] * 4,
                    emphasis=emphasis,
                    **A1111,
                )
            )
            for weight in (0.3, 1, 1.6)
        )
        assert weak * 1.04 < plain
        assert plain * 1.08 < strong

    def test_without_emphasis_a_weight_does_nothing(self, engine):
        one, other = (
            render(engine, [prompt], emphasis="none", **A1111)
            for prompt in ("a (red circle:1.6)", "a red circle")
        )
        assert np.array_equal(np.asarray(one[0]), np.asarray(other[0]))

    def test_a_negative_prompt_takes_away(self, engine):
        with_it = render(engine, ["a circle"] * 4, **A1111)
        without = render(engine, ["a circle"] * 4, negative="a red circle", **A1111)
        assert red_share(without) < 0.2 * red_share(with_it)

    def test_a_prompt_that_changes_early_gives_what_it_ends_with(self, engine):
        prompt = "[a red circle:a green star:0.1] on a blue background"
        seen = judge(render(engine, [prompt], **A1111)[0])
        assert (seen.shape, seen.colour) == ("star", "green")
