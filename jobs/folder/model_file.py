"""`model.json`: the weights that a job's images are made with, fixed by the first worker of it. A
job of several models has a file for each of them.

A name of the model list may stand for other weights on another worker; the images of one name in a
job are never of two models.
"""

from __future__ import annotations

import json

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.errors import DamagedError, JobConflictError
from jobs.folder.job_file import Sha256
from jobs.folder.layout import JobFolder

_MAX_BYTES = 2**16


class Pin(TypedDict):
    """name: as records call the model. digest: sha256 of its weights, 64 hex digits."""

    name: str
    digest: Sha256


_PIN: TypeAdapter[Pin] = TypeAdapter(Pin)

_SHOWN = 16  # digits of a digest that tell two models apart for a person


def pin_model(
    folder: JobFolder, name: str, digest: str, *, of: str | None = None, overwrite: bool = False
) -> None:
    """Fixes the job's model, or checks that it is this one. overwrite: fix it again.

    digest: sha256 of the weights, 64 hex digits. of: which one, in a job of several: the model that
    tasks name. Raises `JobConflictError` if the job has another
    model, `StoreError`.
    """
    data = json.dumps({"name": name, "digest": digest}, indent=2).encode() + b"\n"
    if not folder.put(folder.keys.model(of), data, overwrite=overwrite):
        check_pin(folder, name, digest, of=of)


def check_pin(folder: JobFolder, name: str, digest: str, *, of: str | None = None) -> None:
    """Raises `JobConflictError` if the job has another model than this one, `NotFoundError` if it
    has none yet, `StoreError`.
    """
    pinned = read_pin(folder, of)
    if pinned["digest"] != digest:
        raise JobConflictError(
            f"{folder.url} is rendered with another model "
            f"({pinned['name']}, digest {pinned['digest'][:_SHOWN]}) than this one "
            f"({name}, digest {digest[:_SHOWN]})"
        )


def read_pin(folder: JobFolder, of: str | None = None) -> Pin:
    """The job's model. Raises `NotFoundError` before the first render, `StoreError`."""
    key = folder.keys.model(of)
    data = folder.get(key, limit_bytes=_MAX_BYTES)
    try:
        return _PIN.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DamagedError(
            f"{folder.url_of(key)} is damaged: {first['msg']}; delete it, and "
            "whoever renders next writes it anew"
        ) from None
