"""A worker process that one image kills: `python -m tests.integration.poison`.

SDBATCH_TEST_POISON names the prompt; its first evaluation ends the process, as a fault in a driver
or a machine that runs out of memory does.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future

VARIABLE = "SDBATCH_TEST_POISON"


def be_poisoned_by(prompt: str) -> None:
    """Patches this process's engine."""
    from sd_core.engine.engine import Engine, Rendered
    from sd_core.engine.request import Request

    submit = Engine.submit

    def deadly_submit(
        engine: Engine,
        request: Request,
        *,
        on_step: Callable[[int, int], None] | None = None,
        state: bytes | None = None,
    ) -> Future[Rendered]:
        def step(done: int, of: int) -> None:
            if request.prompt == prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if on_step is not None:
                on_step(done, of)

        return submit(engine, request, on_step=step, state=state)

    Engine.submit = deadly_submit  # type: ignore[method-assign]


if __name__ == "__main__":
    be_poisoned_by(os.environ[VARIABLE])
    from jobs.cli.root import main

    sys.exit(main(["worker"]))
