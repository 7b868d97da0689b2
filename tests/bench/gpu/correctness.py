"""Checks that numbers are right, and that an exact image's bytes depend on it alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sd_core.engine.batch_rows import MOST_ROWS, batch_rows
from sd_core.engine.engine import Engine
from sd_core.engine.memory import evaluation_bytes
from sd_core.engine.request import Request
from sd_core.engine.sample import sample_latents
from sd_core.execution import make_ready
from sd_core.loading import load_model
from sd_core.model.diffusion import LatentDiffusion
from sd_core.sampler_table import SAMPLERS
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.spec import Sampling
from tests.bench.gpu.bench import DTYPES, Bench, Inputs, relative, sha


def correct(b: Bench) -> dict[str, Any]:
    """Errors against float32 on the CPU: of the demo model's latents and pixels after some steps,
    and of one evaluation at the bench's size.
    """
    found: dict[str, Any] = {"demo": {}, "evaluation": {}}
    dtypes = DTYPES if b.cuda else ("float32",)  # others may be emulated on a CPU, for minutes
    reference = load_model("demo", device="cpu", dtype="float32")
    wanted = {sampler: _latents(reference, sampler) for sampler in ("plms", "dpmpp_2m", "euler_a")}
    pixels = reference.decode(wanted["plms"])
    right = Inputs(b, b.reference(), 2).evaluate()
    for dtype in dtypes:
        model = make_ready(load_model("demo", device=str(b.device), dtype=dtype), "eager")
        errors = {sampler: relative(_latents(model, sampler), x) for sampler, x in wanted.items()}
        decoded = model.decode(wanted["plms"].to(b.device)).cpu()
        errors["decode_most_of_255"] = round((decoded - pixels).abs().max().item() * 127.5, 2)
        found["demo"][dtype] = errors
        found["evaluation"][dtype] = relative(
            Inputs(b, b.ready(dtype, "eager"), 2).evaluate(), right
        )
    return found


def _latents(model: LatentDiffusion, sampler: str) -> Tensor:
    noise = torch.stack([draw_noise(generator_for(n), (4, 16, 16)) for n in range(2)])
    prompts = ["a red circle on a blue background", "a green star on a yellow background"]
    cond, uncond = model.encode_prompt(prompts), model.encode_prompt(["", ""])
    return sample_latents(
        model, noise.to(model.device), cond, uncond, sampler=sampler, steps=8, guidance=2.0
    )


def exact(b: Bench) -> dict[str, Any]:
    """Rows at the fixed count: again, in another place, beside others, with little memory; which
    other counts give the same bits; whole images; what a single exact image costs.
    """
    most = batch_rows("cuda", (b.side, b.side)) if b.cuda else 4
    found: dict[str, Any] = {"rows": most, "evaluation": _rows(b, most)}
    if b.cuda:
        with _little_memory(b, most):
            again = _rows(b, most)
        found["with_little_memory"] = again["sha256"] == found["evaluation"]["sha256"]
    wanted = Inputs(b, b.model, most)
    right = wanted.evaluate()
    found["counts_with_the_same_bits"] = [
        rows
        for rows in range(1, most + 1)
        if torch.equal(wanted.rows_of(torch.arange(rows)).evaluate(), right[:rows])
    ]
    latents = torch.randn(4, 4, b.side, b.side, device=b.device)
    right = b.model.decode(latents)
    found["decodes_with_the_same_bits"] = [
        images
        for images in range(1, 5)
        if torch.equal(b.model.decode(latents[:images]), right[:images])
    ]
    found["images"] = _images(b)
    single = {}
    for name, is_exact in (("exact", True), ("fast", False)):
        with Engine(b.model) as engine:
            one = _request(b, 7, "euler_a", exact=is_exact)
            engine.submit(one).result()  # captures
            single[name] = b.wall_ms(lambda one=one, e=engine: e.submit(one).result(), 3)
    found["single_wall_ms"] = single
    found["single_of_fast"] = round(single["exact"] / single["fast"], 3)
    return found


def _rows(b: Bench, rows: int) -> dict[str, Any]:
    inputs = Inputs(b, b.model, rows)
    first = inputs.evaluate()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3))
    moved = inputs.rows_of(order).evaluate()
    others = Inputs(b, b.model, rows, seed=9)
    others.latents[:2], others.times[:2] = inputs.latents[:2], inputs.times[:2]
    for (keys, values), (own_keys, own_values) in zip(
        others.contexts, inputs.contexts, strict=True
    ):
        keys[:2], values[:2] = own_keys[:2], own_values[:2]
    return {
        "again": torch.equal(first, inputs.evaluate()),
        "in_another_place": torch.equal(first[order.to(first.device)], moved),
        "beside_others": torch.equal(first[:2], others.evaluate()[:2]),
        "sha256": sha(first),
    }


@contextmanager
def _little_memory(b: Bench, rows: int) -> Iterator[None]:
    """Most of the card's memory taken: libraries must not choose other kernels for it."""
    gc.collect()
    torch.cuda.empty_cache()
    needed = 2 * rows * evaluation_bytes(b.spec.unet, (b.side, b.side), b.dtype.itemsize)
    size = max(0, torch.cuda.mem_get_info()[0] - needed - 2**30)
    hog = torch.empty(size, dtype=torch.uint8, device=b.device)
    try:
        yield
    finally:
        del hog
        torch.cuda.empty_cache()


def _request(b: Bench, seed: int, sampler: str, *, exact: bool = True) -> Request:
    side, steps = b.spec.native_size, 4 if b.quick else 20
    sampling = Sampling(sampler=sampler, steps=steps, width=side, height=side, seed=seed)
    return Request(f"picture {seed}", sampling, exact=exact)


def _images(b: Bench) -> dict[str, Any]:
    """One image alone, first, in the middle and last among others of all samplers."""
    image = _request(b, 7, "euler_a")
    others = [_request(b, 20 + n, SAMPLERS[n % len(SAMPLERS)]) for n in range(MOST_ROWS // 2)]
    digests = []
    for company, place in (([], 0), (others, 0), (others, 5), (others[::-1], len(others))):
        line = [*company[:place], image, *company[place:]]
        with Engine(b.model) as engine:
            futures = [engine.submit(one) for one in line]
            rendered = [future.result() for future in futures]
        digests.append(sha(torch.from_numpy(rendered[place].pixels)))
    return {"same": len(set(digests)) == 1, "sha256": digests[0]}
