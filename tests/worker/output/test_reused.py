"""Pictures of earlier jobs: taken where they are the same, whole, and as good as a new one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import StoreError
from jobs.folder.job_file import JobFile, write_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import Record, dump_lines, read_lines
from jobs.reuse import earlier_pictures
from jobs.reuse.index import write_index
from jobs.storage import LocalStore, Store, open_store
from jobs.task import Task, spec_digest
from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.observer import Observer
from worker.output.encoders import Encoder
from worker.output.finish import Finisher
from worker.output.reused import ReusedPictures
from worker.output.thumbnails import Thumbnails

JOB = JobFile("shapes", "demo", "1" * 64, images=2, quality=95)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return open_store(request.getfixturevalue("s3_address"))


def made(store: Store, *tasks: Task, job: JobFile = JOB, size: int = 64, render=RENDER) -> Record:
    """An earlier job that has made these; the record of the last."""
    folder = JobFolder(store, JobKeys("earlier"))
    write_job_file(folder, job)
    with ShardRecords(folder, 0) as records:
        finisher = Finisher(
            *(folder, MODEL, records, Observer(), job.quality),
            thumbnails=Thumbnails(folder, Encoder()),
        )
        for task in tasks:
            finisher.finish(pixels(task.index, size, size), task, render)
    write_index(folder)
    return read_lines(store, folder.keys.records(0))[-1]


def take(store: Store, task: Task, job: JobFile = JOB) -> Record | None:
    """The task's picture for a later job."""
    folder = JobFolder(store, JobKeys("later"))
    reused = ReusedPictures(folder, job, earlier_pictures(store), MODEL, {})
    return reused.take(task, spec_digest(task, MODEL.digest))


def test_the_same_bytes_under_the_new_name(store: Store):
    before = made(store, a_task(0), a_task(1, prompt="a star"))
    task = a_task(7, prompt="a star", name="stars/7")
    line = take(store, task)
    assert line is not None
    assert store.get(f"later/{line['path']}") == store.get(f"earlier/{before['path']}")
    assert line["path"] == f"images/stars/7-{before['spec'][:16]}.png"
    assert (line["index"], line["name"], line["reused_from"]) == (7, "stars/7", "earlier")
    same = ("spec", "sha256", "bytes", "prompt", "model", "device", "evaluations", "finished")
    assert {name: line[name] for name in same} == {name: before[name] for name in same}
    assert "timings_s" not in line


def test_another_picture_is_not_taken(store: Store):
    made(store, a_task(0))
    for other in (a_task(0, seed=43), a_task(0, prompt="a star"), a_task(0, format="webp")):
        assert take(store, other) is None
    assert list(store.list("later/")) == []


def test_labels_are_inside_of_the_file_so_they_must_be_the_same(store: Store):
    made(store, a_task(0, meta=(("sku", "1"),)))
    assert take(store, a_task(0, meta=(("sku", "2"),))) is None
    assert take(store, a_task(0)) is None
    assert take(store, a_task(0, meta=(("sku", "1"),))) is not None


def test_of_lossy_formats_the_quality_must_be_the_same(store: Store):
    made(store, a_task(0, format="webp"))
    assert take(store, a_task(0, format="webp"), replace(JOB, quality=80)) is None
    assert take(store, a_task(0, format="webp")) is not None


def test_the_quality_is_the_pictures_own_not_that_of_its_job_now(store: Store):
    made(store, a_task(0, format="jpeg"), job=replace(JOB, quality=80))
    later = replace(JOB, quality=95)
    write_job_file(JobFolder(store, JobKeys("earlier")), later, force=True)  # as by --force
    assert take(store, a_task(0, format="jpeg"), later) is None
    assert take(store, a_task(0, format="jpeg"), replace(JOB, quality=80)) is not None


def test_of_records_that_do_not_say_it_the_job_does(store: Store):
    line = made(store, a_task(0, format="jpeg"), job=replace(JOB, quality=80))
    del line["quality"]
    store.put(JobKeys("earlier").records(0), dump_lines([line]), overwrite=True)
    assert take(store, a_task(0, format="jpeg"), replace(JOB, quality=95)) is None
    assert take(store, a_task(0, format="jpeg"), replace(JOB, quality=80)) is not None


def test_an_exact_job_takes_only_what_was_made_so(store: Store):
    made(store, a_task(0), render=replace(RENDER, batch_rows=None))
    assert take(store, a_task(0)) is None
    assert take(store, a_task(0), replace(JOB, reproducible="fast")) is not None


def test_its_thumbnail_comes_along(store: Store):
    before = made(store, a_task(0, width=512, height=512), size=512)
    line = take(store, a_task(0, width=512, height=512))
    assert line is not None
    small = store.get(f"earlier/{before['thumbnail']}")
    assert store.get(f"later/{line['thumbnail']}") == small
    store.delete(f"later/{line['path']}")
    without = take(store, a_task(0, width=512, height=512), replace(JOB, thumbnails=False))
    assert without is not None
    assert "thumbnail" not in without


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_what_is_no_longer_whole_is_not_taken(store: Store, damage: str):
    key = f"earlier/{made(store, a_task(0))['path']}"
    data = store.get(key)
    if damage == "gone":
        store.delete(key)
    else:
        other = data[:-1] if damage == "cut" else data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
        store.put(key, other, overwrite=True)
    assert take(store, a_task(0)) is None
    assert list(store.list("later/")) == []


def test_a_jobs_own_pictures_and_strange_names_are_passed_over(store: Store):
    made(store, a_task(0))
    store.put(".pictures/later", store.get(".pictures/earlier"))
    store.delete(".pictures/earlier")
    assert take(store, a_task(0)) is None


def test_a_store_that_refuses_is_asked_no_more(tmp_path: Path, caplog, monkeypatch):
    store = LocalStore(tmp_path)
    made(store, a_task(0), a_task(1, seed=1))
    folder = JobFolder(store, JobKeys("later"))
    reused = ReusedPictures(folder, JOB, earlier_pictures(store), MODEL, {})

    def refuse(*arguments, **options):
        raise StoreError("403: no rights")

    monkeypatch.setattr(store, "head", refuse)
    for task in (a_task(0), a_task(1, seed=1)):
        assert reused.take(task, spec_digest(task, MODEL.digest)) is None
    assert caplog.text.count("403: no rights") == 1
