"""Contact sheets and a gallery page: people look at them when a job is done.

Both are made from records and images in the store, so they can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from jobs.folder.layout import JobFolder
from jobs.folder.records import WHOLE, Record, read_records
from jobs.formatting import counted
from jobs.report.gallery import GALLERY_LIMIT, gallery_page
from jobs.report.sheets import SHEET_LIMIT, SHEET_SIZE, contact_sheet
from jobs.task import Failure

__all__ = ["GALLERY_LIMIT", "SHEET_LIMIT", "SHEET_SIZE", "write_report", "write_unfinished_report"]


def write_report(
    folder: JobFolder,
    records: Iterable[Record],
    failures: Iterable[Failure] = (),
    *,
    planned: int | None = None,
) -> int:
    """Write `grid-0000.jpg`, … and `index.html`; returns the number of records.

    planned: images of the job; if there are fewer, page and sheets say that it is not finished.
    Earlier ones are replaced. Of a huge job the first `GALLERY_LIMIT` images are on the page and
    the first `SHEET_LIMIT` times `SHEET_SIZE` on sheets; `records` is read once, as it comes.
    """
    rest = iter(records)
    shown = list(islice(rest, GALLERY_LIMIT))
    total = len(shown) + sum(1 for _ in rest)
    failed = list(failures)
    note = None
    if planned is not None and total + len(failed) < planned:
        of = counted(planned, "picture")
        note = f"This job is not finished: it has {total:,} of {of} so far"

    def write(key: str, data: bytes) -> str:
        folder.put(key, data, overwrite=True)
        return folder.keys.path(key)

    sheets = [
        write(folder.keys.sheet(number), contact_sheet(folder, part, note))
        for number, part in enumerate(_sheets(shown))
    ]
    page = gallery_page(folder.keys.job_id, shown, total, failed, sheets, note)
    write(folder.keys.index, page.encode())
    return total


def write_unfinished_report(
    folder: JobFolder, failures: Sequence[Failure] = (), *, planned: int | None
) -> bool:
    """Write the report of a job that was stopped, from the records that there are; False if there
    is nothing to show.

    planned: images of the job, if that is known. Raises `StoreError`.
    """
    records = read_records(folder, needs=WHOLE)
    first = list(islice(records, 1))
    if not first and not failures:
        return False
    write_report(folder, chain(first, records), failures, planned=planned)
    return True


def _sheets(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    parts = [records[i : i + SHEET_SIZE] for i in range(0, len(records), SHEET_SIZE)]
    return parts[:SHEET_LIMIT]
