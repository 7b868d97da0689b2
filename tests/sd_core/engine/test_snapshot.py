"""A trajectory as bytes: whatever a request is, it goes on with the same bits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from sd_core.engine.engine import Engine, Suspended
from sd_core.engine.model_runner import largest_state
from sd_core.engine.request import Request
from sd_core.engine.snapshot import StateError, digest_of
from tests.sd_core.engine.test_engine import KINDS, request
from tests.sd_core.small import ODD, numbers, small_model


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
    assert torch.equal(numbers(rendered), numbers(undisturbed))
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


Tensors = dict[str, Tensor]


def edited(state: bytes, change: Callable[[Tensors], object], **metadata: str) -> bytes:
    """The state with other tensors and the digest that goes with them, as somebody who knows the
    format would write it.
    """
    tensors = load(state)
    change(tensors)
    header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])["__metadata__"]
    header |= {"digest": digest_of(tensors)} | metadata
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    return save(own, header)


def put(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: make(tensors[name])})


def filled(value: float) -> Callable[[Tensor], Tensor]:
    def make(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[5 % changed.numel()] = value
        return changed

    return make


CHANGES = {
    "latents of another type": (put("latents", Tensor.double), "latents"),
    "latents of another size": (put("latents", lambda x: x[:, :, 1:]), "latents"),
    "latents of more axes": (put("latents", lambda x: x[None]), "latents"),
    "latents that are not finite": (put("latents", filled(float("nan"))), "latents"),
    "no latents": (lambda tensors: tensors.pop("latents"), "latents"),
    "an output of another size": (put("output.1", lambda x: x[1:]), r"output\.1"),
    "an output that is not finite": (put("output.0", filled(float("inf"))), r"output\.0"),
    "too few outputs": (lambda tensors: tensors.pop("output.1"), r"output\.1"),
    "too many outputs": (lambda t: t.update({"output.2": t["output.0"]}), r"output\.2"),
    "a tensor of nobody": (lambda tensors: tensors.update(other=torch.zeros(1)), "other"),
    "a generator of another size": (put("generator", lambda x: x[1:]), "generator"),
    "a generator that is none": (put("generator", torch.zeros_like), "generator"),
    "no position": (put("numbers", lambda x: x[:1]), "numbers"),
    "a position of another type": (put("numbers", Tensor.float), "numbers"),
    "a position before the table": (put("numbers", lambda x: x - 5), "position -3"),
    "a position after the table": (put("numbers", lambda x: x + 50), "position 52"),
    "neither exact nor not": (put("numbers", lambda x: x + torch.tensor([0, 1])), "numbers"),
    "a mask that is not wanted": (lambda t: t.update(mask=torch.ones(1, 8, 8)), "mask"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_edited_state_is_refused_and_leaves_the_others_alone(model, engine, change):
    make, said = CHANGES[change]
    state = edited(interrupted(model, request(), 2), make)
    (calm,) = (engine.submit(request("a star", seed=3)).result(timeout=60),)
    others = [engine.submit(request("a star", seed=3)) for _ in range(2)]
    with pytest.raises(StateError, match=said):
        engine.submit(request(), state=state).result(timeout=60)
    assert all(torch.equal(numbers(o.result(timeout=60)), numbers(calm)) for o in others)


MASKED_CHANGES = {
    "no mask": (lambda tensors: tensors.pop("mask"), "mask"),
    "a mask of another size": (put("mask", lambda x: x.expand(4, -1, -1)), "mask"),
    "a mask between": (put("mask", filled(0.5)), "mask"),
    "a known picture of another size": (put("known", lambda x: x[:1]), "known"),
    "noise of another type": (put("noise", Tensor.half), "noise"),
}


@pytest.mark.parametrize("change", MASKED_CHANGES)
def test_an_edited_state_of_an_inpainted_image_is_refused(model, engine, change):
    make, said = MASKED_CHANGES[change]
    wanted = request(init=True, mask=True)
    state = edited(interrupted(model, wanted, 1), make)
    with pytest.raises(StateError, match=said):
        engine.submit(wanted, state=state).result(timeout=60)


def test_one_flipped_bit_is_found(model, engine):
    state = bytearray(interrupted(model, request(), 2))
    for place in (-1, -6000, -8000):  # in several tensors
        state[place] ^= 1
        with pytest.raises(StateError, match="digest"):
            engine.submit(request(), state=bytes(state)).result(timeout=60)
        state[place] ^= 1
    engine.submit(request(), state=bytes(state)).result(timeout=60)


def test_a_state_without_a_digest_is_refused(model, engine):
    state = edited(interrupted(model, request(), 2), lambda tensors: None, digest="")
    with pytest.raises(StateError, match="digest"):
        engine.submit(request(), state=state).result(timeout=60)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unchanged"])
def test_the_largest_state_of_a_request_is_known(model, kind):
    wanted = request(**KINDS[kind])
    sizes = [len(interrupted(model, wanted, after)) for after in (1, 2, 3)]
    assert max(sizes) <= largest_state(wanted) < max(sizes) + 4 * 4 * 8 * 12 * 4 + 2**14


def test_more_bytes_than_a_state_has_are_not_read(engine):
    with pytest.raises(StateError, match="larger than"):
        engine.submit(request(), state=bytes(10**7)).result(timeout=60)


def test_brackets_without_end_are_refused(engine):
    brackets = b"[" * 20_000
    state = len(brackets).to_bytes(8, "little") + brackets
    with pytest.raises(StateError):
        engine.submit(request(), state=state).result(timeout=60)


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
