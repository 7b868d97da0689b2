"""Tables and data sets that a job has at its end, beside its images and records."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from jobs.dataset import Form, write_dataset
from jobs.dataset.table import write_job_table
from jobs.errors import NotFoundError
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, read_records

log = logging.getLogger(__name__)


def write_tables(folder: JobFolder, *, images: int, shards: int | None = None) -> None:
    """Write `records.parquet`, and the data set that the manifest asks for.

    images: of the job. shards: of it, where they are known (see `read_records`).
    A table that cannot be written, whatever the reason, is a warning: it says what the records say,
    and a job is to end. Raises `StoreError` if that happens to a data set, and `InputError` for one
    without pyarrow.
    """

    def records() -> Iterator[Record]:
        return _each_once(folder, images, shards)

    try:
        write_job_table(folder, records)
    except Exception as error:
        log.warning("there is no records.parquet: %s", error)
    form = dataset_of(folder)
    if form is not None:
        prefix = folder.keys.dataset(form)
        written = write_dataset(form, folder, records, folder.store, prefix)
        if written.damaged:
            log.warning("%s damaged images are not in the data set", len(written.damaged))


def _each_once(folder: JobFolder, images: int, shards: int | None) -> Iterator[Record]:
    """Records in the order of their indices, of those in the files of two shards the first."""
    last = -1
    needs = ("sha256", "prompt")
    for record in read_records(folder, needs=needs, images=images, shards=shards):
        if record["index"] > last:
            last = record["index"]
            yield record


def dataset_of(folder: JobFolder) -> Form | None:
    """The form of the data set that the job is to have; None if it is to have none."""
    try:
        dataset = read_job_file(folder).dataset
    except NotFoundError:  # a report of records alone
        return None
    return None if dataset is None else Form(dataset)
