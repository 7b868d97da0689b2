"""The S3 store: a bucket, or a folder in one, at AWS or on any server that speaks S3.

An object is written by one request, so it is there whole or not at all. The first writer wins by
`If-None-Match: *`; where a server ignores that header, by looking first, which two writers at the
same moment can both pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from botocore.parsers import ResponseParserError

from jobs.errors import NotFoundError
from jobs.storage.base import (
    MAX_OBJECT_BYTES,
    MOST_FOLDERS,
    ObjectInfo,
    check_prefix,
    content_type,
    is_key,
    is_segment,
    too_large,
)
from jobs.storage.s3.address import S3Access, S3Address
from jobs.storage.s3.client import Clients, is_aws
from jobs.storage.s3.conditional_put import PUT_ID, honours_if_none_match, new_put_id, put_first
from jobs.storage.s3.errors import FAILURES, Failure, error_code, may_pass, status
from jobs.storage.s3.listing import as_listed, in_key_order

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import (
        GetObjectOutputTypeDef,
        ListObjectsV2OutputTypeDef,
        ListObjectsV2RequestTypeDef,
        PutObjectRequestTypeDef,
    )

T = TypeVar("T")

RETRIES = 10
"""How often boto3 tries a request again, with growing pauses."""

CHECK_RETRIES = 2
"""The same while the store is checked: a wrong address should be told within seconds."""

PATIENCE_S = 60.0
"""How long a server that has answered before may be unreachable, being restarted for instance.

