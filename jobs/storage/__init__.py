"""Stores: where jobs keep their manifests, images and records."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from jobs.errors import StoreError
from jobs.storage.base import ObjectInfo, Store
from jobs.storage.keys import JobKeys
from jobs.storage.local import LocalStore

__all__ = ["JobKeys", "LocalStore", "ObjectInfo", "Store", "open_store"]


def open_store(url: str) -> Store:
    """The store at `url`: a folder's path, or `file:///…`. Nothing is created or contacted yet."""
    if not url.strip():
        raise StoreError("the store's address is empty; give a folder")
    if "://" not in url:
        return _local(url)
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        path = unquote(rest.removeprefix("localhost"))
        if not path.startswith("/"):
            raise StoreError(f"{url}: a file URL has three slashes: file:///folder")
        return _local(path)
    if scheme == "s3":
        raise StoreError(f"{url}: this release has the local store only; give a folder")
    raise StoreError(f"{url}: no store is known for {scheme}://; give a folder")


def _local(path: str) -> LocalStore:
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("it holds a NUL")
        return LocalStore(Path(path).expanduser())
    except (ValueError, RuntimeError) as error:  # no such user's home, half a surrogate pair
        raise StoreError(f"{path!r} is no path: {error}") from error
