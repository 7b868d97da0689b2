"""The order of writes, first writer wins, and records that survive crashes and continued runs."""

from __future__ import annotations

import datetime
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import StoreError, StoreFullError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import dump_lines, read_lines, read_records
from jobs.pictures.embedded import read_record
from jobs.storage import LocalStore
from tests.worker.samples import MODEL, RENDER, a_task, pixels, resaved
from worker.observer import Observer
from worker.output.finish import Finisher
from worker.output.record import image_record
from worker.output.stored import record_in_store

KEYS = JobKeys("job-1")
SHARD = KEYS.records(0)


class LoggingStore(LocalStore):
    """A local store that remembers the keys written, and fails on request."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []
        self.full = False

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        if self.full:
            raise StoreFullError("full")
        self.written.append(key)
        return super().put(key, data, overwrite=overwrite)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def store(tmp_path: Path) -> LoggingStore:
    return LoggingStore(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def finisher(store: LoggingStore, clock: Clock) -> Callable[..., Finisher]:
    def make(**options) -> Finisher:
        records = ShardRecords(JobFolder(store, KEYS), 0, clock=clock)
        now = datetime.datetime(2025, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
        return Finisher(
            JobFolder(store, KEYS), MODEL, records, Observer(), now=lambda: now, **options
        )

    return make


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_image_then_record(store: LoggingStore, finisher, format: str):
    one = finisher()
    task = a_task(3, seed=0, format=format)
    done = one.finish(pixels(), task, RENDER)
    one.records.close()
    assert not done.reused
    image, records = store.written
    assert records == SHARD
    line = done.record
    assert KEYS(line["path"]) == image
    assert line["spec"].startswith(image.rpartition("-")[2].partition(".")[0])
    assert line["sha256"] == hashlib.sha256(store.get(image)).hexdigest()
    assert line["bytes"] == len(store.get(image))
    assert line["finished"] == "2025-01-02T03:04:05+00:00"
    assert set(line["timings_s"]) == {"render", "encode", "put"}
    assert line["timings_s"]["render"] == 1.25
    embedded = read_record(store.get(image))
    assert embedded == image_record(task, MODEL, RENDER)
    assert line | embedded == line
    assert read_lines(store, SHARD) == [line]


def test_no_path_or_time_in_the_image(store: LoggingStore, finisher):
    key = KEYS(finisher().finish(pixels(), a_task(), RENDER).record["path"])
    data = store.get(key)
    assert b"/home" not in data
    assert b"secret" not in data
    assert b"2025" not in data


def test_first_writer_wins_and_is_reported(store: LoggingStore, finisher):
    first = finisher().finish(pixels(1), a_task(), RENDER)
    second = finisher().finish(pixels(2), a_task(), RENDER)
    assert (first.reused, second.reused) == (False, True)
    assert second.record["sha256"] == first.record["sha256"]
    assert second.record["path"] == first.record["path"]
    assert "timings_s" not in second.record


def test_overwrite(store: LoggingStore, finisher):
    first = finisher().finish(pixels(1), a_task(), RENDER)
    second = finisher(overwrite=True).finish(pixels(2), a_task(), RENDER)
    assert not second.reused
    assert second.record["sha256"] != first.record["sha256"]


@pytest.mark.parametrize(
    ("other", "flaw"),
    [
        (lambda one, two: two, "it was made from other parameters"),
        (lambda one, two: resaved(one, kept=False), "holds no record of sdbatch"),
        (lambda one, two: resaved(one, (8, 8)), "it has 8×8 pixels"),
    ],
    ids=["another", "edited", "resized"],
)
def test_a_whole_picture_of_somebody_elses_is_kept(store: LoggingStore, finisher, other, flaw):
    one = finisher()
    key = KEYS(one.finish(pixels(), a_task(), RENDER).record["path"])
    two = KEYS(one.finish(pixels(), a_task(prompt="other"), RENDER).record["path"])
    data = other(store.get(key), store.get(two))
    store.put(key, data, overwrite=True)
    with pytest.raises(StoreError, match=rf"in the way of this job's image: .*{flaw}.*--force"):
        finisher().finish(pixels(), a_task(), RENDER)
    assert store.get(key) == data
    assert not finisher(overwrite=True).finish(pixels(), a_task(), RENDER).reused


def flipped(data: bytes) -> bytes:
    """With one other bit among the pixels, which are most of the file."""
    place = data.index(b"IDAT") + 20
    return data[:place] + bytes([data[place] ^ 8]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no picture",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4],
        flipped,
        lambda data: bytes(100_000),
    ],
    ids=["empty", "text", "half", "end", "bit", "large"],
)
def test_what_is_damaged_is_replaced(store: LoggingStore, finisher, damage, monkeypatch):
    monkeypatch.setattr("worker.output.stored.MAX_RENDERED_BYTES", 90_000)
    line = finisher().finish(pixels(), a_task(), RENDER).record
    key = KEYS(line["path"])
    whole = store.get(key)
    store.put(key, damage(whole), overwrite=True)
    again = finisher().finish(pixels(), a_task(), RENDER)
    assert not again.reused
    assert again.record["sha256"] == line["sha256"]
    assert store.get(key) == whole


def test_what_others_replaced_meanwhile_is_kept(store: LoggingStore, finisher):
    """Two workers find the same damaged image; the second one to finish takes the first one's."""
    line = finisher().finish(pixels(1), a_task(), RENDER).record
    damage = finisher(overwrite=True).finish(pixels(2), a_task(), RENDER).record["sha256"]
    first = finisher().finish(pixels(1), a_task(), RENDER, damage=damage)
    second = finisher().finish(pixels(3), a_task(), RENDER, damage=damage)
    assert (first.reused, second.reused) == (False, True)
    assert first.record["sha256"] == second.record["sha256"] == line["sha256"]


