"""Thumbnails of large pictures: small, beside them, and never in a picture's way."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.errors import StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import read_lines
from jobs.storage import LocalStore
from tests.worker.samples import MODEL, RENDER, a_task
from worker.observer import Observer
from worker.output.encode import THUMBNAIL_BYTES, THUMBNAIL_SIDE, encode_thumbnail
from worker.output.encoders import Encoder
from worker.output.finish import Finisher
from worker.output.thumbnails import Thumbnails

KEYS = JobKeys("job-1")


def picture(width: int, height: int) -> np.ndarray:
    """A smooth picture with edges, as a decoder may draw it."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2) < 0.1
    return (np.stack([x, y, np.where(disc, 1.0, 0.2)], axis=2) * 255).astype(np.uint8)


def refusing(store: LocalStore, folder: str) -> list[str]:
    """Makes a store refuse what is put into a folder of the job; the keys that were tried."""
    tried: list[str] = []
    put = store.put

    def refuse(key: str, data: bytes, *, overwrite: bool = False) -> bool:
        if f"/{folder}/" in key:
            tried.append(key)
            raise StoreError("403: no rights")
        return put(key, data, overwrite=overwrite)

    store.put = refuse  # type: ignore[method-assign]
    return tried


def finish(store: LocalStore, *pictures: np.ndarray) -> list[dict]:
    """Finishes each as an image of a job; the records in the store."""
    folder = JobFolder(store, KEYS)
    with ShardRecords(folder, 0) as records:
        finisher = Finisher(
            *(folder, MODEL, records, Observer()), thumbnails=Thumbnails(folder, Encoder())
        )
        for index, pixels in enumerate(pictures):
            height, width, _ = pixels.shape
            finisher.finish(pixels, a_task(index, width=width, height=height), RENDER)
    return read_lines(store, KEYS.records(0))


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (512, 1024)])
def test_a_large_picture_has_one_and_its_record_says_where(tmp_path: Path, size):
    store = LocalStore(tmp_path)
    (record,) = finish(store, picture(*size))
    name = record["path"].removeprefix("images/").removesuffix(".png")
    assert record["thumbnail"] == f"thumbs/{name}.webp"
    data = store.get(KEYS(record["thumbnail"]))
    assert len(data) <= THUMBNAIL_BYTES
    with Image.open(io.BytesIO(data)) as small:
        assert small.format == "WEBP"
        assert max(small.size) == THUMBNAIL_SIDE
        wanted = Image.fromarray(picture(*size)).resize(small.size)
        far = np.abs(np.asarray(small, int) - np.asarray(wanted, int)).mean()
    assert far < 3


def test_a_small_picture_is_its_own(tmp_path: Path):
    (record,) = finish(LocalStore(tmp_path), picture(320, 320))
    assert "thumbnail" not in record
    assert not (tmp_path / "job-1" / "thumbs").exists()


def test_grain_is_written_at_a_lower_quality():
    grain = np.random.default_rng(0).normal(0, 20, (512, 512, 3))
    noisy = np.clip(picture(512, 512) + grain, 0, 255).astype(np.uint8)
    assert len(encode_thumbnail(noisy)) <= THUMBNAIL_BYTES


def test_without_rights_the_pictures_are_made_and_it_is_said_once(tmp_path: Path, caplog):
    store = LocalStore(tmp_path)
    tried = refusing(store, "thumbs")
    records = finish(store, picture(512, 512), picture(512, 512))
    assert len(records) == 2
    assert not any("thumbnail" in record for record in records)
    assert len(tried) == 1
    assert caplog.text.count("403: no rights") == 1


def test_of_a_replaced_picture_it_goes_too(tmp_path: Path):
    store = LocalStore(tmp_path)
    (before,) = finish(store, picture(512, 512))
    (after,) = finish(store, picture(768, 512))  # of the same index, with other parameters
    assert before["path"] != after["path"]
    assert store.head(KEYS(before["thumbnail"])) is None
    assert store.head(KEYS(after["thumbnail"])) is not None
