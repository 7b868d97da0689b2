"""What people look at when a job is done: contact sheets and a gallery page.

Both are made from records and images in the store, so they can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from jobs.records import Failure, Record
from jobs.report.gallery import GALLERY_LIMIT, gallery_page
from jobs.report.sheets import SHEET_LIMIT, SHEET_SIZE, contact_sheet
from jobs.storage import JobKeys, Store
from jobs.storage.keys import content_type

__all__ = ["GALLERY_LIMIT", "SHEET_LIMIT", "SHEET_SIZE", "write_report"]


def write_report(
    store: Store,
    keys: JobKeys,
    records: Iterable[Record],
    failures: Iterable[Failure] = (),
) -> int:
    """Write `grid-0000.jpg`, … and `index.html`; returns the number of records.

    Earlier ones are replaced. Of a huge job the first `GALLERY_LIMIT` images are on the page and
    the first `SHEET_LIMIT` times `SHEET_SIZE` on sheets; `records` is read once, as it comes.
    """
    rest = iter(records)
    shown = list(islice(rest, GALLERY_LIMIT))
    total = len(shown) + sum(1 for _ in rest)

    def write(key: str, data: bytes) -> str:
        store.put(key, data, overwrite=True, content_type=content_type(key))
        return keys.path(key)

    sheets = [
        write(keys.sheet(number), contact_sheet(store, keys, part))
        for number, part in enumerate(_sheets(shown))
    ]
    write(keys.index, gallery_page(keys.job_id, shown, total, failures, sheets).encode())
    return total


def _sheets(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    parts = [records[i : i + SHEET_SIZE] for i in range(0, len(records), SHEET_SIZE)]
    return parts[:SHEET_LIMIT]
