"""Stores: where jobs keep their manifests, images and records."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

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
        return LocalStore(url)
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"{url}: a file URL has three slashes: file:///folder")
        return LocalStore(unquote(parts.path))
    if parts.scheme == "s3":
        raise StoreError(f"{url}: this release has the local store only; give a folder")
    raise StoreError(f"{url}: no store is known for {parts.scheme}://; give a folder")
