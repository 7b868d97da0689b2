"""A model in a bucket: which of its objects are wanted, what the server says of them, and how they
come here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import ClientError
from s3transfer.exceptions import RetriesExceededError

from jobs.errors import ModelError, StoreError
from jobs.storage.s3.address import S3Address
from jobs.storage.s3.client import Clients
from jobs.storage.s3.errors import FAILURES, Failure, error_code, may_pass
from jobs.storage.s3.store import CHECK_RETRIES, RETRIES
from sd_core.weights.folder_layout import (
    FOLDERS,
    INDEX,
    SCHEDULER,
    TOKENIZER,
    TOKENIZER_FILES,
    weight_candidates,
)

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

T = TypeVar("T")

_CHANGED = ("PreconditionFailed", "412")  # a later part has another ETag than the first
_SHARD = re.compile(r".*-[0-9]+-of-[0-9]+\.(safetensors|bin)")


@dataclass(frozen=True)
class RemoteFile:
    """An object. name: its path below the model. etag: as the server writes it, empty if it does
    not.
    """

    name: str
    key: str
    etag: str
    size_bytes: int


class RemoteModel:
    """source: `s3://bucket/key` of a single file, or `s3://bucket/folder/` in the diffusers format.

    All methods raise `ModelError`, or `StoreError` for what may pass: the server is unreachable.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.is_folder = source.endswith("/")
        try:
            self._address = S3Address.parse(source)
        except StoreError as error:
            raise ModelError(str(error)) from None
        if not self.is_folder and not self._address.prefix:
            raise ModelError(
                f"{source}: expected s3://bucket/key of a file, or s3://bucket/folder/"
            )
        self.name = (self._address.prefix or self._address.bucket).rpartition("/")[2]
        self._clients = Clients(None)

    def files(self) -> list[RemoteFile]:
        """The objects that a model takes, as they are now."""
        return self._wanted() if self.is_folder else [self._head()]

    def download(self, file: RemoteFile, path: Path, count: Callable[[int], None]) -> None:
        """Writes an object's bytes to `path`, a part at a time. Raises `OSError` of the disk, too.

        count: called with the number of further bytes, from several threads.
        """
        with path.open("wb") as target:
            self._ask(
                "read",
                lambda client: client.download_fileobj(
                    self._address.bucket, file.key, target, Callback=count
                ),
                RETRIES,
            )

    def _head(self) -> RemoteFile:
        bucket, key = self._address.bucket, self._address.prefix

        def look(client: S3Client) -> RemoteFile:
            try:
                found = client.head_object(Bucket=bucket, Key=key)
            except ClientError:
                # The answer to HEAD has no body that says why; that to GET has.
                client.get_object(Bucket=bucket, Key=key)["Body"].close()
                raise
            return RemoteFile(self.name, key, found.get("ETag", ""), found["ContentLength"])

        file = self._ask("read", look)
        if not file.size_bytes:
            raise ModelError(f"{self.source}: it is empty; the address of a folder ends with a /")
        return file

    def _wanted(self) -> list[RemoteFile]:
        """Files of a diffusers folder that are read; there may be gigabytes of others."""
        found = {file.name: file for file in self._list("")}
        if INDEX not in found:
            raise ModelError(
                f"{self.source}: no {INDEX} is in it; expected a model in the diffusers format, or "
                "the address of a single file without a / at its end"
            )
        names = [INDEX, SCHEDULER, *(f"{TOKENIZER}/{name}" for name in TOKENIZER_FILES)]
        others = ((None, SCHEDULER.rpartition("/")[0]), (None, TOKENIZER))
        for component, folder in (*FOLDERS.items(), *others):
            found |= {file.name: file for file in self._list(f"{folder}/")}
            if component is not None:
                names += _component_names(component, folder, found)
        return [found[name] for name in names if name in found]

    def _list(self, folder: str) -> Iterator[RemoteFile]:
        """Files directly in a folder of the model. folder: empty, or with a slash at its end."""
        root = self._address.root

        def ask(client: S3Client) -> list[RemoteFile]:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._address.bucket, Prefix=root + folder, Delimiter="/"
            )
            return [
                RemoteFile(o["Key"].removeprefix(root), o["Key"], o.get("ETag", ""), o["Size"])
                for page in pages
                for o in page.get("Contents", [])
            ]

        yield from self._ask("list", ask)

    def _ask(self, action: str, call: Callable[[S3Client], T], retries: int = CHECK_RETRIES) -> T:
        """Return what `call` returns; its errors are explained."""
        try:
            client = self._clients.get(retries)
        except StoreError as error:  # of the configuration
            raise ModelError(f"{self.source}: {error}") from None
        failure = Failure(self._address, client.meta.endpoint_url, action)
        try:
            return call(client)
        except RetriesExceededError:
            raise StoreError(
                f"{self.source}: the connection to {client.meta.endpoint_url} broke again and again"
            ) from None
        except FAILURES as error:
            if isinstance(error, ClientError) and error_code(error) in (
                "PreconditionFailed",
                "412",
            ):
                raise StoreError(f"{self.source}: it changed while it was downloaded") from None
            explained = str(failure.explained(error))
            raise (StoreError if may_pass(error) else ModelError)(explained) from None


def _component_names(component: str, folder: str, found: dict[str, RemoteFile]) -> list[str]:
    """Its configuration, and those of its weights that a loader prefers."""
    names = [f"{folder}/config.json"]
    candidates = (f"{folder}/{name}" for name in weight_candidates(component))
    chosen = next((name for name in candidates if name in found), None)
    if chosen is not None:
        names.append(chosen)
        if chosen.endswith(".json"):
            names += [n for n in found if n.startswith(f"{folder}/") and _SHARD.fullmatch(n)]
    return names
