"""A whole image beside diffusers, as JSON: `python -m tests.bench.image`.

Text, 50 steps of PLMS with guidance, decode and PNG, at the model's native size, both from the
same float32 weights (the demo model's, or random ones of v1 size) in a diffusers folder: ours
through the engine, the peer through its pipeline with PNDM. Loading is not counted. Runs take
turns, medians are compared. `max_difference` is between the two pictures, of 255.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image

from sd_core.device import DTYPES, resolve_dtype
from sd_core.engine.engine import Engine
from sd_core.engine.request import Request
from sd_core.execution import make_ready
from sd_core.loading import load_model
from sd_core.sampling.noise import generator_for
from sd_core.spec import EXECUTIONS, Sampling
from sd_core.weights.export import save_diffusers
from tests.bench.files import record
from tests.bench.measure import SPECS, compared, interleaved, random_model
from tests.bench.wanted import Wanted, exit_code, judged
from worker.output.encode import encode_image

PROMPT = "a red circle on a blue background"
SEED = 7
WANTED = (Wanted("image_s.ratio_diffusers", most=0.6),)


def ours(engine: Engine, sampling: Sampling) -> Callable[[], bytes]:
    def render() -> bytes:
        pixels = engine.submit(Request(PROMPT, sampling)).result().pixels
        return encode_image(pixels, record(), "png")

    return render


def theirs(folder: Path, dtype: torch.dtype, sampling: Sampling) -> Callable[[], bytes]:
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = PNDMScheduler.from_pretrained(folder / "scheduler")
    pipeline.set_progress_bar_config(disable=True)

    def render() -> bytes:
        image = pipeline(
            PROMPT,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            height=sampling.height,
            width=sampling.width,
            generator=generator_for(SEED),
        ).images[0]
        file = io.BytesIO()
        image.save(file, "png")
        return file.getvalue()

    return render


def max_difference(pictures: list[bytes]) -> int:
    first, second = (np.asarray(Image.open(io.BytesIO(p)), dtype=int) for p in pictures)
    return int(abs(first - second).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SPECS, default="v1")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--execution", choices=EXECUTIONS, default="auto")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit code 1 if not as wanted")
    args = parser.parse_args()
    dtype = resolve_dtype(args.dtype, torch.device("cpu"))
    spec = SPECS[args.model]
    sampling = Sampling(
        steps=args.steps, guidance=2.0, width=spec.native_size, height=spec.native_size, seed=SEED
    )
    if args.model == "demo":
        weights = load_model("demo", dtype="float32")
    else:
        weights = random_model(spec, torch.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_diffusers(weights, folder)
        del weights
        model = make_ready(load_model(folder, dtype=dtype), args.execution)
        with Engine(model) as engine:
            calls = {
                "sdbatch": ours(engine, sampling),
                "diffusers": theirs(folder, dtype, sampling),
            }
            difference = max_difference([call() for call in calls.values()])
            seconds = interleaved(calls, args.runs)
    report = {
        "model": args.model,
        "dtype": str(dtype).removeprefix("torch."),
        "steps": args.steps,
        "image_s": compared(seconds, 2),
        "max_difference": difference,
    }
    report = judged(report, WANTED)
    print(json.dumps(report, indent=2))
    return exit_code(report, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
