"""Where stores are, by their addresses: whether two are the same place, or one is in another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from jobs.errors import InputError
from jobs.storage import Store, open_store
from jobs.storage.folders import check_folder
from jobs.storage.s3.address import S3Address


def canonical_address(url: str) -> str:
    """The address, written in one way where several mean the same; a relative folder stays so.

    Raises `StoreError` for an s3 address that is none, or lost a slash; what else is no store,
    `open_store` says.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3":
        return str(S3Address.parse(url))
    if separator and scheme == "file":
        return str(Path(unquote(rest.removeprefix("localhost"))))
    if separator:
        return url
    check_folder(url)
    return str(Path(url))


def same_place(one: str, other: str) -> bool:
    """True if two addresses name the same store, also by way of links. Raises like
    `canonical_address`.
    """
    one, other = canonical_address(one), canonical_address(other)
    if one == other or "://" in one or "://" in other:
        return one == other
    try:
        return _real(one).samefile(_real(other))
    except (OSError, ValueError):  # one of them is not there yet
        return _real(one) == _real(other)


def is_within(url: str, place: str) -> bool:
    """True if a store is at `place` or in a folder below it. Raises like `canonical_address`."""
    url, place = canonical_address(url), canonical_address(place)
    if "://" in url or "://" in place:
        return url == place or url.startswith(f"{place}/")
    return _real(url).is_relative_to(_real(place))


def opener(places: Sequence[str]) -> Callable[[str], Store]:
    """`open_store`, for stores within `places` only; for all if there are none.

    Raises `StoreError` if one of the places is no address. What it gives raises `InputError` for
    other stores: their jobs cannot run here, and no store is broken.
    """
    for place in places:
        canonical_address(place)

    def open_allowed(url: str) -> Store:
        if places and not any(is_within(url, place) for place in places):
            raise InputError(
                f"the store {url} is none that this worker may use; SDBATCH_STORES allows "
                f"{', '.join(places)}"
            )
        return open_store(url)

    return open_allowed


def _real(path: str) -> Path:
    try:
        return Path(os.path.realpath(Path(path).expanduser()))
    except (RuntimeError, ValueError):  # no path, as `open_store` says
        return Path(path)
