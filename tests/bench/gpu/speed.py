"""Times of an evaluation, an engine's step, a decode, and the start of a process."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from concurrent.futures import Future
from typing import Any

import torch

from sd_core.device import own_memory
from sd_core.engine.batch_rows import Rows
from sd_core.engine.inflight import InflightRequest
from sd_core.engine.memory import Capacity, decode_bytes, evaluation_bytes
from sd_core.engine.model_runner import ModelRunner
from sd_core.engine.request import Request
from sd_core.model.diffusion import LatentDiffusion
from sd_core.sampler_table import SAMPLERS
from sd_core.spec import Sampling
from tests.bench.gpu.bench import Bench, Inputs, graph_of


def evaluation(b: Bench) -> dict[str, Any]:
    """By rows: as it is called, as a graph, and the memory beside what is predicted."""
    found: dict[str, Any] = {}
    for rows in b.rows:
        inputs = Inputs(b, b.model, rows)
        one: dict[str, Any] = {}
        if b.cuda:
            with b.peak_bytes() as peak:
                inputs.evaluate()
                taken = peak()
            predicted = rows * evaluation_bytes(b.spec.unet, (b.side, b.side), b.dtype.itemsize)
            one["memory_of_predicted"] = round(taken / predicted, 3)
        one["eager_ms"] = b.ms(inputs.evaluate)
        one["eager_cpu_ms"] = b.cpu_ms(inputs.evaluate)
        one["ms"] = one["eager_ms"]
        if b.cuda:
            replay, result = graph_of(inputs.evaluate)
            one["ms"] = b.ms(replay)
            # Exact images have steps of both kinds.
            one["graph_has_the_bits"] = torch.equal(result, inputs.evaluate())
        one["of_limit"] = round(rows * b.gflop_row / b.peak_tflops / one["ms"], 3)
        found[str(rows)] = one
    return found


def tick(b: Bench) -> dict[str, Any]:
    """A step of the engine beside the evaluation in it, and where it waits for the device."""
    found: dict[str, Any] = {}
    evaluated = b.report.get("evaluation", {})
    shape = (b.side, b.side)
    for rows in b.rows:
        runner, flights = _started(b, b.model, rows)

        def step(runner: ModelRunner = runner, flights: list[InflightRequest] = flights) -> None:
            runner.evaluate(shape, flights)

        for _ in range(4):
            step()
        one: dict[str, Any] = {"ms": b.ms(step, most=60)}
        one["cpu_ms"] = b.cpu_ms(step, 12)
        if str(rows) in evaluated:
            one["lost_share"] = round(1 - evaluated[str(rows)]["ms"] / one["ms"], 4)
        if b.cuda:
            one["waits"], one["waits_at"] = _waits(step)
        found[str(rows)] = one
    runner, flights = _started(b, b.model, 2)
    known = flights[0].request.sampling
    fresh = iter(range(10**6))

    def start(prompt: str) -> None:
        number = next(fresh)
        request = Request(prompt.format(number), known)
        runner.start(InflightRequest(request, Future(), None, arrived=1000 + number))

    found["start_of_a_new_prompt_cpu_ms"] = b.cpu_ms(lambda: start("never seen {}"), 7)
    found["start_of_a_known_prompt_cpu_ms"] = b.cpu_ms(lambda: start("always"), 7)
    return found


def _started(
    b: Bench, model: LatentDiffusion, rows: int
) -> tuple[ModelRunner, list[InflightRequest]]:
    memory = own_memory(b.device)
    capacity = Capacity(b.spec, str(b.device), memory, 0, b.dtype.itemsize)
    runner = ModelRunner(model, Rows(b.device.type, lambda shape: rows), capacity)
    flights = []
    for n in range(max(1, rows // 2)):
        side, sampler = b.spec.native_size, SAMPLERS[n % len(SAMPLERS)]
        sampling = Sampling(sampler=sampler, steps=200, width=side, height=side, seed=n)
        flight = InflightRequest(Request(f"picture {n}", sampling), Future(), None, arrived=n)
        runner.start(flight)
        flights.append(flight)
    return runner, flights


def _waits(call: Any) -> tuple[int, list[str]]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    places = [
        f"{warning.filename.rpartition('/')[2]}:{warning.lineno}"
        for warning in seen
        if "synchroniz" in str(warning.message).lower()
    ]
    return len(places), sorted(set(places))


def decode(b: Bench) -> dict[str, Any]:
    """By images: as it is called and as a graph, and the memory beside what is predicted."""
    found: dict[str, Any] = {}
    for images in (1, 2, 4):
        latents = torch.randn(images, 4, b.side, b.side, device=b.device)

        def call(latents: torch.Tensor = latents) -> torch.Tensor:
            return b.model.decode(latents)

        one: dict[str, Any] = {}
        if b.cuda:
            with b.peak_bytes() as peak:
                call()
                taken = peak()
            predicted = images * decode_bytes(b.spec.vae, (b.side, b.side), b.dtype.itemsize)
            one["memory_of_predicted"] = round(taken / predicted, 3)
        one["ms"] = b.ms(call)
        if b.cuda:
            one["graph_ms"] = b.ms(graph_of(call)[0])
        one["of_limit"] = round(images * b.gflop_decode / b.peak_tflops / one["ms"], 3)
        found[str(images)] = one
    return found


_START = """
import time
began = time.perf_counter()
from sd_core.execution import make_ready
from sd_core.loading import load_model
from sd_core.engine.engine import Engine
from sd_core.engine.request import Request
from sd_core.spec import Sampling
model = make_ready(load_model("demo", device={device!r}), "auto")
with Engine(model) as engine:
    engine.submit(Request("a red circle", Sampling(steps=20, width=128, height=128))).result()
print(time.perf_counter() - began)
"""


def start(b: Bench) -> dict[str, Any]:
    """A fresh process: imports, the demo model, its captures, one image."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _START.format(device=str(b.device))],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    wall_s = time.perf_counter() - began
    inside_s = float(done.stdout.split()[-1])
    return {"first_image_wall_s": round(wall_s, 2), "inside_s": round(inside_s, 2)}
