"""Data sets that are plain files: pictures with captions beside them, or with one list of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jobs.dataset.columns import flat
from jobs.dataset.samples import Records, SampleReader
from jobs.dataset.scratch import scratch_folder
from jobs.folder.check import whole_image
from jobs.folder.records import Record
from jobs.storage import Store


@dataclass(frozen=True)
class Captions:
    """`name.txt` with the prompt beside each `name.png`, as trainers of LoRA read it.

    store: that the data set is in. prefix: of its keys.
    """

    store: Store
    prefix: str

    def write(self, records: Records, reader: SampleReader) -> None:
        """Write what is missing. Raises `StoreError`."""
        for record in _put_pictures(self.store, self.prefix, records(), reader):
            text = f"{_name(record).rpartition('.')[0]}.txt"
            self.store.put(self.prefix + text, record["prompt"].encode(), overwrite=True)


@dataclass(frozen=True)
class ImageFolder:
    """Hugging Face's imagefolder: `train/` with pictures and `metadata.jsonl`, a line for each with
    its `file_name`, the prompt as `text`, and the record.

    store, prefix: see `Captions`.
    """

    store: Store
    prefix: str

    def write(self, records: Records, reader: SampleReader) -> None:
        """Write what is missing, and the list. Raises `StoreError`."""
        prefix = f"{self.prefix}train/"
        with scratch_folder() as scratch:
            path = scratch / "metadata.jsonl"
            with path.open("w", encoding="ascii") as file:
                for record in _put_pictures(self.store, prefix, records(), reader):
                    line = json.dumps(_line(record), separators=(",", ":"), default=str)
                    file.write(f"{line}\n")
            self.store.put_file(f"{prefix}metadata.jsonl", path)


def _line(record: Record) -> dict[str, Any]:
    # Seeds as texts: readers make numbers of 64 bits with a sign of them, and some have more.
    seed = {"seed": str(record["seed"])} if "seed" in record else {}
    return {"file_name": _name(record), "text": record["prompt"], **flat(record), **seed}


def _name(record: Record) -> str:
    """Path of a picture inside of a job's `images/`."""
    return str(record["path"]).removeprefix("images/")


def _put_pictures(
    store: Store, prefix: str, records: Iterable[Record], reader: SampleReader
) -> Iterator[Record]:
    """Puts the pictures that are not there yet; the records of all that are, in order."""

    def is_there(record: Record) -> bool:
        return whole_image(store, prefix + _name(record), record["sha256"]) is not None

    for sample in reader.samples(records, is_there):
        if sample.data is not None:
            store.put(prefix + _name(sample.record), sample.data, overwrite=True)
        yield sample.record
