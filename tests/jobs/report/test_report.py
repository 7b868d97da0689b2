"""The report of a job: its gallery as files, its contact sheets, its totals."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import report
from jobs.folder.done import Totals, done_document, write_done
from jobs.folder.layout import JobFolder
from jobs.folder.records import dump_lines, read_failures, read_records, write_failures
from jobs.report import write_report, write_unfinished_report
from jobs.report.sheets import columns_of, contact_sheet
from jobs.storage import LocalStore
from jobs.task import Failure
from tests.jobs.pictures.files_by_hand import png
from tests.jobs.report.samples import HOSTILE, KEYS, Page, a_record, images_of, put_image
from worker.output.encode import encode_image


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def _failure(prompt: str) -> Failure:
    return Failure(3, "000003-s7", prompt, 7, "ArithmeticError: not finite", attempts=2)


def test_report_of_a_job(store: LocalStore):
    records = [put_image(store, index) for index in range(5)]
    assert write_report(JobFolder(store, KEYS), iter(records), [_failure("x")]) == 5
    names = sorted(info.key for info in store.list(KEYS.prefix) if "/images/" not in info.key)
    gallery = [KEYS.gallery_details(0), KEYS.gallery_index(0)]
    assert names == [*gallery, KEYS.sheet(0), KEYS.index]
    page = Page(store.get(KEYS.index).decode())
    assert page.texts["h1"] == "shapes-1a2b"
    assert page.data["sheets"] == ["grid-0000.jpg"]
    assert page.data["failed"] == 1
    assert page.data["shards"] == [[0, 5, 0, 4]]
    paths = [record["path"] for record in records]
    assert [image["path"] for image in images_of(store)] == paths
    before = store.get(KEYS.index)
    write_report(JobFolder(store, KEYS), records, [_failure("x")])
    assert store.get(KEYS.index) == before


@pytest.mark.parametrize(
    ("planned", "said"),
    [
        (1200, "This job is not finished: it has 3 of 1,200 pictures so far"),
        (5, "This job is not finished: it has 3 of 5 pictures so far"),
        (4, None),  # the fourth failed
        (None, None),
    ],
)
def test_report_of_a_job_that_is_not_finished(store: LocalStore, planned, said):
    records = [put_image(store, index) for index in range(3)]
    plain = contact_sheet(JobFolder(store, KEYS), records)
    store.put(KEYS.records(0), dump_lines(records))
    assert write_unfinished_report(JobFolder(store, KEYS), [_failure("x")], planned=planned)
    page = Page(store.get(KEYS.index).decode())
    assert page.texts.get("unfinished") == said  # in the page itself, so without its script, too
    sheet = store.get(KEYS.sheet(0))
    assert (sheet != plain) == (said is not None)
    assert opened(sheet).height == opened(plain).height + 22 * (said is not None)


def test_without_anything_to_show_there_is_no_report(store: LocalStore):
    assert not write_unfinished_report(JobFolder(store, KEYS), planned=3)
    assert list(store.list("")) == []
    assert write_unfinished_report(JobFolder(store, KEYS), [_failure("x")], planned=3)
    assert [info.key for info in store.list("")] == [KEYS.index]


def test_report_without_images(store: LocalStore):
    assert write_report(JobFolder(store, KEYS), []) == 0
    assert [info.key for info in store.list("")] == [KEYS.index]


def test_huge_jobs_are_cut(store: LocalStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "GALLERY_LIMIT", 9)
    monkeypatch.setattr(report, "SHEET_SIZE", 2)
    monkeypatch.setattr(report, "SHEET_LIMIT", 3)
    assert write_report(JobFolder(store, KEYS), (a_record(i) for i in range(20))) == 20
    page = Page(store.get(KEYS.index).decode())
    assert page.data["total"] == 20
    assert [image["index"] for image in images_of(store)] == list(range(9))
    assert page.data["sheets"] == ["grid-0000.jpg", "grid-0001.jpg", "grid-0002.jpg"]


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_sheet_shows_the_pictures_in_order(store: LocalStore):
    records = []
    for index, colour in enumerate([(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]):
        record = a_record(index, seed=2**64 - 1)
        flat = np.full((64, 64, 3), colour, np.uint8)
        store.put(KEYS(record["path"]), encode_image(flat, record, "png"))
        records.append(record)
    sheet = opened(contact_sheet(JobFolder(store, KEYS), records))
    assert sheet.width == 2 * (192 + 12) + 12
    found = [sheet.getpixel((108 + x, 108 + y)) for y in (0, 226) for x in (0, 204)]
    for pixel, wanted in zip(
        found, [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)], strict=True
    ):
        assert np.abs(np.subtract(pixel, wanted)).max() <= 4


def test_sheet_of_mixed_shapes_and_formats(store: LocalStore):
    changes = [{"width": 128}, {"height": 256, "format": "jpeg"}, {"format": "webp"}]
    records = [put_image(store, i, **change) for i, change in enumerate(changes)]
    sheet = opened(contact_sheet(JobFolder(store, KEYS), records))
    assert sheet.size == (12 + 3 * (192 + 12), 12 + 384 + 22 + 12)


FLAWS = {
    "missing": None,
    "damaged": b"\x89PNG\r\n\x1a\n",
    "too large": png((20_000, 20_000), 8, 2, b""),
    "without pixels": png((64, 64), 8, 2, b""),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_sheet_without_one_of_its_images(store: LocalStore, flaw: str):
    records = [put_image(store, index) for index in range(2)]
    key = KEYS(records[0]["path"])
    store.delete(key)
    data = FLAWS[flaw]
    if data is not None:
        store.put(key, data)
    assert opened(contact_sheet(JobFolder(store, KEYS), records)).width == 2 * (192 + 12) + 12


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 4), (12, 4), (100, 10)]
)
def test_columns(count: int, columns: int):
    assert columns_of([a_record()] * count) == columns


def test_totals_and_done(store: LocalStore):
    records = [put_image(store, index) for index in range(3)]
    store.put(KEYS.records(1), dump_lines(records[2:]))
    store.put(KEYS.records(0), dump_lines(records[:2]))
    assert list(read_records(JobFolder(store, KEYS))) == records
    totals = Totals()
    for record in reversed(records):
        totals.add(record)
    done = done_document(KEYS.job_id, totals, failed=1, model=records[0]["model"], software={})
    assert done["totals"] == {
        "bytes": sum(record["bytes"] for record in records),
        "evaluations": 153,
        "render_s": 3.75,
    }
    assert (done["job"], done["images"], done["failed"]) == (KEYS.job_id, 3, 1)
    write_done(JobFolder(store, KEYS), done)
    assert json.loads(store.get(KEYS.done)) == done


def test_digest_of_all_images_can_be_had_in_a_shell(store: LocalStore):
    totals = Totals()
    for index in range(4):
        totals.add(put_image(store, index))
    command = "sha256sum images/* | cut -c1-64 | sort | sha256sum"
    folder = store.root / KEYS.job_id
    output = subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=True)
    assert output.stdout.decode().split()[0] == totals.images_digest
    assert Totals().images_digest == hashlib.sha256().hexdigest()


def test_failures_file(store: LocalStore):
    failures = [_failure(HOSTILE[0]), Failure(0, "000000-s0", "赤", 0, "why")]
    write_failures(JobFolder(store, KEYS), failures)
    assert read_failures(JobFolder(store, KEYS)) == failures[::-1]
    write_failures(JobFolder(store, KEYS), [])
    assert store.head(KEYS.failures) is None
    assert read_failures(JobFolder(store, KEYS)) == []
