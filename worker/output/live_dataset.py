"""The data set of a job that goes on: a tar is written once all of its images are settled."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jobs.dataset import Form
from jobs.dataset.samples import SampleReader
from jobs.dataset.webdataset import SHARD_IMAGES, WebDataset
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record, read_lines

ASK_EVERY = 100
"""Images between two questions whether to go on."""


class _BrokenOffError(Exception):
    """The writing of a tar is not to go on; nothing of it is in the store."""


@dataclass
class LiveDataset:
    """Remembers which tars were written. Not for several threads.

    shard_ends: of the job, the index after the last image of each shard. shard_images: of a tar.
    """

    folder: JobFolder
    shard_ends: Sequence[int]
    shard_images: int = SHARD_IMAGES
    _written: set[int] = field(default_factory=set)

    def refresh(self, is_settled: Callable[[range], bool], go_on: Callable[[], bool]) -> None:
        """Write the tars whose images are all settled, and that this has not written before; the
        last one is left to the job's end.

        is_settled: whether all of these images are. go_on: asked now and then; False ends it.
        Raises `StoreError`, and `InputError` without pyarrow.
        """
        images = self.shard_ends[-1] if self.shard_ends else 0
        for shard in range(images // self.shard_images):
            own = range(shard * self.shard_images, (shard + 1) * self.shard_images)
            if shard in self._written or not is_settled(own):
                continue
            try:
                self._write(own, go_on)
            except _BrokenOffError:
                return
            self._written.add(shard)

    def _write(self, images: range, go_on: Callable[[], bool]) -> None:
        def ask(done: int) -> None:
            if done % ASK_EVERY == 0 and not go_on():
                raise _BrokenOffError

        found: dict[int, Record] = {}
        first = bisect_left(self.shard_ends, images.start + 1)
        last = bisect_left(self.shard_ends, images.stop)
        for number in range(first, last + 1):
            ask(0)
            for line in read_lines(self.folder.store, self.folder.keys.records(number)):
                if line["index"] in images and "sha256" in line and "prompt" in line:
                    found.setdefault(line["index"], line)
        records = [found[index] for index in sorted(found)]
        prefix = self.folder.keys.dataset(Form.WEBDATASET)
        dataset = WebDataset(self.folder.store, prefix, self.shard_images)
        dataset.write(lambda: records, SampleReader(self.folder, ask))
