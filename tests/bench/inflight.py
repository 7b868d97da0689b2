"""In-flight batching beside static grouping, as JSON: `python -m tests.bench.inflight`.

A job of 200 images with mixed steps (10 to 60), samplers, guidance (a quarter without), strengths
and two shapes, on the demo model. The peer is diffusers on the same weights, which renders what has
equal parameters together and can do no other: its best is one batch for each group, as large as our
batches may be. Both run the same images in this process, one after the other, in the type that this
CPU multiplies fastest unless --dtype says otherwise; the peer's text encoding, sampling and
decoding are its pipelines' own.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sd_core.device import DTYPES, resolve_dtype
from sd_core.engine.engine import Batch, Engine, batch_rows
from sd_core.engine.request import Request
from sd_core.execution import make_ready
from sd_core.loading import load_model
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import Sampling
from tests.bench.wanted import Wanted, exit_code, judged
from tests.parity.schedulers import scheduler

IMAGES = 200
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
FORMS = ("circle", "square", "triangle", "star", "ring", "cross")
SHAPES = ((128, 128), (128, 160))  # height and width of an image
SAMPLERS = ("plms", "ddim", "euler", "dpmpp_2m")
WANTED = (Wanted("sdbatch.useful_rows", least=0.97), Wanted("ratio", most=0.6))


def job(images: int, seed: int = 0) -> list[Request]:
    """Requests in the order of a manifest that a person shuffled."""
    rng = random.Random(seed)
    requests = []
    for number in range(images):
        colour, ground = rng.sample(COLOURS, 2)
        height, width = SHAPES[number % 2]
        picture = None
        if number % 5 == 0:
            pixels = np.full((height, width, 3), rng.randrange(256), np.uint8)
            pixels[32:96, 32:96] = rng.randrange(256)
            picture = pixels
        sampling = Sampling(
            sampler=rng.choice(SAMPLERS),
            steps=rng.randrange(10, 61, 10),
            guidance=1.0 if number % 4 == 0 else rng.choice((1.5, 2.0, 3.0)),
            width=width,
            height=height,
            seed=number,
            strength=rng.choice((0.5, 0.75)),
        )
        prompt = f"a {colour} {rng.choice(FORMS)} on a {ground} background"
        requests.append(Request(prompt, sampling, init_image=picture))
    rng.shuffle(requests)
    return requests


def ours(model: LatentDiffusion, requests: list[Request]) -> dict[str, Any]:
    batches: list[Batch] = []
    with Engine(model, on_batch=batches.append) as engine:
        began = time.perf_counter()
        futures = [engine.submit(request) for request in requests]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - began
    used, rows = (sum(getattr(b, name) for b in batches) for name in ("rows_used", "rows"))
    return {
        "seconds": round(seconds, 1),
        "batches": len(batches),
        "useful_rows": round(used / rows, 4),
        "evaluating_s": round(sum(b.seconds for b in batches), 1),
    }


# The peer


def groups(requests: list[Request]) -> list[list[Request]]:
    """Requests that one call of a pipeline can render, at most a batch of ours at a time."""
    alike: dict[Any, list[Request]] = defaultdict(list)
    for request in requests:
        sampling = request.sampling
        strength = None if request.init_image is None else sampling.strength
        key = (sampling.sampler, sampling.steps, sampling.guidance, sampling.latent_shape, strength)
        alike[key].append(request)
    calls = []
    for members in alike.values():
        most = batch_rows("cpu", members[0].sampling.latent_shape) // members[0].rows
        calls += [members[n : n + most] for n in range(0, len(members), most)]
    return calls


def diffusers(folder: Path, requests: list[Request], dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

    text = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, safety_checker=None, local_files_only=True
    )
    image = StableDiffusionImg2ImgPipeline(**text.components, requires_safety_checker=False)
    for pipeline in (text, image):
        pipeline.set_progress_bar_config(disable=True)
    calls = groups(requests)
    began = time.perf_counter()
    for members in calls:
        first = members[0].sampling
        options: dict[str, Any] = {
            "prompt": [request.prompt for request in members],
            "negative_prompt": [request.negative for request in members],
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance,
            "generator": [torch.Generator().manual_seed(r.sampling.seed) for r in members],
            "output_type": "np",
        }
        if members[0].init_image is None:
            text.scheduler = scheduler(first.sampler)
            text(**options, width=first.width, height=first.height)
        else:
            image.scheduler = scheduler(first.sampler)
            pictures = [Image.fromarray(r.init_image) for r in members if r.init_image is not None]
            image(**options, image=pictures, strength=first.strength)
    return {"seconds": round(time.perf_counter() - began, 1), "calls": len(calls)}


def measure(folder: Path, images: int, dtype: torch.dtype) -> dict[str, Any]:
    from sd_core.weights.export import save_diffusers

    model = load_model("demo", device="cpu", dtype=dtype)
    save_diffusers(model, folder / "demo")
    make_ready(model)
    requests = job(images)
    warm_up = job(4, seed=1)
    ours(model, warm_up)
    diffusers(folder / "demo", warm_up, dtype)
    exact = ours(model, requests)
    peer = diffusers(folder / "demo", requests, dtype)
    return {
        "images": images,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "sdbatch": exact,
        "diffusers_grouped": peer,
        "ratio": round(exact["seconds"] / peer["seconds"], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    dtype = resolve_dtype(args.dtype, torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="sdbatch-bench-") as folder:
        report = judged(measure(Path(folder), args.images, dtype), WANTED)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
