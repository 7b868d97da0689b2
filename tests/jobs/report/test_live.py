"""The gallery of a job that goes on: up to date, and as little work as there is news."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.folder.layout import JobFolder
from jobs.folder.records import dump_lines
from jobs.report import live, shards, write_report
from jobs.report.live import LiveGallery
from jobs.storage import LocalStore
from jobs.task import Failure
from tests.jobs.report.samples import KEYS, Page, a_record, images_of


class Watched(LocalStore):
    """Notes what is read and written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.read: list[str] = []
        self.written: list[str] = []

    def get(self, key, **options):
        self.read.append(key.partition("/")[2])
        return super().get(key, **options)

    def put(self, key, data, **options):
        self.written.append(key.partition("/")[2])
        return super().put(key, data, **options)

    def news(self):
        """What was done since this was asked last."""
        news = self.read, self.written
        self.read, self.written = [], []
        return news


@pytest.fixture
def store(tmp_path, monkeypatch):
    for module in (shards, live):
        monkeypatch.setattr(module, "SHARD_SIZE", 4)
    return Watched(tmp_path)


def put_records(store, shard, indices):
    """A shard of the job as it is now."""
    LocalStore(store.root).put(
        KEYS.records(shard), dump_lines(map(a_record, indices)), overwrite=True
    )


def names(*numbers):
    return [f"gallery/{n:05d}{more}.js" for n in numbers for more in ("-details", "")]


def test_only_news_is_read_and_written(store):
    gallery = LiveGallery(JobFolder(store, KEYS), planned=20)
    assert not gallery.refresh()
    assert store.news() == ([], [])
    put_records(store, 0, range(3))
    put_records(store, 1, range(3, 6))
    assert gallery.refresh()
    first, second = "records/000000.jsonl", "records/000001.jsonl"
    assert store.news() == ([first, second], [*names(0, 1), "index.html"])
    # Nothing is new.
    assert gallery.refresh()
    assert store.news() == ([], [])
    # A file that has grown, and one that shares a file of the index with it.
    put_records(store, 2, range(6, 9))
    assert gallery.refresh()
    assert store.news() == (["records/000002.jsonl", second], [*names(1, 2), "index.html"])
    assert [image["index"] for image in images_of(store, 0, 1, 2)] == list(range(9))
    page = Page(store.get(KEYS.index).decode())
    assert page.data["shards"] == [[0, 4, 0, 3], [1, 4, 4, 7], [2, 1, 8, 8]]
    assert page.texts["unfinished"] == (
        "This job is not finished: it has 9 of 20 pictures so far; load this page again to see more"
    )
    assert page.data["sheets"] == []
    links = [attributes["href"] for attributes in page.tags("a") if "href" in attributes]
    assert links[:5] == [*(a_record(index)["path"] for index in range(4)), "images/"]


def test_the_files_are_those_of_the_report_at_the_end(store, tmp_path):
    gallery = LiveGallery(JobFolder(store, KEYS), planned=10)
    for shard, indices in ((1, range(5, 8)), (0, range(5)), (2, range(8, 10)), (1, range(5, 8))):
        put_records(store, shard, indices)
        gallery.refresh()
    live_files = {key: store.get(KEYS(key)) for key in names(0, 1, 2)}
    end = LocalStore(tmp_path / "end")
    write_report(JobFolder(end, KEYS), map(a_record, range(10)))
    assert {key: end.get(KEYS(key)) for key in names(0, 1, 2)} == live_files


def test_records_that_are_gone_leave_the_gallery(store):
    gallery = LiveGallery(JobFolder(store, KEYS), planned=20)
    put_records(store, 0, range(3))
    put_records(store, 1, range(3, 9))
    gallery.refresh()
    store.delete(KEYS.records(1))
    put_records(store, 0, [1])
    assert gallery.refresh()
    assert Page(store.get(KEYS.index).decode()).data["shards"] == [[0, 1, 1, 1]]


def test_failures_alone_are_shown(store):
    gallery = LiveGallery(JobFolder(store, KEYS), planned=2)
    assert gallery.refresh([Failure(1, "n", "a ring", 7, "broke")])
    assert Page(store.get(KEYS.index).decode()).data["failed"] == 1


def test_records_that_no_gallery_is_made_of_are_left_out(store, caplog):
    gallery = LiveGallery(JobFolder(store, KEYS), planned=3)
    lines = [a_record(0), {"index": 1, "path": "images/x.png"}, a_record(2), a_record(3)]
    damaged = dump_lines(lines) + b"{]\n"
    store.put(KEYS.records(0), damaged)
    assert gallery.refresh()
    assert [image["index"] for image in images_of(store)] == [0, 2]
    assert caplog.text.count("left out") == 1


def test_it_stops_where_it_is_told_to_and_goes_on_from_there(store):
    gallery = LiveGallery(JobFolder(store, KEYS), planned=20)
    for shard in range(4):
        put_records(store, shard, range(4 * shard, 4 * shard + 4))
    asked = []

    def until(count):
        asked.clear()
        return lambda: asked.append(None) is None and len(asked) < count

    for count in range(1, 10):
        assert not gallery.refresh(go_on=until(count))
        assert store.head(KEYS.index) is None
    assert gallery.refresh(go_on=until(99))
    assert [image["index"] for image in images_of(store, 0, 1, 2, 3)] == list(range(16))


def test_more_files_than_are_kept(store, monkeypatch):
    monkeypatch.setattr(live, "MOST_KEPT", 1)
    gallery = LiveGallery(JobFolder(store, KEYS), planned=20)
    for shard in range(3):
        put_records(store, shard, range(3 * shard, 3 * shard + 3))
    gallery.refresh()
    assert [image["index"] for image in images_of(store, 0, 1, 2)] == list(range(9))
