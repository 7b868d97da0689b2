"""WebDataset: tar files of samples, in the layout of img2dataset.

    00000.tar      samples 000000000.png, .txt (the prompt), .json (the record), 000000001.png, …
    00000.parquet  the same records as a table: its twin, written after the tar is whole

Sample n of a job is always 000000000 + n in the tar n // 10,000, so a data set grows with its job,
and what is there and whole is not written again. A tar has the same bytes for the same records.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from jobs.dataset.columns import Columns, arrow
from jobs.dataset.samples import Records, Sample, SampleReader
from jobs.dataset.scratch import scratch_folder
from jobs.dataset.table import write_records
from jobs.errors import DamagedError, NotFoundError
from jobs.folder.records import Record
from jobs.storage import Store

SHARD_IMAGES = 10_000

MAX_TWIN_BYTES = 256 * 2**20

_TAR_SHA256 = "tar_sha256"  # in the twin's metadata


@dataclass(frozen=True)
class WebDataset:
    """A data set in a store. prefix: of its keys. shard_images: samples of a tar."""

    store: Store
    prefix: str
    shard_images: int = SHARD_IMAGES

    def write(self, records: Records, reader: SampleReader) -> None:
        """Write what is missing. records: gives all of the job. Raises `StoreError`,
        `InputError` without pyarrow.
        """
        with scratch_folder() as scratch:
            for shard, group in groupby(records(), lambda r: r["index"] // self.shard_images):
                own = list(group)
                if self._is_there(shard, own):
                    reader.pass_over(len(own))
                else:
                    self._write_shard(shard, own, reader, scratch)

    def twin_of(self, index: int) -> str:
        """Key of the table beside the tar that has this image."""
        return self._keys(index // self.shard_images)[1]

    def _write_shard(
        self, shard: int, records: list[Record], reader: SampleReader, scratch: Path
    ) -> None:
        path = scratch / "shard.tar"
        with path.open("wb") as file:
            taken = [s.record for s in self._tarred(file, shard, reader.samples(records))]
        tar, twin = self._keys(shard)
        self.store.delete(twin)  # of another tar
        self.store.put_file(tar, path)
        digest = self.store.sha256(tar)
        schema = Columns(taken).schema().with_metadata({_TAR_SHA256: digest or ""})
        write_records(scratch / "shard.parquet", taken, schema)
        self.store.put_file(twin, scratch / "shard.parquet")

    def _tarred(self, file: BinaryIO, shard: int, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The same samples, each once it is in the tar."""
        digits = len(str(self.shard_images - 1))
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                place = sample.record["index"] % self.shard_images
                name = f"{shard:05d}{place:0{digits}d}"
                text = json.dumps(sample.record, separators=(",", ":"))
                _add(tar, f"{name}.{sample.extension}", sample.data or b"")
                _add(tar, f"{name}.txt", sample.record["prompt"].encode())
                _add(tar, f"{name}.json", text.encode())
                yield sample

    def _is_there(self, shard: int, records: list[Record]) -> bool:
        """True if the tar has these images and is as it was when its twin was written."""
        tar, twin = self._keys(shard)
        try:
            data = self.store.get(twin, limit_bytes=MAX_TWIN_BYTES)
        except (NotFoundError, DamagedError):
            return False
        pa = arrow()
        try:
            table = pa.parquet.read_table(io.BytesIO(data), columns=["sha256"])
        except (pa.ArrowException, OSError):
            return False
        noted: dict[bytes, bytes] = table.schema.metadata or {}
        digest = noted.get(_TAR_SHA256.encode(), b"").decode(errors="replace")
        same = table.column("sha256").to_pylist() == [record["sha256"] for record in records]
        return same and digest != "" and self.store.sha256(tar) == digest

    def _keys(self, shard: int) -> tuple[str, str]:
        return f"{self.prefix}{shard:05d}.tar", f"{self.prefix}{shard:05d}.parquet"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file that says nothing of when and where it was added."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
