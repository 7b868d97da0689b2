"""Tables of records as Parquet: one for a whole job, or with the images inside."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.dataset.columns import Columns, arrow, rows
from jobs.dataset.samples import Records, Sample
from jobs.dataset.scratch import scratch_folder
from jobs.folder.check import chunks
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_RECORDS = 10_000
"""Rows of a group, in a table of records alone."""

GROUP_IMAGES = 100
"""The same where rows have their images."""

IMAGE = "image"
"""The column of an image's file, as Hugging Face's data sets have it: its bytes and its name."""

CODEC = "zstd"


def write_job_table(folder: JobFolder, records: Records) -> None:
    """Write `records.parquet`, over an earlier one. records: gives all, twice.

    Raises `StoreError`, and `InputError` without pyarrow.
    """
    schema = Columns(records()).schema()
    with scratch_folder() as scratch:
        path = scratch / "records.parquet"
        write_records(path, records(), schema)
        folder.store.put_file(folder.keys.table, path)


def write_records(path: Path, records: Iterable[Record], schema: pa.Schema) -> None:
    """Write a Parquet file of records, a group of rows at a time."""
    with arrow().parquet.ParquetWriter(path, schema, compression=CODEC) as writer:
        for some in chunks(records, GROUP_RECORDS):
            writer.write_table(rows(some, schema))


def write_images(path: Path, samples: Iterable[Sample], schema: pa.Schema) -> None:
    """Write a Parquet file of images and records, which `datasets` reads as pictures."""
    pa = arrow()
    image = pa.field(IMAGE, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    features = {"info": {"features": {IMAGE: {"_type": "Image"}, **_features(schema)}}}
    whole = pa.schema([image, *schema], {"huggingface": json.dumps(features)})
    with pa.parquet.ParquetWriter(path, whole, compression=CODEC) as writer:
        for some in chunks(samples, GROUP_IMAGES):
            table = rows([sample.record for sample in some], schema)
            files = [
                {"bytes": sample.data, "path": sample.record["path"].rpartition("/")[2]}
                for sample in some
            ]
            writer.write_table(table.add_column(0, image, pa.array(files, image.type)))


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Columns as Hugging Face's data sets name their types."""
    types = {field.name: str(field.type).replace("double", "float64") for field in schema}
    return {name: {"dtype": type, "_type": "Value"} for name, type in types.items()}
