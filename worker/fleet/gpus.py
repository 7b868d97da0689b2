"""Which GPUs this machine has, and what each worker process is to see of them. No torch here: the
process that starts workers must not touch CUDA.

None of this was run on a machine with a GPU, as the authors had none. The tests use a stand-in for
`nvidia-smi`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.errors import InputError
from jobs.formatting import quote

VISIBLE = "CUDA_VISIBLE_DEVICES"

ALL = "all"
NONE = "none"

TIMEOUT_S = 60.0
"""For `nvidia-smi`, which wakes the driver up."""

_CHOICE = re.compile(r"\s*[0-9]{1,4}\s*(,\s*[0-9]{1,4}\s*)*")
_LISTED = re.compile(rb"GPU [0-9]+:")  # MIG devices are listed below their GPU, indented


@dataclass(frozen=True)
class Place:
    """Device of one worker process.

    name: for people, such as `gpu 0`. environ: to be set before the process starts.
    """

    name: str
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """devices: as CUDA_VISIBLE_DEVICES takes them. by: how that is known, for people."""

    devices: tuple[str, ...]
    by: str


def choose(gpus: str, environ: Mapping[str, str]) -> list[Place]:
    """The places of all worker processes. gpus: `all`, `none` for the CPU, or numbers as in `0,2`.

    Where CUDA_VISIBLE_DEVICES is set, these are counted, from 0, as any CUDA program counts them.
    Raises `InputError` if there is no such GPU, or none at all.
    """
    if gpus == NONE:
        return [Place("cpu", {VISIBLE: "", "SDBATCH_DEVICE": "cpu"})]
    if gpus != ALL and not _CHOICE.fullmatch(gpus):
        raise InputError(f"--gpus: found {quote(gpus)}, expected all, none or numbers as in 0,2")
    seen = _visible(environ)
    if not seen.devices:
        raise InputError(f"--gpus: no GPU was found: {seen.by}; --gpus none renders on the CPU")
    numbers = range(len(seen.devices)) if gpus == ALL else [int(n) for n in gpus.split(",")]
    for number in numbers:
        if number >= len(seen.devices):
            here = ", ".join(map(str, range(len(seen.devices))))
            raise InputError(f"--gpus: there is no GPU {number}, only {here} ({seen.by})")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--gpus: found {quote(gpus)}, expected each GPU once")
    return [_place(number, seen.devices[number], environ) for number in numbers]


def _place(number: int, device: str, environ: Mapping[str, str]) -> Place:
    # Not auto, which would quietly render on the CPU if torch cannot use the GPU.
    given = {VISIBLE: device, "SDBATCH_DEVICE": "cuda"}
    if VISIBLE not in environ and "CUDA_DEVICE_ORDER" not in environ:
        given["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi numbers them; CUDA does not
    return Place(f"gpu {number}", given)


def _visible(environ: Mapping[str, str]) -> _Seen:
    if VISIBLE not in environ:
        return _listed(environ)
    devices = []
    for device in environ[VISIBLE].split(","):
        if not device.strip() or device.strip().startswith("-"):
            break  # CUDA sees nothing of what comes after
        devices.append(device.strip())
    return _Seen(tuple(devices), f"{VISIBLE} is {quote(environ[VISIBLE])}")


def _listed(environ: Mapping[str, str]) -> _Seen:
    """By `nvidia-smi`, which comes with the driver."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return _Seen((), f"{VISIBLE} is not set, and there is no nvidia-smi in PATH to ask")
    command = [program, "--list-gpus"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Seen((), f"{program} gave no answer ({type(error).__name__})")
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).decode(errors="replace").split())
        return _Seen((), f"{program} failed: {said[:200] or f'exit code {done.returncode}'}")
    count = sum(1 for line in done.stdout.splitlines() if _LISTED.match(line))
    return _Seen(tuple(map(str, range(count))), f"by {program} --list-gpus")
