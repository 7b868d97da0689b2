"""Images of a job with their records, whole ones only, for all forms of data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from jobs.folder.check import AT_ONCE, THREADS, chunks, whole_image
from jobs.folder.layout import JobFolder
from jobs.folder.records import Record

Records = Callable[[], Iterable[Record]]
"""Gives a job's records in the order of their indices, each time from the first on."""


@dataclass(frozen=True)
class Sample:
    """An image and its record. data: the image file, which is what the record says; None where the
    data set has it already.
    """

    record: Record
    data: bytes | None

    @property
    def extension(self) -> str:
        """png, jpg or webp."""
        return self.record["path"].rpartition(".")[2]


@dataclass
class Written:
    """Result of writing a data set. copied, present: images that were written, and that were there
    already. damaged: paths of images that are not as their record says, which are left out.
    """

    copied: int = 0
    present: int = 0
    bytes_copied: int = 0
    damaged: list[str] = field(default_factory=list)


class SampleReader:
    """Reads a job's images ahead of their use, and counts them.

    written: what became of them so far. tick: called with the number of images taken.
    """

    def __init__(self, folder: JobFolder, tick: Callable[[int], None] = lambda done: None) -> None:
        self._folder = folder
        self._tick = tick
        self._taken = 0
        self.written = Written()

    def samples(
        self,
        records: Iterable[Record],
        is_there: Callable[[Record], bool] = lambda record: False,
    ) -> Iterator[Sample]:
        """The images of these records in their order, each compared with its sha256. Those that are
        not whole are noted as damaged. is_there: True for one that need not be read; called from
        threads. Raises `StoreError`.
        """

        def read(record: Record) -> bytes | None:
            store, key = self._folder.store, self._folder.keys(record["path"])
            return b"" if is_there(record) else whole_image(store, key, record["sha256"])

        with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-dataset") as pool:
            for chunk in chunks(records, AT_ONCE):
                for record, data in zip(chunk, pool.map(read, chunk), strict=True):
                    self._count(1)
                    if data is None:
                        self.written.damaged.append(record["path"])
                    elif data:
                        self.written.copied += 1
                        self.written.bytes_copied += len(data)
                        yield Sample(record, data)
                    else:
                        self.written.present += 1
                        yield Sample(record, None)

    def pass_over(self, images: int) -> None:
        """Counts images that the data set has already."""
        self.written.present += images
        self._count(images)

    def _count(self, images: int) -> None:
        self._taken += images
        self._tick(self._taken)
