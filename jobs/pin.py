"""`model.json`: the weights that a job's images are made with, fixed by whoever renders first.

A name of the model list may stand for other weights on another worker; the images of one job are
never of two models.
"""

from __future__ import annotations

import json

from jobs.errors import JobConflictError, StoreError
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type

_SHOWN = 16  # digits of a digest that tell two models apart for a person


def pin_model(
    store: Store, keys: JobKeys, name: str, digest: str, *, overwrite: bool = False
) -> None:
    """Fixes the job's model, or checks that it is this one. overwrite: fix it anew.

    digest: sha256 of the weights, 64 hex digits. Raises `JobConflictError` if the job has another
    model, `StoreError`.
    """
    data = json.dumps({"name": name, "digest": digest}, indent=2).encode() + b"\n"
    if not store.put(keys.model, data, overwrite=overwrite, content_type=content_type(keys.model)):
        check_pin(store, keys, name, digest)


def check_pin(store: Store, keys: JobKeys, name: str, digest: str) -> None:
    """Raises `JobConflictError` if the job has another model than this one, `NotFoundError` if it
    has none yet, `StoreError`.
    """
    pinned = read_pin(store, keys)
    if pinned["digest"] != digest:
        raise JobConflictError(
            f"{store.url(keys.prefix.rstrip('/'))} is rendered with another model "
            f"({pinned['name']}, digest {pinned['digest'][:_SHOWN]}) than this one "
            f"({name}, digest {digest[:_SHOWN]})"
        )


def read_pin(store: Store, keys: JobKeys) -> dict[str, str]:
    """`name` and `digest` of the job's model. Raises `NotFoundError` before the first render,
    `StoreError`.
    """
    try:
        pinned = json.loads(store.get(keys.model))
        return {"name": str(pinned["name"]), "digest": str(pinned["digest"])}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.url(keys.model)} is damaged: {error}") from error
