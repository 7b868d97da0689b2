"""An image that is suspended in one engine and goes on in another, among others."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from torch import Tensor

from sd_core.engine.engine import Engine
from sd_core.engine.request import Request, Suspended
from sd_core.model.diffusion import LatentDiffusion
from tests.sd_core.small import numbers


def calm_and_resumed(
    model: LatentDiffusion, wanted: Request, others: Sequence[Request], *, after: int
) -> tuple[Tensor, Tensor]:
    """All that the image is undisturbed, and suspended after so many evaluations."""
    with Engine(model, rows=16) as engine:
        calm = engine.submit(wanted).result(timeout=600)
        reached, go_on = threading.Event(), threading.Event()

        def on_step(done: int, _all: int) -> None:
            if done == after:
                reached.set()
                assert go_on.wait(60)

        future = engine.submit(wanted, on_step=on_step)
        assert reached.wait(60)
        engine.suspend([future])
        go_on.set()
        with pytest.raises(Suspended) as stopped:
            future.result(timeout=60)
    with Engine(model, rows=16) as engine:
        crowd = [engine.submit(one) for one in others]
        again = engine.submit(wanted, state=stopped.value.state).result(timeout=60)
        for other in crowd:
            other.result(timeout=60)
    return numbers(calm), numbers(again)
