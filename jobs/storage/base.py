"""Store: the protocol of every store, and the rules for its keys.

A store is a flat map from keys to bytes, like a bucket. Its one promise beyond that: `put` without
`overwrite` lets the first writer win, also between processes and machines. Jobs lean on it: two
workers may render the same image, one of them keeps it.

Stores may be made of folders, so no key is also the folder of another: not `a` beside `a/b`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jobs.errors import DamagedError, StoreError

MAX_SEGMENT_BYTES = 255
"""Longest part of a key between slashes, in UTF-8: what file systems allow for a file name."""

MAX_KEY_BYTES = 1024
"""Longest key in UTF-8: what S3 allows."""

MAX_OBJECT_BYTES = 256 * 2**20
"""Most that is ever read of one object: no kind of object that jobs are made of is larger."""

TEMPORARY_PREFIX = ".tmp-"
"""Names of what stores write for themselves start like this; keys may not."""

MOST_FOLDERS = 1000
"""Names that `Store.folders` gives: one page of S3's."""

# Backslashes, control characters, and halves of surrogate pairs, which have no UTF-8.
_FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class ObjectInfo:
    """One object as `head` and `list` report it.

    metadata: what the store notes of it, such as its `sha256`; the local one notes nothing.
    modified_s: when it was written, Unix time by the store's clock; None where `list` or a server
    does not say.
    """

    key: str
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    modified_s: float | None = field(default=None, compare=False)


class Store(Protocol):
    """A flat map from keys to bytes. Every method raises `StoreError` if the store fails."""

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        """Write an object whole or not at all; True if it was written. Its content type, where the
        store keeps one, is by the key's ending (`content_type`).

        False means that the key was there already and `overwrite` is False: the first writer wins.
        Readers see the old bytes or the new ones, never a part.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write an object of any size from a file, whole or not at all, over what is there."""
        ...

    def sha256(self, key: str) -> str | None:
        """The digest of an object of any size, 64 hex digits: as the store noted it when it was
        put, else by reading it. None if there is none, or nothing was noted.
        """
        ...

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """The object's bytes. Raises `NotFoundError`.

        limit_bytes: more than any object of this kind has. One that is larger raises
        `DamagedError`, and no more than the limit is read of it. Stores take `MAX_OBJECT_BYTES` by
        themselves; a caller that knows the kind says less.
        """
        ...

    def copy(self, source: str, key: str) -> bool:
        """Write an object that is the same as another one, without its bytes passing through this
        process where the store can do so; True if it was written.

        False means that the key was there already. Two writers at the same moment may both be
        told True. Raises `NotFoundError` if there is no `source`.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Facts about the object without reading it; None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in the order of their keys, one at a time."""
        ...

    def folders(self, prefix: str, limit: int) -> Sequence[str]:
        """Names of folders directly in the store that start with `prefix`, without a slash, at most
        so many; quick whatever they hold. A limit over 1,000 counts as that.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens if there is none."""
        ...

    def url(self, key: str) -> str:
        """Where a person finds the object: a path or an address."""
        ...

    def check_writable(self) -> None:
        """Raise `StoreError` now rather than after the first hour of rendering."""
        ...


def is_segment(name: str) -> bool:
    """True if `name` may be one part of a key, between two slashes."""
    return _flaw(name) is None


def check_key(key: str) -> str:
    """`key` itself, if it is a relative path with forward slashes; else `StoreError`."""
    for segment in key.split("/"):
        flaw = _flaw(segment)
        if flaw is not None:
            raise StoreError(f"key {key!r} is not valid: {flaw}")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StoreError(f"key {key[:40]!r}… is not valid: longer than {MAX_KEY_BYTES} bytes")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself, if keys may start with it; else `StoreError`. What follows its last slash
    may be any part of a name.
    """
    folder, _, _ = prefix.rpartition("/")
    if folder:
        check_key(folder)
    return prefix


def is_key(key: str) -> bool:
    """True if `key` is one; a bucket or a folder may hold other objects, too."""
    return all(map(is_segment, key.split("/")))


def too_large(where: str, size_bytes: int | None, limit_bytes: int) -> DamagedError:
    """The error of `Store.get`. where: the object, for people. size_bytes: None if not known."""
    found = "more" if size_bytes is None else f"{size_bytes:,} bytes, more"
    return DamagedError(
        f"{where} has {found} than the {limit_bytes:,} bytes that may be there: it is damaged, or "
        "something else"
    )


def _flaw(segment: str) -> str | None:
    """Flaw of this part of a key; None if there is none."""
    if not segment:
        return "it is empty, starts or ends with a slash, or has two slashes in a row"
    if segment in (".", ".."):
        return f"{segment!r} would leave its folder"
    if segment.startswith(TEMPORARY_PREFIX):
        return f"names that start with {TEMPORARY_PREFIX} are the store's own"
    forbidden = _FORBIDDEN.search(segment)
    if forbidden:
        return f"{forbidden[0]!r} is not allowed"
    if len(segment.encode()) > MAX_SEGMENT_BYTES:
        return f"a part of it is longer than {MAX_SEGMENT_BYTES} bytes"
    return None


_CONTENT_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "gz": "application/gzip",
    "yaml": "application/yaml",
    "tar": "application/x-tar",
    "parquet": "application/vnd.apache.parquet",
}


def content_type(key: str) -> str:
    """The media type that a browser should be told for this key."""
    extension = key.rpartition(".")[2]
    return _CONTENT_TYPES.get(extension, "application/octet-stream")
