"""Addresses of S3 stores, `s3://bucket[/prefix]`, and of the servers behind them.

Whatever looks like a password in an address is refused, and never repeated in the message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from jobs.errors import StoreError
from jobs.storage.base import MAX_KEY_BYTES, check_key

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_NUMBERS = re.compile(r"\d+\.\d+\.\d+\.\d+")

_NO_SECRETS = (
    "holds a user name or password; leave them out: credentials come from AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or from ~/.aws"
)


@dataclass(frozen=True)
class S3Address:
    """A place in a bucket. prefix: empty, or folders without a slash at either end."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> S3Address:
        """Raises `StoreError`. Nothing is decoded: a key may hold any of `%`, `?` and `#`."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError("the s3 address names no bucket; expected s3://bucket/prefix")
        if not _is_bucket(bucket):
            # A secret may hold a slash, so a part of it may be what is taken for the prefix.
            if "@" in url:
                raise StoreError(f"the s3 address {_NO_SECRETS}; expected s3://bucket/prefix")
            if ":" in bucket:
                raise StoreError(
                    "the s3 address holds a colon before the prefix; expected s3://bucket/prefix, "
                    "and the server's own address in AWS_ENDPOINT_URL"
                )
            raise StoreError(
                f"s3://{bucket}: {bucket!r} is no bucket name: 3 to 63 lower-case letters, digits, "
                "dots and hyphens"
            )
        prefix = prefix.removesuffix("/")
        if prefix:
            try:
                check_key(prefix)
            except StoreError as error:
                raise StoreError(f"s3://{bucket}: as a prefix, {error}") from None
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".removesuffix("/")

    @property
    def root(self) -> str:
        """Beginning of the names of all the store's objects: empty, or it ends with a slash."""
        return f"{self.prefix}/" if self.prefix else ""

    def name(self, key: str) -> str:
        """The object's name in the bucket. Raises `StoreError` for a bad key."""
        name = self.root + check_key(key)
        if len(name.encode()) > MAX_KEY_BYTES:
            raise StoreError(
                f"key {key[:40]!r}… is not valid: longer than {MAX_KEY_BYTES} bytes with the "
                "store's prefix"
            )
        return name


@dataclass(frozen=True)
class S3Access:
    """A server and the key to it, for a store that does not go by the AWS configuration."""

    endpoint: str
    key_id: str
    secret: str = field(repr=False)


def _is_bucket(name: str) -> bool:
    return bool(_BUCKET.fullmatch(name)) and ".." not in name and not _NUMBERS.fullmatch(name)


def check_endpoint(endpoint: str) -> str:
    """`endpoint` itself, if it is like `http://host:port`; else `StoreError`."""
    expected = "expected http://host:port or https://host"
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        valid = valid and not re.search(r"\s", endpoint)
    except ValueError:  # half an IPv6 address, a port that is no number
        valid = False
    if "@" in endpoint:
        raise StoreError(f"the S3 endpoint {_NO_SECRETS}; {expected}")
    if not valid or parts.query or parts.fragment:
        raise StoreError(f"the S3 endpoint {endpoint!r} is not valid; {expected}")
    return endpoint