boto3's retries alone do not last: all threads share a quota of them, which a short outage uses up.
"""

PAUSE_S = 1.0
"""Between tries during such an outage."""

READ_TRIES = 3
"""How often an object is asked for when the connection breaks in its middle."""

PAGE_KEYS = 1000
"""Objects listed by one request: the most that S3 allows."""

_log = logging.getLogger(__name__)


class S3Store:
    """Objects below `address`; all methods may be called from many threads.

    The object's sha256 is kept in its metadata, whose names are in lower case.
    """

    def __init__(
        self, address: S3Address, endpoint: str | None = None, access: S3Access | None = None
    ) -> None:
        """endpoint: `http://host:port`; None leaves it to the AWS configuration. access: instead
        of all that.
        """
        self.address = address
        self._clients = Clients(endpoint, access)
        self._probing = threading.Lock()
        self._conditional: bool | None = None  # whether If-None-Match is honoured, once known
        self._reached = False

    def __repr__(self) -> str:
        return f"S3Store({str(self.address)!r})"

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        request: PutObjectRequestTypeDef = {
            "Bucket": self.address.bucket,
            "Key": self.address.name(key),
            "Body": data,
            "ContentType": content_type(key),
            "Metadata": {"sha256": hashlib.sha256(data).hexdigest(), PUT_ID: new_put_id()},
        }
        if not overwrite and self._is_conditional():
            return self._ask("write", key, lambda client: put_first(client, request))
        if not overwrite and self.head(key) is not None:
            return False
        self._ask("write", key, lambda client: client.put_object(**request))
        return True

    def put_file(self, key: str, path: Path) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        extra = {"ContentType": content_type(key), "Metadata": {"sha256": digest}}
        bucket, name = self.address.bucket, self.address.name(key)

        def write(client: S3Client) -> None:
            try:
                client.upload_file(str(path), bucket, name, ExtraArgs=extra)
            except S3UploadFailedError as error:  # which hides what it is about
                raise error.__context__ or error from None

        self._ask("write", key, write)

    def sha256(self, key: str) -> str | None:
        info = self.head(key)
        return None if info is None else info.metadata.get("sha256")

    def get(self, key: str, *, limit_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        name = self.address.name(key)

        def read(client: S3Client) -> bytes:
            for tries_left in reversed(range(READ_TRIES)):
                answer = client.get_object(Bucket=self.address.bucket, Key=name)
                try:
                    return self._body(answer, key, limit_bytes)
                except (HTTPClientError, IncompleteReadError):  # boto3 itself retries no reading
                    if not tries_left:
                        raise
            raise AssertionError("the last try returns or raises")

        return self._ask("read", key, read)

    def _body(self, answer: GetObjectOutputTypeDef, key: str, limit_bytes: int) -> bytes:
        """Bytes of an answer, if they are within the limit. Raises `DamagedError`."""
        body, size_bytes = answer["Body"], answer.get("ContentLength")
        with contextlib.closing(body):  # of what is not read, the rest does not come
            if size_bytes is not None and size_bytes > limit_bytes:
                raise too_large(self.url(key), size_bytes, limit_bytes)
            # To the end, where boto3 compares what came with what the server had announced.
            chunks: list[bytes] = []
            left_bytes = limit_bytes + 1
            while chunk := body.read(left_bytes):
                chunks.append(chunk)
                left_bytes -= len(chunk)
                if not left_bytes:
                    raise too_large(self.url(key), None, limit_bytes)
        return b"".join(chunks)

    def copy(self, source: str, key: str) -> bool:
        # Few servers honour a condition on what a copy would write over.
        if self.head(key) is not None:
            return False
        bucket, name = self.address.bucket, self.address.name(source)

        def ask(client: S3Client) -> bool:
            try:
                client.copy_object(
                    Bucket=bucket,
                    Key=self.address.name(key),
                    CopySource={"Bucket": bucket, "Key": name},
                )
            except ClientError as error:
                if error_code(error) in ("NoSuchKey", "404"):
                    raise NotFoundError(f"{self.url(source)}: no such object") from None
                raise
            return True

        return self._ask("write", key, ask)

    def head(self, key: str) -> ObjectInfo | None:
        name = self.address.name(key)

        def look(client: S3Client) -> ObjectInfo | None:
            try:
                found = client.head_object(Bucket=self.address.bucket, Key=name)
            except ClientError as error:
                self._say_why(client, name, error)
                return None
            kept = {name: value for name, value in found["Metadata"].items() if name != PUT_ID}
            written = found.get("LastModified")
            modified_s = None if written is None else written.timestamp()
            return ObjectInfo(key, found["ContentLength"], kept, modified_s)

        return self._ask("read", key, look)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        root = self.address.root
        in_order = as_listed if is_aws(self._clients.get(RETRIES)) else in_key_order
        for found in in_order(self._pages, root + check_prefix(prefix)):
            key = found["Key"].removeprefix(root)
            if is_key(key):
                yield ObjectInfo(key, found["Size"])

    def folders(self, prefix: str, limit: int) -> Sequence[str]:
        start = self.address.root + check_prefix(prefix)

        def ask(client: S3Client) -> list[str]:
            page = client.list_objects_v2(
                Bucket=self.address.bucket,
                Prefix=start,
                Delimiter="/",
                MaxKeys=min(limit, MOST_FOLDERS),
            )
            return [folder["Prefix"] for folder in page.get("CommonPrefixes", [])]

        found = self._ask("list", "", ask, patient=False)
        names = (name.removeprefix(self.address.root).removesuffix("/") for name in found)
        return [name for name in names if is_segment(name)]

    def delete(self, key: str) -> None:
        name = self.address.name(key)

        def remove(client: S3Client) -> None:
            try:
                client.delete_object(Bucket=self.address.bucket, Key=name)
            except ClientError as error:
                if error_code(error) != "NoSuchKey":  # what some say where AWS says nothing
                    raise

        self._ask("delete", key, remove)

    def url(self, key: str) -> str:
        return f"s3://{self.address.bucket}/{self.address.name(key)}"

    def check_writable(self) -> None:
        with self._probing:
            self._probe(patient=False)

    def _is_conditional(self) -> bool:
        """True if the server honours If-None-Match; found out at the first call."""
        with self._probing:
            return self._probe() if self._conditional is None else self._conditional

    def _probe(self, patient: bool = True) -> bool:
        bucket, root = self.address.bucket, self.address.root
        self._conditional = self._ask(
            "write", "", lambda client: honours_if_none_match(client, bucket, root), patient
        )
        if not self._conditional:
            _log.warning(
                "%s: the server does not honour If-None-Match: two workers that write the same "
                "object at the same moment may both believe to be the first",
                self.address,
            )
        return self._conditional

    def _pages(self, prefix: str, delimiter: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        """The pages of one listing, each asked for when it is wanted."""
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self.address.bucket,
            "Prefix": prefix,
            "MaxKeys": PAGE_KEYS,
        }
        if delimiter:
            request["Delimiter"] = delimiter

        def ask(client: S3Client) -> ListObjectsV2OutputTypeDef:
            page = client.list_objects_v2(**request)
            if not page.keys() & {"Name", "IsTruncated"}:
                raise ResponseParserError("some page; it would pass for an empty listing")
            return page

        while True:
            page = self._ask("list", "", ask)
            yield page
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _say_why(self, client: S3Client, name: str, error: ClientError) -> None:
        """Raise what is behind an answer to HEAD, which has no body; nothing if no object is.

        A listing is refused for the same reason, and says it.
        """
        missing = status(error) == 404
        if missing and self._reached:  # so there is the bucket
            return
        try:
            client.list_objects_v2(Bucket=self.address.bucket, Prefix=name, MaxKeys=1)
        except ClientError as reason:
            if error_code(reason) != "AccessDenied":
                raise
        if not missing:
            raise error

    def _ask(self, action: str, key: str, call: Callable[[S3Client], T], patient: bool = True) -> T:
        """Return what `call` returns, its errors explained; a server that was there is waited for.

        action: read, write, delete or list. key: empty where no object is meant. patient: False
        gives up after few tries.
        """
        client = self._clients.get(RETRIES if patient else CHECK_RETRIES)
        failure = Failure(self.address, client.meta.endpoint_url, action, key)
        deadline = time.monotonic() + (PATIENCE_S if patient and self._reached else 0)
        while True:
            try:
                result = call(client)
            except FAILURES as error:
                if not may_pass(error) or time.monotonic() >= deadline:
                    raise failure.explained(error) from None
            else:
                self._reached = True
                return result
            time.sleep(PAUSE_S)
