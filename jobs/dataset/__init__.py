"""Data sets made of a job's images: the forms that training and analysis read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Protocol

from jobs.dataset.folders import Captions, ImageFolder
from jobs.dataset.image_tables import ImageTables
from jobs.dataset.samples import SampleReader, Written
from jobs.dataset.webdataset import WebDataset
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record
from jobs.storage import Store

__all__ = ["Form", "Written", "write_dataset"]


class Form(StrEnum):
    """A form of data sets."""

    WEBDATASET = "webdataset"  # tar files in img2dataset's layout, each with a table
    PARQUET = "parquet"  # tables with the images inside
    CAPTIONS = "captions"  # name.txt beside name.png
    HF = "hf"  # Hugging Face's imagefolder


class _Writer(Protocol):
    def write(self, records: Iterable[Record], reader: SampleReader) -> None: ...


_WRITERS: dict[Form, Callable[[Store, str], _Writer]] = {
    Form.WEBDATASET: WebDataset,
    Form.PARQUET: ImageTables,
    Form.CAPTIONS: Captions,
    Form.HF: ImageFolder,
}


def write_dataset(
    form: Form,
    folder: JobFolder,
    records: Iterable[Record],
    store: Store,
    prefix: str,
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write what is missing of a data set; each image is compared with its record's sha256.

    records: of the job, in order. store, prefix: where it goes, and how its keys begin.
    tick: called with the number of images looked at.
    Raises `StoreError`, `InputError` without pyarrow where a form needs it.
    """
    reader = SampleReader(folder, tick)
    _WRITERS[form](store, prefix).write(records, reader)
    return reader.written
