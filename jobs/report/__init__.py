"""Contact sheets and a gallery: people look at them when a job is done, and while it runs.

Both are made from records and images in the store, so they can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from jobs.folder.layout import JobFolder
from jobs.folder.records import WHOLE, Record, read_records
from jobs.report.captions import swept_fields
from jobs.report.gallery import GALLERY_LIMIT, gallery_page, unfinished_note
from jobs.report.live import REFRESH_S, LiveGallery
from jobs.report.shards import ChangedFiles, IndexWriter
from jobs.report.sheets import SHEET_LIMIT, SHEET_SIZE, contact_sheet
from jobs.task import Failure

__all__ = [
    "GALLERY_LIMIT",
    "REFRESH_S",
    "SHEET_LIMIT",
    "SHEET_SIZE",
    "LiveGallery",
    "write_report",
    "write_unfinished_report",
]


def write_report(
    folder: JobFolder,
    records: Iterable[Record],
    failures: Iterable[Failure] = (),
    *,
    planned: int | None = None,
) -> int:
    """Write `grid-0000.jpg`, …, the files of the gallery and, last, `index.html`; returns the
    number of records.

    planned: images of the job; if there are fewer, page and sheets say that it is not finished.
    Earlier ones are replaced. Of a huge job the first `GALLERY_LIMIT` images are in the gallery and
    the first `SHEET_LIMIT` times `SHEET_SIZE` on sheets; `records` is read once, as it comes.
    """
    files = ChangedFiles(folder)
    index = IndexWriter(folder, files)
    on_sheets: list[Record] = []
    total = 0
    for total, record in enumerate(records, 1):
        if total <= SHEET_LIMIT * SHEET_SIZE:
            on_sheets.append(record)
        if total <= GALLERY_LIMIT:
            index.add(record)
    shards = index.finish()
    failed = list(failures)
    note = unfinished_note(total, len(failed), planned)
    swept = swept_fields(on_sheets)
    sheets = [
        files.put(folder.keys.sheet(number), contact_sheet(folder, part, note, swept=swept))
        for number, part in enumerate(_sheets(on_sheets))
    ]
    page = gallery_page(folder.keys.job_id, shards, total, failed, sheets, note)
    files.put(folder.keys.index, page.encode())
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


def _sheets(records: Sequence[Record]) -> list[Sequence[Record]]:
    return [records[i : i + SHEET_SIZE] for i in range(0, len(records), SHEET_SIZE)]
