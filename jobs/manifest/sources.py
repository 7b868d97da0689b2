"""Where the bytes of an init image or mask come from: a local file, or an object in a bucket."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.formatting import quote, reason
from jobs.storage import Store

S3 = "s3://"


class Source(Protocol):
    """Something that a manifest names."""

    def read(self, limit_bytes: int) -> bytes:
        """Raises `ValueError`, whose text names the source, also if there is more than that."""
        ...


@dataclass(frozen=True)
class FileSource:
    """path: an existing regular file. text: as the manifest has it."""

    path: Path
    text: str

    def __str__(self) -> str:
        return self.text

    def read(self, limit_bytes: int) -> bytes:
        try:
            return read_file(self.path, limit_bytes)
        except OSError as error:
            raise ValueError(f"{quote(self.text)} cannot be read: {reason(error)}") from None


@dataclass(frozen=True)
class ObjectSource:
    """An object of the S3 server that the environment names (see `jobs.storage.s3.client`)."""

    bucket: Store
    key: str
    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str, open_bucket: Callable[[str], Store]) -> ObjectSource:
        """Source of `s3://bucket/key`; nothing is contacted. Raises `ValueError`."""
        bucket, _, key = text.removeprefix(S3).partition("/")
        if not key or key.endswith("/"):
            raise ValueError(f"{quote(text)} names no object; expected s3://bucket/key")
        try:
            return cls(open_bucket(S3 + bucket), key, text)
        except StoreError as error:
            raise ValueError(str(error)) from None

    def read(self, limit_bytes: int) -> bytes:
        try:
            return self.bucket.get(self.key, limit_bytes=limit_bytes)
        except NotFoundError:
            raise ValueError(f"{quote(self.text)} does not exist") from None
        except DamagedError:
            raise ValueError(
                f"{quote(self.text)} cannot be read: {too_large(limit_bytes)}"
            ) from None
        except StoreError as error:
            raise ValueError(f"{quote(self.text)} cannot be read: {error}") from None


def require_file(path: Path) -> None:
    """Raise `OSError` unless this is a regular file: reading a pipe or device may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError("it is a folder")
    if not stat.S_ISREG(mode):
        raise OSError("it is not a regular file")


def read_file(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a regular file. Raises `OSError`, also for one larger than the limit."""
    require_file(path)
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(too_large(limit_bytes))
    return data


def too_large(limit_bytes: int) -> str:
    return f"it is larger than {limit_bytes // 2**20} MiB"
