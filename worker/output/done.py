"""The end of a job: its gallery, its contact sheets and, last of all, `done.json`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.errors import DamagedError, StoreError
from jobs.folder.done import Totals, done_document, write_done
from jobs.folder.layout import JobFolder
from jobs.folder.records import WHOLE, Record, read_records
from jobs.folder.suspended import SavedImages
from jobs.report import write_report
from jobs.reuse import index_pictures
from jobs.task import Failure
from worker.output.record import software_versions
from worker.output.repair_records import check_images, repair_records
from worker.output.tables import write_tables

log = logging.getLogger(__name__)


class IncompleteError(StoreError):
    """Some images of a job have neither a record nor failed."""


def end_job(
    folder: JobFolder,
    failures: Sequence[Failure],
    model: Mapping[str, Any],
    *,
    images: int,
) -> None:
    """Write the end of a job whose every image is made or failed. Records that are missing are
    written again first: another writer may have written over them, or the list of files lags.

    images: of the job.
    model: named in `done.json` if no record names one, because all images failed.
    Raises `BrokenImagesError` if images are gone or damaged, `StoreError`.
    """
    check_images(folder, images=images)
    try:
        _write_summary(folder, failures, model, images)
    except (IncompleteError, DamagedError) as error:
        log.warning("%s; looking again", error)
        shards = repair_records(
            folder, images=images, failed={failure.index for failure in failures}
        )
        _write_summary(folder, failures, model, images, shards)
    index_pictures(folder)


def _write_summary(
    folder: JobFolder,
    failures: Sequence[Failure],
    model: Mapping[str, Any],
    images: int,
    shards: int | None = None,
) -> None:
    """shards: of the job, where they are known (see `read_records`). Raises `IncompleteError`
    before `done.json` is written, `DamagedError` and `StoreError`.
    """
    totals = Totals()
    recorded = bytearray(images)

    def counted() -> Iterator[Record]:
        nonlocal model
        for record in read_records(folder, needs=WHOLE, images=images, shards=shards):
            if recorded[record["index"]]:  # in the files of two shards
                continue
            recorded[record["index"]] = 1
            totals.add(record)
            model = record["model"]
            yield record

    write_report(folder, counted(), failures)
    failed = {failure.index for failure in failures if failure.index < images}
    missing = recorded.count(0) - sum(not recorded[index] for index in failed)
    if missing:
        raise IncompleteError(
            f"{folder.url}: {missing:,} of {images:,} images have neither a record nor "
            "failed; run it again, or sdbatch resume"
        )
    write_tables(folder, images=images, shards=shards)
    SavedImages(folder).drop_all()
    document = done_document(
        folder.keys.job_id, totals, failed=len(failures), model=model, software=software_versions()
    )
    write_done(folder, document)
