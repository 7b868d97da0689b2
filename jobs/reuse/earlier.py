"""Looks up pictures in the indexes of all jobs of a store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.errors import DamagedError, NotFoundError
from jobs.plan.observed import ObservedSpeed
from jobs.reuse.index import ENTRY, INDEX_FOLDER, INDEX_PREFIX, JobIndex, read_index, spec_number
from jobs.storage import Store
from jobs.storage.base import ObjectInfo

log = logging.getLogger(__name__)

MOST_JOBS = 10_000
"""Indexes that are read; those of other jobs, by name, are left out."""

MOST_PICTURES = 20_000_000
"""Pictures that are kept in mind, 28 bytes each."""

THREADS = 8


class _Table(NamedTuple):
    """Pictures of many jobs, sorted by spec digest: its first 8 bytes, the number of the shard, and
    the job's place in `jobs`, for each.
    """

    jobs: Sequence[str]
    specs: NDArray[np.uint64]
    shards: NDArray[np.uint32]
    places: NDArray[np.uint32]


class EarlierPictures:
    """Pictures of a store's jobs; threads may share it.

    Gives those of the last `refresh`, which reads only indexes that are new or of another size;
    before it there are none.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refreshing = threading.Lock()  # of the two fields below
        self._sizes: dict[str, int] = {}  # job -> bytes of its index
        self._indexes: dict[str, JobIndex] = {}
        self._table = _table_of({})

    def refresh(self) -> None:
        """Reads what is new. Raises `StoreError`."""
        with self._refreshing:
            # Quick where the store does not answer.
            if not self._store.folders(INDEX_FOLDER, 1):
                return
            listed = list(_within_bounds(self._store.list(INDEX_PREFIX)))
            sizes = {_job_of(info): info.size_bytes for info in listed}
            changed = [i for i in listed if i.size_bytes != self._sizes.get(_job_of(i))]
            if not changed and sizes.keys() == self._sizes.keys():
                return
            with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-index") as pool:
                read = dict(zip(map(_job_of, changed), pool.map(self._read, changed), strict=True))
            known = {job: index for job, index in self._indexes.items() if job in sizes}
            merged = {**known, **read}
            self._indexes = {job: index for job, index in merged.items() if index is not None}
            self._sizes = sizes
            self._table = _table_of(self._indexes)

    def find(self, spec: str) -> Iterator[tuple[str, int]]:
        """Job and shard of each picture whose spec digest may be this one: its first digits are.

        spec: 64 hex digits.
        """
        table, wanted = self._table, np.uint64(spec_number(spec))
        first = int(np.searchsorted(table.specs, wanted))
        last = int(np.searchsorted(table.specs, wanted, side="right"))
        for place in range(first, last):
            yield table.jobs[table.places[place]], int(table.shards[place])

    def digests_of(self, model: str) -> set[str]:
        """Digests of the weights that jobs of this store had under this name."""
        indexes = self._indexes.values()
        return {index.models[model] for index in indexes if model in index.models}

    def speeds(self) -> list[Sequence[ObservedSpeed]]:
        """How fast each job's images were made."""
        return [index.speeds for index in self._indexes.values()]

    def _read(self, info: ObjectInfo) -> JobIndex | None:
        try:
            return read_index(self._store, info.key)
        except NotFoundError:  # since it was listed
            return None
        except DamagedError as error:
            log.warning("left out: %s", error)
            return None


def _within_bounds(listed: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Indexes, as long as all of them together have no more than is kept in mind."""
    size_bytes = 0
    for number, info in enumerate(listed):
        size_bytes += info.size_bytes
        if number == MOST_JOBS or size_bytes > MOST_PICTURES * ENTRY.itemsize:
            log.warning("pictures of %s jobs are looked for, and of no others", f"{number:,}")
            return
        yield info


def _job_of(info: ObjectInfo) -> str:
    return info.key.removeprefix(INDEX_PREFIX)


def _table_of(indexes: Mapping[str, JobIndex]) -> _Table:
    specs, shards, places = (
        [np.empty(0, np.uint64)],
        [np.empty(0, np.uint32)],
        [np.empty(0, np.uint32)],
    )
    for place, index in enumerate(indexes.values()):
        specs.append(index.entries["spec"].astype(np.uint64))  # of this machine's byte order
        shards.append(index.entries["shard"].astype(np.uint32))
        places.append(np.full(len(index.entries), place, np.uint32))
    order = np.argsort(all_specs := np.concatenate(specs), kind="stable")
    return _Table(
        list(indexes),
        all_specs[order],
        np.concatenate(shards)[order],
        np.concatenate(places)[order],
    )
