"""A trajectory between two steps as bytes, and back: safetensors, small, the same everywhere.

What is kept is what the next evaluation needs: latents, past outputs, position, the generator's
state, noise and guidance that are read again, and with a mask what is returned to outside it. Table
and context follow from the request.

Bytes come back from a store, where anything may have happened to them. Every tensor must be of the
name, type and shape that request and position ask for, and all together of the digest in the
header. One other number would give another picture under the right name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from sd_core.sampling.noise import generator_for
from sd_core.sampling.step_table import MOST_HISTORY, StepTable
from sd_core.sampling.trajectory import Inpainting, Trajectory
from sd_core.spec import NOISES, Shape
from sd_core.transfer import to_device

FORMAT = "1"

MOST_HEADER_BYTES = 16 * 2**10
"""Room for the names, types and shapes of a state's tensors, of which there are at most a dozen."""

# What is not a tensor of the picture, as tensors too: safetensors' text header is for people.
_NUMBERS = "numbers"

_GENERATOR_BYTES = {noise: generator_for(0, noise).get_state().numel() for noise in NOISES}

Form = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Name -> type and shape of each tensor of a state."""


class StateError(ValueError):
    """Bytes that continue no trajectory of this request: damaged, or of something else."""


def save_trajectory(trajectory: Trajectory, *, kind: str, exact: bool) -> bytes:
    """kind: names request, model and arithmetic; `load_trajectory` takes no other. exact: whether
    all evaluations so far gave the bits of the fixed row count.
    """
    tensors: dict[str, Tensor] = {
        "latents": trajectory.latents,
        "generator": trajectory.generator.get_state(),
        _NUMBERS: torch.tensor([trajectory.position, int(exact)], dtype=torch.int64),
    }
    tensors |= {f"output.{n}": output for n, output in enumerate(trajectory.outputs)}
    if trajectory.table.reads_noise_before(trajectory.position):
        assert trajectory.noise_before is not None
        tensors["noise_before"] = trajectory.noise_before
    if trajectory.has_momentum and trajectory.position:
        assert trajectory.difference is not None
        tensors["difference"] = trajectory.difference
    if trajectory.inpainting is not None:
        known = trajectory.inpainting
        tensors |= {"known": known.known, "noise": known.noise, "mask": known.mask}
    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    return save(own, {"format": FORMAT, "kind": kind, "digest": digest_of(own)})


def load_trajectory(
    state: bytes,
    table: StepTable,
    *,
    kind: str,
    guidance: float,
    shape: Shape,
    noise: str,
    inpainted: bool,
    momentum: bool,
    device: torch.device,
) -> tuple[Trajectory, bool]:
    """The trajectory and `exact`, as they were saved.

    shape: (h, w) of the latents. noise: one of `NOISES`. inpainted: whether the request has a mask.
    momentum: whether its guidance has some.
    Raises `StateError` for all but the bytes that `save_trajectory` gave for such a request.
    """
    most = most_bytes(table, shape, noise, inpainted=inpainted, momentum=momentum)
    if len(state) > most:
        raise StateError(f"a saved state of {len(state)} bytes, larger than the {most} of this one")
    try:
        tensors = load(state)
        header = _header(state)
    except Exception as error:  # of several kinds, for what is no file of safetensors
        raise StateError(f"no saved trajectory: {error}") from error
    if header.get("format") != FORMAT or header.get("kind") != kind:
        raise StateError("saved by another version, or of another request, model or arithmetic")
    position, exact = _numbers(tensors, table)
    form = _form(table, shape, position, noise, inpainted=inpainted, momentum=momentum)
    _check_form(tensors, form)
    if header.get("digest") != digest_of(tensors):
        raise StateError("the saved tensors are not those of the digest beside them")
    _check_values(tensors)
    generator = generator_for(0, noise)
    try:
        generator.set_state(tensors["generator"])
    except RuntimeError as error:
        raise StateError(f"generator is no state of one: {error}") from error
    there = {
        name: to_device(tensor, device) for name, tensor in tensors.items() if name != "generator"
    }
    latents = there["latents"]
    past = latents.new_zeros(MOST_HISTORY - 1, *latents.shape)
    for n in range(_outputs(table, position)):
        past[n] = there[f"output.{n}"]
    inpainting = None
    if inpainted:
        inpainting = Inpainting(there["known"], there["noise"], there["mask"])
    trajectory = Trajectory(
        *(table, latents, generator, guidance, inpainting, position, past),
        noise_before=there.get("noise_before"),
        difference=there.get("difference"),
    )
    return trajectory, exact


def most_bytes(
    table: StepTable, shape: Shape, noise: str, *, inpainted: bool, momentum: bool
) -> int:
    """Size that no saved state of such a request exceeds. momentum: of its guidance."""
    form = _form(table, shape, len(table), noise, inpainted=inpainted, momentum=momentum)
    if table.C.shape[1] > 1:
        form["noise_before"] = form["latents"]
    numbers = (torch.Size(sizes).numel() * dtype.itemsize for dtype, sizes in form.values())
    return sum(numbers) + MOST_HEADER_BYTES


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 in hex over contiguous CPU tensors: names, types, shapes and numbers."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _form(
    table: StepTable, shape: Shape, position: int, noise: str, *, inpainted: bool, momentum: bool
) -> Form:
    """The tensors that a state at this position has."""
    latents = torch.float32, (4, *shape)
    form: Form = {
        "latents": latents,
        "generator": (torch.uint8, (_GENERATOR_BYTES[noise],)),
        _NUMBERS: (torch.int64, (2,)),
    }
    form |= {f"output.{n}": latents for n in range(_outputs(table, position))}
    if table.reads_noise_before(position):
        form["noise_before"] = latents
    if momentum and position:
        form["difference"] = latents
    if inpainted:
        form |= {"known": latents, "noise": latents, "mask": (torch.float32, (1, *shape))}
    return form


def _outputs(table: StepTable, position: int) -> int:
    """How many past outputs a trajectory at this position keeps."""
    return min(position, table.history - 1)


def _numbers(tensors: Mapping[str, Tensor], table: StepTable) -> tuple[int, bool]:
    """Position, and whether all evaluations were exact."""
    numbers = tensors.get(_NUMBERS)
    if numbers is None or numbers.dtype != torch.int64 or numbers.shape != (2,):
        raise StateError(f"{_NUMBERS} are not two whole numbers")
    position, exact = numbers.tolist()
    if not 0 <= position <= len(table):
        raise StateError(f"position {position} is not within the table's 0 to {len(table)}")
    if exact not in (0, 1):
        raise StateError(f"{_NUMBERS} say {exact} where 0 or 1 is expected")
    return position, bool(exact)


def _check_form(tensors: Mapping[str, Tensor], form: Form) -> None:
    for name in sorted(tensors.keys() | form.keys()):
        if name not in form:
            raise StateError(f"{name!r:.40} is no tensor of this state")
        if name not in tensors:
            raise StateError(f"{name} is missing")
        tensor, (dtype, sizes) = tensors[name], form[name]
        if tensor.dtype != dtype or tensor.shape != sizes:
            raise StateError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}; expected {dtype} {sizes}"
            )


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise StateError(f"{name} holds numbers that are not finite")
    mask = tensors.get("mask")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise StateError("mask holds more than zeros and ones")


def _header(state: bytes) -> dict[str, Any]:
    """The text part of safetensors' header."""
    length = int.from_bytes(state[:8], "little")
    return dict(json.loads(state[8 : 8 + length]).get("__metadata__", {}))
