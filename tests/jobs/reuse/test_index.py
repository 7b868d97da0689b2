"""The index of pictures: each is found, by part of a digest, in whatever job made it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines
from jobs.reuse import EarlierPictures, earlier_pictures, index_pictures
from jobs.reuse.index import index_key, read_index, write_index
from jobs.storage import LocalStore, Store

MODEL = {"name": "demo", "digest": "d" * 64}


def spec(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def a_job(store: Store, name: str, numbers: list[int], *, a_shard: int = 4, **fields) -> JobFolder:
    """A job with records of pictures; which each is of, a number says."""
    folder = JobFolder(store, JobKeys(name))
    for start in range(0, len(numbers), a_shard):
        rows = [
            {
                "index": start + place,
                "path": f"images/{start + place}.png",
                "spec": spec(number),
                "model": MODEL,
                **fields,
            }
            for place, number in enumerate(numbers[start : start + a_shard])
        ]
        folder.put(folder.keys.records(start // a_shard), dump_lines(rows), overwrite=True)
    return folder


def found(earlier: EarlierPictures, number: int) -> list[tuple[str, int]]:
    return sorted(earlier.find(spec(number)))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_pictures_are_found_in_their_jobs_and_shards(store: LocalStore):
    assert write_index(a_job(store, "one", list(range(10)))) == 10
    assert write_index(a_job(store, "two", [9, 50])) == 2
    earlier = earlier_pictures(store)
    assert found(earlier, 0) == [("one", 0)]
    assert found(earlier, 8) == [("one", 2)]
    assert found(earlier, 9) == [("one", 2), ("two", 0)]
    assert found(earlier, 50) == [("two", 0)]
    assert found(earlier, 51) == []
    assert earlier.digests_of("demo") == {"d" * 64}
    assert earlier.digests_of("other") == set()


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=4))
def test_what_is_found_is_what_was_recorded(tmp_path_factory, jobs):
    store = LocalStore(tmp_path_factory.mktemp("store"))
    for place, numbers in enumerate(jobs):
        write_index(a_job(store, f"job-{place}", numbers, a_shard=3))
    earlier = earlier_pictures(store)
    for number in range(31):
        wanted = sorted(
            (f"job-{job}", place // 3)
            for job, numbers in enumerate(jobs)
            for place, other in enumerate(numbers)
            if other == number
        )
        assert found(earlier, number) == wanted


def test_only_what_is_new_is_read(store: LocalStore, monkeypatch):
    write_index(a_job(store, "one", [1]))
    earlier = earlier_pictures(store)
    read: list[str] = []
    get = store.get

    def counting(key: str, **options) -> bytes:
        read.append(key)
        return get(key, **options)

    monkeypatch.setattr(store, "get", counting)
    earlier.refresh()
    assert read == []
    write_index(a_job(store, "two", [2]))
    read.clear()
    earlier.refresh()
    assert read == [".pictures/two"]
    assert (found(earlier, 1), found(earlier, 2)) == ([("one", 0)], [("two", 0)])
    store.delete(index_key("one"))
    earlier.refresh()
    assert (found(earlier, 1), found(earlier, 2)) == ([], [("two", 0)])


def test_a_job_that_grew_is_read_again(store: LocalStore):
    write_index(a_job(store, "one", [1]))
    earlier = earlier_pictures(store)
    write_index(a_job(store, "one", [1, 2]))
    earlier.refresh()
    assert found(earlier, 2) == [("one", 0)]


def test_a_job_without_pictures_has_no_index(store: LocalStore):
    folder = a_job(store, "one", [1])
    write_index(folder)
    store.delete(folder.keys.records(0))
    assert write_index(folder) == 0
    with pytest.raises(NotFoundError):
        read_index(store, index_key("one"))


@pytest.mark.parametrize(
    ("data", "flaw"),
    [
        (b"", "first line"),
        (b"\n", "first line"),
        (b"{}\n", "first line"),
        (b"[" * 2000, "first line"),
        (b'{"version": 2, "models": {}}\n', "first line"),
        (b'{"version": 1, "models": {"a": 5}}\n', "first line"),
        (b'{"version": 1, "models": {}}\n' + bytes(13), "length"),
        (b'{"version": 1, "models": {}}\n' + b"\1" * 12 + b"\0" * 12, "order"),
    ],
)
def test_what_is_no_index_is_left_out(store: LocalStore, caplog, data: bytes, flaw: str):
    write_index(a_job(store, "one", [1]))
    store.put(index_key("two"), data)
    with pytest.raises(DamagedError, match=f"two is no index of pictures: its {flaw}"):
        read_index(store, index_key("two"))
    assert found(earlier_pictures(store), 1) == [("one", 0)]
    assert "two is no index of pictures" in caplog.text


def test_records_without_a_spec_are_left_out(store: LocalStore):
    folder = a_job(store, "one", [1, 2])
    rows = [{"index": 0, "path": "images/0.png"}]
    folder.put(folder.keys.records(0), dump_lines(rows), overwrite=True)
    assert write_index(folder) == 0


def test_a_store_that_refuses_is_said_and_nothing_fails(store: LocalStore, monkeypatch, caplog):
    folder = a_job(store, "one", [1])

    def refuse(*arguments, **options):
        raise StoreError("403: no rights")

    monkeypatch.setattr(store, "folders", refuse)
    monkeypatch.setattr(store, "put", refuse)
    caplog.set_level(logging.WARNING)
    index_pictures(folder)
    assert found(earlier_pictures(store), 1) == []
    assert "later jobs will not find these pictures: 403" in caplog.text
    assert "pictures of earlier jobs are not known: 403" in caplog.text
