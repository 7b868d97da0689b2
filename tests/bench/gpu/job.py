"""A mixed manifest through the engine, with decode, PNG files and their writing."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sd_core.engine.engine import Engine
from sd_core.engine.request import Batch, Rendered, Request
from sd_core.pixels import to_pil
from sd_core.sampler_table import SAMPLERS
from sd_core.spec import Sampling
from tests.bench.gpu.bench import Bench

IN_FLIGHT = 32  # as many as a worker submits ahead


def job(b: Bench) -> dict[str, Any]:
    """Busy shares, and images a second beside what evaluation and decode allow."""
    found: dict[str, Any] = {}
    for steps in (20, 50):
        if b.left_s < 60:
            found[f"{steps}_steps"] = {"skipped": "no time left"}
            continue
        found[f"{steps}_steps"] = _rendered(b, _requests(b, steps))
    return found


def _requests(b: Bench, steps: int) -> list[Request]:
    rng = random.Random(0)
    side, count = b.spec.native_size, 6 if b.quick else 1200 // steps
    requests = []
    for n in range(count):
        sampling = Sampling(
            sampler=SAMPLERS[n % len(SAMPLERS)],
            steps=4 if b.quick else steps + rng.randrange(-3, 4),
            guidance=1.0 if n % 8 == 3 else 7.5,
            width=side,
            height=side,
            seed=n,
        )
        requests.append(Request(f"a picture of thing {n}", sampling, rng.choice(("", "blurry"))))
    return requests


def _rendered(b: Bench, requests: list[Request]) -> dict[str, Any]:
    batches: list[Batch] = []
    gate, stored = threading.Semaphore(IN_FLIGHT), []

    def store(rendered: Rendered, path: Path) -> None:
        to_pil(rendered.pixels).save(path, "PNG", compress_level=1)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4) as pool:

        def landed(future: Future[Rendered], path: Path) -> None:
            gate.release()
            stored.append(pool.submit(store, future.result(), path))

        with Engine(b.model, on_batch=batches.append) as engine:
            engine.submit(requests[0]).result()  # captures
            batches.clear()
            busy_s, began = -engine.busy_s(), time.perf_counter()
            for n, request in enumerate(requests):
                gate.acquire()
                path = Path(folder, f"{n}.png")
                engine.submit(request).add_done_callback(
                    lambda future, path=path: landed(future, path)
                )
        busy_s += engine.busy_s()
        for one in stored:
            one.result()
        wall_s = time.perf_counter() - began
    used, rows = (sum(getattr(batch, name) for batch in batches) for name in ("rows_used", "rows"))
    decoded_s = b.report.get("decode", {}).get("4", {}).get("ms", 0.0) / 4 / 1e3 * len(requests)
    return {
        "images": len(requests),
        "wall_s": round(wall_s, 3),
        "images_per_s": round(len(requests) / wall_s, 3),
        "useful_rows": round(used / rows, 4),
        "busy": round(busy_s / wall_s, 4),
        "of_possible": round((used * _row_s(b) + decoded_s) / wall_s, 4),
    }


def _row_s(b: Bench) -> float:
    """Seconds of a row of the largest batch that was measured: no row is done in less."""
    evaluated = b.report.get("evaluation", {})
    return min((evaluated[n]["ms"] / int(n) / 1e3 for n in evaluated if n.isdigit()), default=0.0)
