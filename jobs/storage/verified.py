"""Objects that have a digest, read and compared with it."""

from __future__ import annotations

import hashlib
import logging

from jobs.errors import DamagedError
from jobs.storage.base import Store

log = logging.getLogger(__name__)

TRIES = 2
"""How often an object is read: a bit may also flip on the way here."""


def get_verified(store: Store, key: str, sha256: str, *, limit_bytes: int) -> bytes:
    """The object's bytes, whose sha256 is as given (64 hex digits); read twice if need be.

    Raises `DamagedError` if it has other bytes, `NotFoundError` and `StoreError`.
    """
    for _ in range(TRIES):
        data = store.get(key, limit_bytes=limit_bytes)
        found = hashlib.sha256(data).hexdigest()
        if found == sha256:
            return data
        log.warning("%s has sha256 %s, not %s", store.url(key), found, sha256)
    raise DamagedError(f"{store.url(key)} is damaged: its sha256 is {found}, not {sha256}")
