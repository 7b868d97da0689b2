"""A trajectory as bytes: whatever a request is, it goes on with the same bits."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from sd_core.engine import Engine, Request, Suspended
from sd_core.saving import StateError
from tests.sd_core.small import ODD, small_model
from tests.sd_core.test_engine import KINDS, request


@pytest.fixture(scope="module")
def model():
    return small_model(ODD)


@pytest.fixture
def engine(model):
    with Engine(model, rows=4) as engine:
        yield engine


def interrupted(model, wanted: Request, after: int, state: bytes | None = None) -> bytes:
    """What is left of it when it was suspended after so many evaluations."""
    with Engine(model, rows=4) as engine:
        reached, go_on = threading.Event(), threading.Event()

        def on_step(done: int, _all: int) -> None:
            if done == after:
                reached.set()
                assert go_on.wait(60)

        future = engine.submit(wanted, on_step=on_step, state=state)
        assert reached.wait(60)
        engine.suspend([future])
        go_on.set()
        with pytest.raises(Suspended) as stopped:
            future.result(timeout=60)
        return stopped.value.state


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unchanged"])
def test_it_goes_on_with_the_same_bits_in_another_engine(model, engine, kind):
    wanted = request(**KINDS[kind])
    undisturbed = engine.submit(wanted).result(timeout=60)
    state = interrupted(model, wanted, 1)
    state = interrupted(model, wanted, 3, state)
    steps: list[tuple[int, int]] = []
    crowd = [engine.submit(request("a star", seed=n)) for n in range(2)]
    again = engine.submit(wanted, on_step=lambda *at: steps.append(at), state=state)
    rendered = again.result(timeout=60)
    assert torch.equal(rendered.pixels, undisturbed.pixels)
    assert rendered.evaluations == undisturbed.evaluations
    assert rendered.exact
    assert steps[0] == (4, undisturbed.evaluations)
    assert all(future.result(timeout=60).exact for future in crowd)


def test_it_is_small(model):
    state = interrupted(model, request(), 4)
    floats = 4 * 8 * 8 * (1 + 4)  # the latents, and four outputs of plms
    assert len(state) < 4 * floats + 8000  # with the generator's state


def test_what_never_began_is_cancelled_and_what_goes_on_keeps_its_state(model):
    state = interrupted(model, request(), 2)
    with Engine(model, rows=2) as engine:
        reached, go_on = threading.Event(), threading.Event()

        def on_step(*_: int) -> None:
            reached.set()
            assert go_on.wait(60)

        first = engine.submit(request(steps=20), on_step=on_step)
        assert reached.wait(60)
        waiting = engine.submit(request(seed=2))
        resumed = engine.submit(request(), state=state)
        engine.suspend([waiting, resumed])
        go_on.set()
        with pytest.raises(CancelledError):
            waiting.result(timeout=60)
        with pytest.raises(Suspended) as stopped:
            resumed.result(timeout=60)
        assert stopped.value.state == state
        first.result(timeout=60)


def test_what_ends_within_the_grace_is_left_alone(model):
    with Engine(model, rows=4) as engine:
        reached, go_on = threading.Event(), threading.Event()

        def on_step(done: int, _all: int) -> None:
            if done == 2:
                reached.set()
                assert go_on.wait(60)

        short = engine.submit(request(steps=5))
        long = engine.submit(request(steps=900, seed=2), on_step=on_step)
        assert reached.wait(60)
        # A step is some milliseconds, so 5 of them are within the grace and 900 are not.
        engine.suspend([short, long], grace_s=1.0)
        go_on.set()
        assert short.result(timeout=60).evaluations == 6
        with pytest.raises(Suspended):
            long.result(timeout=60)


OTHERS = {
    "another prompt": request("a star"),
    "another seed": request(seed=2),
    "another strength": request(init=True, strength=0.5),
    "not exact": Request("a red circle", request().sampling, exact=False),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_state_of_another_request_is_refused(model, engine, other):
    state = interrupted(model, request(), 2)
    with pytest.raises(StateError, match="another"):
        engine.submit(OTHERS[other], state=state).result(timeout=60)


def test_the_state_of_another_model_or_row_count_is_refused(model):
    state = interrupted(model, request(), 2)
    for other, rows in ((small_model(ODD, seed=1), 4), (model, 8)):
        with Engine(other, rows=rows) as engine, pytest.raises(StateError, match="another"):
            engine.submit(request(), state=state).result(timeout=60)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_damaged_bytes_are_refused(model, engine, length):
    state = interrupted(model, request(), 2)
    with pytest.raises(StateError):
        engine.submit(request(), state=state[:length]).result(timeout=60)


def test_a_digest_tells_requests_apart():
    pixels = np.zeros((64, 64, 3), np.uint8)
    sampling = request().sampling
    several = [
        *OTHERS.values(),
        Request("a", sampling, "b"),
        Request("ab", sampling),
        Request("a", sampling, init_image=pixels),
        Request("a", sampling, init_image=pixels + 1),
        Request("a", sampling, init_image=pixels, mask=pixels[..., 0]),
    ]
    assert len({r.digest() for r in several}) == len(several)
