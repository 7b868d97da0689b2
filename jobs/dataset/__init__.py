"""Data sets made of a job's images: the forms that training and analysis read."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from jobs.dataset.folders import Captions, ImageFolder
from jobs.dataset.image_tables import ImageTables
from jobs.dataset.samples import Records, SampleReader, Written
from jobs.dataset.webdataset import WebDataset
from jobs.folder.layout import JobFolder
from jobs.storage import Store

__all__ = ["Form", "Written", "has_dataset", "write_dataset"]


class Form(StrEnum):
    """A form of data sets."""

    WEBDATASET = "webdataset"  # tar files in img2dataset's layout, each with a table
    PARQUET = "parquet"  # tables with the images inside
    CAPTIONS = "captions"  # name.txt beside name.png
    HF = "hf"  # Hugging Face's imagefolder


class _Writer(Protocol):
    def write(self, records: Records, reader: SampleReader) -> None: ...


_WRITERS: dict[Form, Callable[[Store, str], _Writer]] = {
    Form.WEBDATASET: WebDataset,
    Form.PARQUET: ImageTables,
    Form.CAPTIONS: Captions,
    Form.HF: ImageFolder,
}


def write_dataset(
    form: Form,
    folder: JobFolder,
    records: Records,
    store: Store,
    prefix: str,
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write what is missing of a data set; each image is compared with its record's sha256.

    records: gives those of the job that are wanted.
    store, prefix: where it goes, and how its keys begin.
    tick: called with the number of images looked at.
    Raises `StoreError`, `InputError` without pyarrow where a form needs it.
    """
    reader = SampleReader(folder, tick)
    _WRITERS[form](store, prefix).write(records, reader)
    return reader.written


def has_dataset(folder: JobFolder, *, images: int) -> bool:
    """True if a job's own data set is whole: its last tar has its twin. images: of the job."""
    prefix = folder.keys.dataset(Form.WEBDATASET)
    return folder.head(WebDataset(folder.store, prefix).twin_of(images - 1)) is not None