def test_full_store_leaves_no_record(store: LoggingStore, finisher):
    one = finisher()
    one.finish(pixels(), a_task(0), RENDER)
    store.full = True
    with pytest.raises(StoreFullError):
        one.finish(pixels(), a_task(1), RENDER)
    store.full = False
    one.records.close()
    assert [line["index"] for line in read_lines(store, SHARD)] == [0]


def test_a_record_lost_in_a_crash_comes_from_the_image(store: LoggingStore, finisher):
    one = finisher()
    line = one.finish(pixels(), a_task(5), RENDER).record
    found = record_in_store(JobFolder(store, KEYS), KEYS(line["path"]), line["spec"])
    assert line == found | {name: line[name] for name in ("timings_s", "finished")}


def test_an_image_made_as_another_one_of_its_job_is_told_apart(store: LoggingStore, finisher):
    one = finisher()
    line = one.finish(pixels(), a_task(5), RENDER).record
    assert line["index"] == 5
    again = one.finish(pixels(), replace(a_task(5), index=6), RENDER)
    assert (again.reused, again.equal, again.record["index"]) == (True, True, 6)
    again = one.finish(pixels(), a_task(5), RENDER)
    assert (again.reused, again.equal) == (True, False)


def a_line(index: int, **more) -> dict:
    return {"index": index, "path": f"images/{index}.png", **more}


def test_records_are_written_every_few_seconds(store: LoggingStore, clock: Clock):
    with ShardRecords(JobFolder(store, KEYS), 0, interval_s=5.0, clock=clock) as records:
        records.add(a_line(2))
        clock.seconds += 4.9
        records.add(a_line(0))
        assert store.written == []
        clock.seconds += 0.2
        records.add(a_line(1))
        assert [line["index"] for line in read_lines(store, SHARD)] == [0, 1, 2]
        records.add(a_line(3))
        assert len(store.written) == 1
    assert [line["index"] for line in read_lines(store, SHARD)] == [0, 1, 2, 3]
    records.close()
    assert len(store.written) == 2


def test_nothing_to_record_writes_nothing(store: LoggingStore):
    ShardRecords(JobFolder(store, KEYS), 0).close()
    assert store.written == []


