"""A worker process that writes down what it really does: `python -m tests.integration.witness`.

One line for each event, time and image's seed in it, in the file that SDBATCH_TEST_WITNESS names;
they outlive a SIGKILL. Seeds tell images apart, so a manifest must not repeat them.

    start    its first evaluation begins to count    step     an evaluation was made
    cancel   it left the engine unfinished           stored   it is in the store, with its record
    failed   it could not be stored
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "SDBATCH_TEST_WITNESS"


@dataclass
class Witnessed:
    """What one process did until some time. flying: images begun and not yet stored."""

    starts: Counter[int] = field(default_factory=Counter)
    stored: Counter[int] = field(default_factory=Counter)
    steps: int = 0
    flying: set[int] = field(default_factory=set)


def witnessed(path: Path, until_s: float = float("inf")) -> Witnessed:
    """until_s: Unix time."""
    seen = Witnessed()
    text = path.read_text() if path.exists() else ""
    whole, _, _ = text.rpartition("\n")  # the process may be in the middle of a line
    for line in whole.splitlines():
        time_s, kind, seed = line.split()
        if float(time_s) > until_s:
            break
        image = int(seed)
        if kind == "step":
            seen.steps += 1
        elif kind == "start":
            seen.starts[image] += 1
            seen.flying.add(image)
        else:
            seen.stored[image] += kind == "stored"
            seen.flying.discard(image)
    return seen


def total(paths: Iterable[Path]) -> Witnessed:
    """What several processes did together."""
    whole = Witnessed()
    for seen in map(witnessed, paths):
        whole.starts += seen.starts
        whole.stored += seen.stored
        whole.steps += seen.steps
    return whole


def write_down(path: Path) -> None:
    """Patches this process's engine and finisher."""
    from sd_core.engine.engine import Engine, Rendered, Suspended
    from sd_core.engine.request import Request
    from worker.output.finish import Finisher

    out = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    submit, finish = Engine.submit, Finisher.finish

    def note(kind: str, seed: int) -> None:
        os.write(out, f"{time.time():.6f} {kind} {seed}\n".encode())

    def noting_submit(
        engine: Engine,
        request: Request,
        *,
        on_step: Callable[[int, int], None] | None = None,
        state: bytes | None = None,
    ) -> Future[Rendered]:
        seed = request.sampling.seed

        def step(done: int, of: int) -> None:
            if done == 1:
                note("start", seed)
            note("step", seed)
            if on_step is not None:
                on_step(done, of)

        future = submit(engine, request, on_step=step, state=state)

        def left(future: Future[Rendered]) -> None:
            if future.cancelled() or isinstance(future.exception(), Suspended):
                note("cancel", seed)

        future.add_done_callback(left)
        return future

    def noting_finish(
        finisher: Finisher, pixels: Any, task: Any, render: Any, **options: Any
    ) -> Any:
        try:
            finished = finish(finisher, pixels, task, render, **options)
        except BaseException:
            note("failed", task.sampling.seed)
            raise
        note("stored", task.sampling.seed)
        return finished

    Engine.submit = noting_submit  # type: ignore[method-assign]
    Finisher.finish = noting_finish  # type: ignore[method-assign]


if __name__ == "__main__":
    write_down(Path(os.environ[VARIABLE]))
    from jobs.cli.root import main

    sys.exit(main(["worker"]))
