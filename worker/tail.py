"""The end of a job: its gallery, its contact sheets and, last of all, `done.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.records import WHOLE, Failure, Totals, done_document, read_records, write_done
from jobs.report import write_report
from jobs.storage import JobKeys, Store
from worker.record import software_versions
from worker.saved import SavedImages


def write_tail(
    store: Store, keys: JobKeys, failures: Sequence[Failure], model: Mapping[str, Any]
) -> None:
    """Reads all records of the job, which must be complete.

    model: named in `done.json` if no record names one, because all images failed. Raises
    `StoreError`.
    """
    totals = Totals()

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal model
        for record in read_records(store, keys, needs=WHOLE):
            totals.add(record)
            model = record["model"]
            yield record

    SavedImages(store, keys).drop_all()
    write_report(store, keys, counted(), failures)
    document = done_document(
        keys.job_id, totals, failed=len(failures), model=model, software=software_versions()
    )
    write_done(store, keys, document)
