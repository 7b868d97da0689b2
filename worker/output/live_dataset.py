"""The data set of a job that goes on: a tar is written once all of its images are settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from jobs.dataset.samples import SampleReader
from jobs.dataset.webdataset import SHARD_IMAGES, WebDataset
from jobs.folder.layout import JobFolder
from jobs.folder.records import read_records

ASK_EVERY = 100
"""Images between two questions whether to go on."""


class _BrokenOffError(Exception):
    """The writing of a tar is not to go on; nothing of it is in the store."""


@dataclass
class LiveDataset:
    """Remembers which tars were written. Not for several threads.

    images: of the job. shard_images: of a tar.
    """

    folder: JobFolder
    images: int
    shard_images: int = SHARD_IMAGES
    _written: set[int] = field(default_factory=set)

    def refresh(self, is_settled: Callable[[range], bool], go_on: Callable[[], bool]) -> None:
        """Write the tars whose images are all settled, and that this has not written before; the
        last one is left to the job's end.

        is_settled: whether all of these images are. go_on: asked now and then; False ends it.
        Raises `StoreError`, and `InputError` without pyarrow.
        """
        for shard in range(self.images // self.shard_images):
            start = shard * self.shard_images
            if shard in self._written or not is_settled(range(start, start + self.shard_images)):
                continue
            try:
                self._write(shard, go_on)
            except _BrokenOffError:
                return
            self._written.add(shard)

    def _write(self, shard: int, go_on: Callable[[], bool]) -> None:
        def ask(done: int) -> None:
            if done % ASK_EVERY == 0 and not go_on():
                raise _BrokenOffError

        if not go_on():
            raise _BrokenOffError
        needs = ("sha256", "prompt")
        records = (
            record
            for record in read_records(self.folder, needs=needs, images=self.images)
            if record["index"] // self.shard_images == shard
        )
        own = list(islice(records, self.shard_images))
        dataset = WebDataset(
            self.folder.store, self.folder.keys.dataset("webdataset"), self.shard_images
        )
        dataset.write(own, SampleReader(self.folder, ask))
