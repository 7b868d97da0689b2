"""Stores: where jobs keep their manifests, images and records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from jobs.errors import StoreError
from jobs.storage.base import ObjectInfo, Store
from jobs.storage.filesystem import LocalStore
from jobs.storage.verified import get_verified

if TYPE_CHECKING:
    from jobs.storage.s3.address import S3Access

__all__ = ["LocalStore", "ObjectInfo", "Store", "get_verified", "open_store"]


def open_store(url: str, *, endpoint: str | None = None, access: S3Access | None = None) -> Store:
    """The store at `url`: a folder's path, `file:///…` or `s3://bucket/prefix`.

    Nothing is created or contacted yet. endpoint: the server of an s3 address, `http://host:port`;
    None leaves it to AWS_ENDPOINT_URL and the AWS configuration. access: an s3 address's server
    together with the key to it, instead of all of these. Raises `StoreError`.
    """
    if not url.strip():
        raise StoreError("the store's address is empty; give a folder or s3://bucket/prefix")
    if "://" not in url:
        return _local(url, endpoint)
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        path = unquote(rest.removeprefix("localhost"))
        if not path.startswith("/"):
            raise StoreError(f"{url}: a file URL has three slashes: file:///folder")
        return _local(path, endpoint)
    if scheme == "s3":
        from jobs.storage.s3.address import S3Address, check_endpoint
        from jobs.storage.s3.store import S3Store  # boto3 takes a while to import

        address = S3Address.parse(url)
        return S3Store(address, endpoint if endpoint is None else check_endpoint(endpoint), access)
    # Without the rest of the address, which may hold a password.
    raise StoreError(
        f"no store is known for {scheme}://; give a folder, or s3://bucket/prefix with the "
        "server's address in AWS_ENDPOINT_URL"
    )


def _local(path: str, endpoint: str | None) -> LocalStore:
    if endpoint is not None:
        raise StoreError(f"{path!r} is a folder; only s3://bucket/prefix has an endpoint")
    try:
        if b"\0" in os.fsencode(path):
            raise ValueError("it holds a NUL")
        return LocalStore(Path(path).expanduser())
    except (ValueError, RuntimeError) as error:  # no such user's home, half a surrogate pair
        raise StoreError(f"{path!r} is no path: {error}") from error
