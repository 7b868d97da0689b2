"""Records that somebody edited, or another program wrote: named with their line, never trusted."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from jobs.client.collect import collect
from jobs.errors import DamagedError, StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import WHOLE, dump_lines, read_failures, read_lines, read_records
from jobs.storage import LocalStore
from jobs.task import Failure

KEYS = JobKeys("job")
RECORD = MappingProxyType(
    {
        "index": 0,
        "path": "images/000000-s0-0123456789abcdef.png",
        "sha256": "0f" * 32,
        "bytes": 1,
        "prompt": "a ring",
        "seed": 2**64 - 1,
        "width": 512,
        "height": 512,
        "evaluations": 5,
        "model": {"name": "demo", "digest": "5a" * 32, "source": "demo"},
        "timings_s": {"render": 1, "encode": 0.5},
    }
)
FAILURE = MappingProxyType(
    {"index": 0, "name": "n", "prompt": "p", "seed": 0, "reason": "why", "attempts": 1}
)


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def put(store, *rows):
    store.put(KEYS.records(0), dump_lines(map(dict, rows)), overwrite=True)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def test_whole_records_are_read(store):
    put(store, RECORD, {**RECORD, "index": 1})
    assert len(list(read_records(JobFolder(store, KEYS), needs=WHOLE, images=2))) == 2


@pytest.mark.parametrize("name", WHOLE)
def test_a_field_that_is_missing_is_named_with_its_line(store, name):
    put(store, RECORD, without(RECORD, name))
    with pytest.raises(StoreError, match=rf"000000\.jsonl, line 2: {name} is missing; delete"):
        list(read_records(JobFolder(store, KEYS), needs=WHOLE))


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1},
        {"index": "0"},
        {"index": True},
        {"path": 7},
        {"path": "../other/images/a.png"},
        {"path": "images/../../a.png"},
        {"path": "images/"},
        {"thumbnail": "images/a.webp"},
        {"thumbnail": "thumbs/../a.webp"},
        {"thumbnail": 7},
        {"sha256": "0F" * 32},
        {"sha256": None},
        {"bytes": 1.5},
        {"prompt": None},
        {"seed": -1},
        {"width": 0},
        {"height": 512.0},
        {"evaluations": "5"},
        {"model": "demo"},
        {"model": {"name": "demo"}},
        {"timings_s": [1]},
        {"timings_s": {"render": "1"}},
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_named_with_its_line(store, changes):
    put(store, RECORD, {**RECORD, **changes})
    (name,) = changes
    for read in (
        lambda: read_lines(store, KEYS.records(0)),
        lambda: list(read_records(JobFolder(store, KEYS))),
    ):
        with pytest.raises(StoreError, match=rf"line 2: {name} is "):
            read()


def test_an_image_that_the_job_does_not_have_is_named(store):
    put(store, RECORD, {**RECORD, "index": 40})
    with pytest.raises(StoreError, match="line 2: index 40 of a job of 40 images"):
        list(read_records(JobFolder(store, KEYS), images=40))


def test_a_line_nested_too_deep_is_no_object(store):
    store.put(KEYS.records(0), b"[" * 100_000)
    with pytest.raises(StoreError, match="line 1: no JSON object"):
        list(read_records(JobFolder(store, KEYS)))


def test_collecting_names_an_odd_record(store, tmp_path):
    put(store, without(RECORD, "prompt"))
    with pytest.raises(StoreError, match="line 1: prompt is missing"):
        collect(JobFolder(store, KEYS), tmp_path / "mine")


@pytest.mark.parametrize(
    "row", [without(FAILURE, "reason"), {**FAILURE, "index": "0"}, [1]], ids=str
)
def test_an_odd_failure_is_named(store, row):
    store.put(KEYS.failures, json.dumps(row).encode())
    with pytest.raises(StoreError, match=r"failures\.jsonl, line 1: "):
        read_failures(JobFolder(store, KEYS))


def test_a_failure_may_have_more_fields(store):
    """Of a newer version."""
    store.put(KEYS.failures, json.dumps({**FAILURE, "more": 1}).encode())
    assert read_failures(JobFolder(store, KEYS)) == [Failure(**FAILURE)]


def test_no_more_is_read_of_records_than_there_can_be(store, monkeypatch):
    monkeypatch.setattr("jobs.folder.records.MAX_RECORDS_BYTES", 4000)
    monkeypatch.setattr("jobs.folder.records.MAX_LINE_BYTES", 2000)
    put(store, {**RECORD, "prompt": "x" * 2000})
    with pytest.raises(DamagedError, match=r"line 1: longer than 2,000 bytes"):
        read_lines(store, KEYS.records(0))
    put(store, *[{**RECORD, "prompt": "x" * 1000}] * 4)
    with pytest.raises(DamagedError, match=r"more than the 4,000 bytes"):
        read_lines(store, KEYS.records(0))
