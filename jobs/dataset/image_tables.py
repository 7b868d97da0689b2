"""Parquet files with the images inside, which Hugging Face's `datasets` reads as pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from jobs.dataset.columns import Columns, arrow
from jobs.dataset.samples import Records, SampleReader
from jobs.dataset.scratch import scratch_folder
from jobs.dataset.table import write_images
from jobs.errors import DamagedError, NotFoundError
from jobs.folder.records import Record
from jobs.storage import Store

if TYPE_CHECKING:
    import pyarrow as pa

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

    def write(self, records: Records, reader: SampleReader) -> None:
        """Write what is missing. records: gives all, in the order of their indices, twice: all
        files have the same columns. Raises `StoreError`, `InputError` without pyarrow.
        """
        schema = Columns(records()).schema()
        with scratch_folder() as scratch:
            path = scratch / "part.parquet"
            for part, group in groupby(records(), lambda r: r["index"] // self.part_images):
                own, key = list(group), f"{self.prefix}{part:05d}.parquet"
                if self._is_there(key, own, schema):
                    reader.pass_over(len(own))
                    continue
                write_images(path, reader.samples(own), schema)
                self.store.put_file(key, path)

    def _is_there(self, key: str, records: list[Record], schema: pa.Schema) -> bool:
        """True if the file has these images and columns: put_file leaves none that is cut."""
        if self.store.head(key) is None:
            return False
        pa = arrow()
        try:
            data = self.store.get(key, limit_bytes=MAX_PART_BYTES)
            file = pa.parquet.ParquetFile(io.BytesIO(data))
            table = file.read(columns=["sha256"])
        except (NotFoundError, DamagedError, pa.ArrowException, OSError):
            return False
        if file.schema_arrow.names[1:] != schema.names:  # the first is the image
            return False
        return table.column("sha256").to_pylist() == [record["sha256"] for record in records]
