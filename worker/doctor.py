"""Checks of what rendering needs: torch, a device, models, room for what is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jobs.doctor.finding import Finding, State
from jobs.errors import ExitCode, ModelError
from jobs.formatting import size
from jobs.settings import Settings

LEAST_FREE_BYTES = 10 * 2**30
"""Room below which a cache may fill up: a model and what is made of it take several GB."""


def checks(settings: Settings) -> Iterator[Finding]:
    """Findings about this machine as a worker. It is an entry point of `sdbatch.checks`."""
    try:
        import torch  # noqa: F401
    except ImportError:
        advice = "pip install 'sdbatch[worker]' renders here; submitting does without"
        yield Finding("renderer", State.LOOK, "torch is not installed", advice)
        return
    yield _device(settings)
    for name in settings.models:
        yield _model(name, settings)
    yield _cache(settings.cache)


def _device(settings: Settings) -> Finding:
    import torch

    from sd_core.device import device_kind, own_memory, resolve_device, resolve_dtype

    try:
        device = resolve_device(settings.device)
        dtype = str(resolve_dtype(settings.dtype, device)).removeprefix("torch.")
        memory = size(own_memory(device))
    except (RuntimeError, ValueError) as error:
        advice = "see SDBATCH_DEVICE, and the driver and torch of this machine"
        return Finding("device", State.BAD, str(error), advice, ExitCode.MODEL)
    found = f"{device_kind(device)}, {memory} of memory, {dtype}, torch {torch.__version__}"
    if device.type == "cpu" and settings.device == "auto":
        advice = "fine for the demo model; a real one takes minutes an image on a CPU"
        return Finding("device", State.LOOK, found, advice)
    return Finding("device", State.GOOD, found)


def _model(name: str, settings: Settings) -> Finding:
    from worker.checkpoint.load import ModelChoice, check_there

    choice = ModelChoice.of(name, settings.models[name], settings)
    try:
        check_there(choice)
    except ModelError as error:
        return Finding(f"model {name}", State.BAD, str(error), "mend its path", ExitCode.MODEL)
    return Finding(f"model {name}", State.GOOD, choice.source)


def _cache(folder: Path) -> Finding:
    try:
        path = folder.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path).free
        writable = os.access(path, os.W_OK)
    except (OSError, RuntimeError) as error:
        return _no_cache(f"{folder}: {error}")
    if not writable:
        return _no_cache(f"{path} is not writable")
    found = f"{path}, {size(free)} free"
    if free < LEAST_FREE_BYTES:
        return Finding("cache", State.LOOK, found, "a model takes several GB there")
    return Finding("cache", State.GOOD, found)


def _no_cache(found: str) -> Finding:
    return Finding("cache", State.BAD, found, "set SDBATCH_CACHE", ExitCode.MODEL)