def test_a_continued_shard_keeps_earlier_lines(store: LoggingStore):
    with ShardRecords(JobFolder(store, KEYS), 0) as records:
        records.add(a_line(4, run=1))
        records.add(a_line(1, run=1))
    with ShardRecords(JobFolder(store, KEYS), 0) as records:
        records.add(a_line(1, run=2))
        records.add(a_line(0, run=2))
    assert read_lines(store, SHARD) == [a_line(0, run=2), a_line(1, run=2), a_line(4, run=1)]


def test_two_writers_of_one_shard_keep_each_others_lines(store: LoggingStore):
    slow, new = ShardRecords(JobFolder(store, KEYS), 0), ShardRecords(JobFolder(store, KEYS), 0)
    slow.add(a_line(0))
    new.add(a_line(1))
    new.close()
    slow.close()
    assert [line["index"] for line in read_lines(store, SHARD)] == [0, 1]


def test_a_slow_store_makes_two_writers_of_one_shard_lose_a_line(store: LoggingStore):
    """Why `worker.output.repair_records` looks before a job ends: both read, then both write."""
    one, other = ShardRecords(JobFolder(store, KEYS), 0), ShardRecords(JobFolder(store, KEYS), 0)
    one.add(a_line(0))
    other.add(a_line(1))
    get, both = store.get, threading.Barrier(2)

    def slow_get(key: str, **limit: int) -> bytes:
        try:
            return get(key, **limit)
        finally:
            both.wait(10)

    store.get = slow_get  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ShardRecords.flush, (one, other)))
    store.get = get  # type: ignore[method-assign]
    assert len(read_lines(store, SHARD)) == 1
    one.close()
    other.close()
    assert len(read_lines(store, SHARD)) == 1  # neither has anything left to write


def test_damaged_lines_are_left_out_when_others_are_written(store: LoggingStore):
    store.put(SHARD, dump_lines([a_line(0), {"index": 1}, a_line(2)]) + b"{half\n")
    with ShardRecords(JobFolder(store, KEYS), 0) as records:
        assert records.line(1) is None
        assert records.line(2) == a_line(2)
        records.add(a_line(3))
    assert [line["index"] for line in read_lines(store, SHARD)] == [0, 2, 3]


def test_a_failed_write_is_tried_again(store: LoggingStore):
    records = ShardRecords(JobFolder(store, KEYS), 0)
    records.add(a_line(0))
    store.full = True
    with pytest.raises(StoreFullError):
        records.flush()
    store.full = False
    records.close()
    assert read_lines(store, SHARD) == [a_line(0)]


def test_lines_may_come_from_many_threads(store: LoggingStore):
    with (
        ShardRecords(JobFolder(store, KEYS), 0, interval_s=0.0) as records,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda index: records.add(a_line(index)), range(200)))
    assert [line["index"] for line in read_lines(store, SHARD)] == list(range(200))


def test_adding_does_not_wait_for_the_store(store: LoggingStore, clock: Clock):
    entered, leave = threading.Event(), threading.Event()
    get = store.get

    def slow_get(key: str, **limit: int) -> bytes:
        entered.set()
        assert leave.wait(10)
        return get(key, **limit)

    records = ShardRecords(JobFolder(store, KEYS), 0, interval_s=5.0, clock=clock)
    records.add(a_line(0))
    store.get = slow_get  # type: ignore[method-assign]
    flushing = threading.Thread(target=records.flush)
    flushing.start()
    assert entered.wait(10)
    records.add(a_line(1))
    leave.set()
    flushing.join()
    records.close()
    assert [line["index"] for line in read_lines(store, SHARD)] == [0, 1]


def test_damaged_lines_are_named(store: LoggingStore):
    store.put(SHARD, dump_lines([a_line(0)]) + b"{half\n")
    with pytest.raises(StoreError, match=r"000000\.jsonl, line 2: no JSON object"):
        list(read_records(JobFolder(store, KEYS)))
