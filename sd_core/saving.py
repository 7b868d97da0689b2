"""A trajectory between two steps as bytes, and back: safetensors, small, the same everywhere.

What is kept is what the next evaluation needs: latents, past outputs, position, the generator's
state, and with a mask what is returned to outside it. Table and context follow from the request.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sd_core.samplers import StepTable
from sd_core.trajectory import Inpainting, Trajectory

FORMAT = "1"

# What is not a tensor of the picture, as tensors too: safetensors' text header is for people.
_NUMBERS = "numbers"


class StateError(ValueError):
    """Bytes that continue no trajectory of this request: damaged, or of something else."""


def save_trajectory(trajectory: Trajectory, *, kind: str, exact: bool) -> bytes:
    """kind: names request, model and arithmetic; `load_trajectory` takes no other. exact: whether
    all evaluations so far ran at the fixed row count.
    """
    tensors: dict[str, Tensor] = {
        "latents": trajectory.latents,
        "generator": trajectory.generator.get_state(),
        _NUMBERS: torch.tensor([trajectory.position, int(exact)], dtype=torch.int64),
    }
    tensors |= {f"output.{n}": output for n, output in enumerate(trajectory.outputs)}
    if trajectory.inpainting is not None:
        known = trajectory.inpainting
        tensors |= {"known": known.known, "noise": known.noise, "mask": known.mask}
    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    return save(own, {"format": FORMAT, "kind": kind})


def load_trajectory(
    state: bytes, table: StepTable, *, kind: str, guidance: float, device: torch.device
) -> tuple[Trajectory, bool]:
    """The trajectory and `exact`, as they were saved. Raises `StateError`."""
    try:
        tensors = load(state)
        header = _header(state)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"no saved trajectory: {error}") from error
    if header.get("format") != FORMAT or header.get("kind") != kind:
        raise StateError("saved by another version, or of another request, model or arithmetic")
    try:
        position, exact = tensors[_NUMBERS].tolist()
        generator = torch.Generator("cpu")
        generator.set_state(tensors["generator"])
        outputs = [
            tensors[f"output.{n}"].to(device)
            for n in range(sum(name.startswith("output.") for name in tensors))
        ]
        inpainting = None
        if "mask" in tensors:
            parts = (tensors[name].to(device) for name in ("known", "noise", "mask"))
            inpainting = Inpainting(*parts)
        latents = tensors["latents"].to(device)
    except (KeyError, ValueError, RuntimeError) as error:
        raise StateError(f"no whole trajectory: {error}") from error
    if not 0 <= position <= len(table):
        raise StateError(f"position {position} is not within the table's 0 to {len(table)}")
    trajectory = Trajectory(table, latents, generator, guidance, inpainting, position, outputs)
    return trajectory, bool(exact)


def _header(state: bytes) -> dict[str, Any]:
    """The text part of safetensors' header."""
    length = int.from_bytes(state[:8], "little")
    return dict(json.loads(state[8 : 8 + length]).get("__metadata__", {}))
