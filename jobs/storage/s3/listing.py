"""Listing a bucket in the order of its keys, also where the server's own order is another.

S3 sorts names as bytes: "a-b" comes before "a/b". Servers that keep folders, SeaweedFS among them,
sort the names of each folder, where "a" comes before "a-b", and so list "a/b" before "a-b".
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef

    Pages = Callable[[str, str], Iterator[ListObjectsV2OutputTypeDef]]
    """(prefix, delimiter) -> the pages of that listing; an empty delimiter goes into folders."""


def as_listed(pages: Pages, prefix: str) -> Iterator[ObjectTypeDef]:
    """All objects whose name starts with `prefix`, in the server's order."""
    for page in pages(prefix, ""):
        yield from page.get("Contents", [])


def in_key_order(pages: Pages, prefix: str) -> Iterator[ObjectTypeDef]:
    """All objects whose name starts with `prefix`, by name, one page in memory per folder level.

    Asks once for each folder that holds more than a page, and once for each one in such a folder.
    """
    first = next(pages(prefix, ""))
    if not first.get("IsTruncated"):
        yield from sorted(first.get("Contents", []), key=lambda found: found["Key"])
        return
    folders: list[str] = []  # a heap: met already, but names that sort before may follow
    for page in pages(prefix, "/"):
        met: list[tuple[str, ObjectTypeDef | None]] = sorted(
            chain(
                ((found["Key"], found) for found in page.get("Contents", [])),
                (
                    (folder["Prefix"].removesuffix("/"), None)
                    for folder in page.get("CommonPrefixes", [])
                ),
            ),
            key=lambda entry: entry[0],
        )
        for name, found in met:
            # From here on, no name in either of the orders sorts before these folders.
            while folders and folders[0] < name:
                yield from in_key_order(pages, heapq.heappop(folders))
            if found is None:
                heapq.heappush(folders, f"{name}/")
            else:
                yield found
    while folders:
        yield from in_key_order(pages, heapq.heappop(folders))
