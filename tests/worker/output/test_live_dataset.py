"""A data set that grows with its job: whole tars only, each once, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pandas

from jobs.dataset.samples import SampleReader
from jobs.dataset.webdataset import WebDataset
from jobs.storage import LocalStore
from tests.jobs.dataset.made import a_job, file_digests, records
from worker.output import live_dataset
from worker.output.live_dataset import LiveDataset

IMAGES = 25


def settled_up_to(count: int):
    return lambda some: some.stop <= count


def test_tars_are_written_once_all_of_their_images_are_settled(tmp_path: Path):
    store = LocalStore(tmp_path)
    live = LiveDataset(a_job(store, 9), (8, 16, 24, 25), shard_images=10)
    live.refresh(settled_up_to(9), lambda: True)
    assert not (tmp_path / "job" / "webdataset").exists()
    folder = a_job(store, 14, start=9)
    live.refresh(settled_up_to(14), lambda: True)
    made = tmp_path / "job" / "webdataset"
    assert sorted(path.name for path in made.iterdir()) == ["00000.parquet", "00000.tar"]
    before = file_digests(made)
    a_job(store, IMAGES, start=14)
    live.refresh(settled_up_to(IMAGES), lambda: True)
    after = file_digests(made)
    assert sorted(after) == [f"0000{n}.{kind}" for n in (0, 1) for kind in ("parquet", "tar")]
    assert {name: after[name] for name in before} == before
    assert list(pandas.read_parquet(made / "00001.parquet")["index"]) == list(range(10, 20))
    # The end of the job adds what is left, and writes nothing twice.
    reader = SampleReader(folder)
    WebDataset(store, "job/webdataset/", shard_images=10).write(lambda: records(folder), reader)
    assert (reader.written.copied, reader.written.present) == (5, 20)


def test_one_that_is_broken_off_leaves_nothing_and_is_begun_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(live_dataset, "ASK_EVERY", 3)
    live = LiveDataset(a_job(LocalStore(tmp_path), 10), (8, 10), shard_images=10)
    asked: list[int] = []

    def once() -> bool:
        asked.append(1)
        return len(asked) < 4

    live.refresh(settled_up_to(10), once)
    assert not (tmp_path / "job" / "webdataset").exists()
    live.refresh(settled_up_to(10), lambda: True)
    assert (tmp_path / "job" / "webdataset" / "00000.tar").exists()
