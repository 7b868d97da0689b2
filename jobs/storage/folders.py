"""Folders apart from addresses: what pathlib makes of `s3://bucket/jobs` is no folder."""

from __future__ import annotations

from pathlib import PurePath

from jobs.errors import StoreError

_SCHEMES = ("s3:", "file:", "gs:", "http:", "https:")


def check_folder(path: PurePath | str) -> None:
    """Raise `StoreError` for an address that lost a slash, as in `s3:/bucket/jobs`.

    It would become a folder named `s3:`, with pictures that are looked for in a bucket.
    """
    for part in PurePath(path).parts:
        if part.lower() in _SCHEMES:
            # Without the rest of the address, which may hold a password.
            raise StoreError(
                f"a folder named {part} is an address that lost a slash (pathlib takes it away); "
                f"give {part}// as a text"
            )
