"""Parquet files with the images inside, which Hugging Face's `datasets` reads as pictures."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jobs.dataset.columns import Columns, arrow
from jobs.dataset.samples import SampleReader
from jobs.dataset.table import write_images
from jobs.errors import DamagedError, NotFoundError
from jobs.folder.records import Record
from jobs.storage import Store

PART_IMAGES = 500
"""Images of a file: about 250 MB of 512×512."""

MAX_PART_BYTES = 2 * 2**30


@dataclass(frozen=True)
class ImageTables:
    """Files `00000.parquet`, … of so many images each, by the images' indices.

    store, prefix: where, and how keys begin.
    """

    store: Store
    prefix: str
    part_images: int = PART_IMAGES

    def write(self, records: Iterable[Record], reader: SampleReader) -> None:
        """Write what is missing. records: in the order of their indices. Raises `StoreError`,
        `InputError` without pyarrow.
        """
        with tempfile.TemporaryDirectory(prefix="sdbatch-") as scratch:
            path = Path(scratch) / "part.parquet"
            for part, group in groupby(records, lambda r: r["index"] // self.part_images):
                own, key = list(group), f"{self.prefix}{part:05d}.parquet"
                if self._is_there(key, own):
                    reader.pass_over(len(own))
                    continue
                write_images(path, reader.samples(own), Columns(own).schema())
                self.store.put_file(key, path)

    def _is_there(self, key: str, records: list[Record]) -> bool:
        """True if the file has these images: put_file leaves none that is cut."""
        if self.store.head(key) is None:
            return False
        pa = arrow()
        try:
            data = self.store.get(key, limit_bytes=MAX_PART_BYTES)
            table = pa.parquet.read_table(io.BytesIO(data), columns=["sha256"])
        except (NotFoundError, DamagedError, pa.ArrowException, OSError):
            return False
        return table.column("sha256").to_pylist() == [record["sha256"] for record in records]
