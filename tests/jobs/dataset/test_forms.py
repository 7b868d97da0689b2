"""Data sets: every image once, its bytes and its record, as the readers of each form see them."""

from __future__ import annotations

import gc
import hashlib
import json
import tarfile
import warnings
from pathlib import Path

import duckdb
import pandas
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from jobs.client.collect import collect_as
from jobs.dataset import Form
from jobs.dataset.image_tables import ImageTables
from jobs.dataset.samples import SampleReader
from jobs.dataset.webdataset import WebDataset
from jobs.errors import InputError, NotFoundError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines
from jobs.storage import LocalStore, Store, open_store
from tests.jobs.dataset.made import MANY, a_job, file_digests, pictures, records

IMAGES = 25


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> JobFolder:
    """A job; not to be changed."""
    return a_job(LocalStore(tmp_path_factory.mktemp("made")), IMAGES)


def load(path: str, folder: Path, **options):
    """A data set as Hugging Face's library reads it; its own cache."""
    import datasets

    return datasets.load_dataset(path, cache_dir=str(folder / "cache"), split="train", **options)


def webdataset_of(folder: JobFolder, store: Store, prefix: str = "set/") -> SampleReader:
    """Writes tars of ten samples; what became of the images."""
    reader = SampleReader(folder)
    WebDataset(store, prefix, shard_images=10).write(lambda: records(folder), reader)
    return reader


def samples(root: Path) -> dict[int, tuple[str, str, dict]]:
    """By index: sha256 of the image, prompt, record; as the webdataset library reads them."""
    urls = [str(path) for path in sorted(root.rglob("*.tar"))]
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves files open
        read = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    for sample in read:
        record = json.loads(sample["json"])
        assert record["index"] not in found
        assert sample["__key__"] == f"{record['index'] // 10:05d}{record['index'] % 10}"
        digest = hashlib.sha256(sample["png"]).hexdigest()
        found[record["index"]] = (digest, sample["txt"].decode(), record)
    return found


def test_webdataset_has_every_sample_once(made: JobFolder, tmp_path: Path):
    written = webdataset_of(made, LocalStore(tmp_path)).written
    assert (written.copied, written.present, written.damaged) == (IMAGES, 0, [])
    assert sorted(file_digests(tmp_path)) == [
        f"set/{shard:05d}.{kind}" for shard in range(3) for kind in ("parquet", "tar")
    ]
    found = samples(tmp_path)
    assert {index: digest for index, (digest, *_) in found.items()} == dict(pictures(made))
    for record in records(made):
        assert found[record["index"]][1:] == (record["prompt"], record)


def test_the_twins_rows_are_the_samples(made: JobFolder, tmp_path: Path):
    webdataset_of(made, LocalStore(tmp_path))
    table = pandas.concat(
        [pandas.read_parquet(path) for path in sorted((tmp_path / "set").glob("*.parquet"))]
    )
    assert list(table["index"]) == list(range(IMAGES))
    assert list(table["sha256"]) == [record["sha256"] for record in records(made)]


def test_ten_thousand_are_a_tar(made: JobFolder, tmp_path: Path):
    collect_as(Form.WEBDATASET, made, tmp_path)
    (tar,) = tmp_path.rglob("*.tar")
    with tarfile.open(tar) as file:
        names = file.getnames()
    assert names[:4] == ["000000000.png", "000000000.txt", "000000000.json", "000000001.png"]
    assert len(names) == 3 * IMAGES


def test_a_tar_has_the_same_bytes_each_time(made: JobFolder, tmp_path: Path):
    webdataset_of(made, LocalStore(tmp_path / "one"))
    webdataset_of(made, LocalStore(tmp_path / "two"))
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two")


@pytest.mark.parametrize("damage", ["cut", "flip", "no twin", "old twin", "no tar", "no table"])
def test_what_is_not_whole_is_written_again(made: JobFolder, tmp_path: Path, damage: str):
    webdataset_of(made, LocalStore(tmp_path))
    before = file_digests(tmp_path)
    tar, twin = tmp_path / "set/00001.tar", tmp_path / "set/00001.parquet"
    data = tar.read_bytes()
    if damage == "cut":
        tar.write_bytes(data[:-600])
    elif damage == "flip":
        tar.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    elif damage == "no table":
        twin.write_bytes(b"PAR1 and no more")
    elif damage == "old twin":
        twin.write_bytes((tmp_path / "set/00000.parquet").read_bytes())
    else:
        (twin if damage == "no twin" else tar).unlink()
    written = webdataset_of(made, LocalStore(tmp_path)).written
    assert (written.copied, written.present) == (10, IMAGES - 10)
    assert file_digests(tmp_path) == before


def test_a_job_that_grows_writes_the_tars_that_changed(tmp_path: Path):
    store = LocalStore(tmp_path / "store")
    webdataset_of(a_job(store, 15), LocalStore(tmp_path / "set"))
    grown = a_job(store, IMAGES, start=15)
    written = webdataset_of(grown, LocalStore(tmp_path / "set")).written
    assert (written.copied, written.present) == (15, 10)
    assert len(samples(tmp_path / "set")) == IMAGES


def test_a_damaged_image_is_left_out_and_named(tmp_path: Path):
    folder = a_job(LocalStore(tmp_path / "store"), 12)
    damaged = records(folder)[4]["path"]
    folder.put(folder.keys(damaged), b"no picture", overwrite=True)
    written = webdataset_of(folder, LocalStore(tmp_path / "set")).written
    assert written.damaged == [damaged]
    assert sorted(samples(tmp_path / "set")) == [index for index in range(12) if index != 4]
    assert len(pandas.read_parquet(tmp_path / "set/set/00000.parquet")) == 9
    again = webdataset_of(folder, LocalStore(tmp_path / "set")).written  # looked for once more
    assert (again.damaged, again.present) == ([damaged], 2)


def test_webdataset_in_a_bucket(made: JobFolder, s3_address: str, tmp_path: Path):
    bucket = open_store(s3_address)
    assert webdataset_of(made, bucket).written.copied == IMAGES
    assert webdataset_of(made, bucket).written.present == IMAGES
    for info in bucket.list("set/"):
        path = tmp_path / info.key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bucket.get(info.key, limit_bytes=2**24))
    assert {index: digest for index, (digest, *_) in samples(tmp_path).items()} == dict(
        pictures(made)
    )
    bucket.put("set/00001.tar", b"cut", overwrite=True)
    assert webdataset_of(made, bucket).written.copied == 10


def test_tables_with_images_are_pictures_to_the_datasets_library(made: JobFolder, tmp_path: Path):
    reader = SampleReader(made)
    ImageTables(LocalStore(tmp_path), "set/", part_images=10).write(lambda: records(made), reader)
    assert reader.written.copied == IMAGES
    files = sorted(str(path) for path in (tmp_path / "set").glob("*.parquet"))
    assert len(files) == 3
    found = load("parquet", tmp_path, data_files=files)
    assert len(found) == IMAGES
    assert isinstance(found[3]["image"], Image.Image)
    assert (found[3]["seed"], found[3]["prompt"]) == (MANY, "a ring, “3”")
    digests = dict(pictures(made))
    for path in files:
        for row in pyarrow.parquet.read_table(path).to_pylist():
            assert hashlib.sha256(row["image"]["bytes"]).hexdigest() == digests[row["index"]]
    again = SampleReader(made)
    ImageTables(LocalStore(tmp_path), "set/", part_images=10).write(lambda: records(made), again)
    assert again.written.present == IMAGES


def test_all_tables_with_images_have_the_same_columns(tmp_path: Path):
    folder = a_job(LocalStore(tmp_path / "store"), 8)
    line = records(folder)[7] | {"tokens_cut": {"prompt": 3}}
    rows = [*records(folder)[:7], line]
    folder.put(folder.keys.records(0), dump_lines(rows), overwrite=True)
    reader = SampleReader(folder)
    tables = ImageTables(LocalStore(tmp_path), "set/", part_images=4)
    tables.write(lambda: records(folder), reader)
    files = sorted((tmp_path / "set").glob("*.parquet"))
    schemas = [pyarrow.parquet.read_schema(path) for path in files]
    assert schemas[0] == schemas[1]
    assert "tokens_cut_prompt" in schemas[0].names


def test_captions_are_beside_the_pictures(made: JobFolder, tmp_path: Path):
    collected = collect_as(Form.CAPTIONS, made, tmp_path)
    assert collected.copied == IMAGES
    for record in records(made):
        picture = collected.folder / record["path"].removeprefix("images/")
        assert hashlib.sha256(picture.read_bytes()).hexdigest() == record["sha256"]
        assert picture.with_suffix(".txt").read_text("utf-8") == record["prompt"]
    picture.write_bytes(b"other")
    again = collect_as(Form.CAPTIONS, made, tmp_path)
    assert (again.copied, again.present) == (1, IMAGES - 1)


def test_an_imagefolder_is_read_with_its_texts(made: JobFolder, tmp_path: Path):
    collected = collect_as(Form.HF, made, tmp_path)
    found = load("imagefolder", tmp_path, data_dir=str(collected.folder))
    by_index = {row["index"]: row for row in found}
    assert sorted(by_index) == list(range(IMAGES))
    for record in records(made):
        row = by_index[record["index"]]
        assert (row["text"], row["sha256"]) == (record["prompt"], record["sha256"])
        assert row["image"].size == (64, 64)


def test_only_some_of_the_images(made: JobFolder, tmp_path: Path):
    collected = collect_as(Form.CAPTIONS, made, tmp_path, containing="“7”")
    assert collected.copied == 1
    assert collect_as(Form.WEBDATASET, made, tmp_path / "w", containing="nothing").copied == 0
    stars = {record["path"] for record in records(made)[3:5]}
    assert collect_as(Form.CAPTIONS, made, tmp_path / "s", stars=stars).copied == 2
    with pytest.raises(InputError, match="does not have 1 starred picture"):
        collect_as(Form.CAPTIONS, made, tmp_path / "s", stars={"images/none.png"})


def test_a_job_without_images_is_not_found(tmp_path: Path):
    folder = JobFolder(LocalStore(tmp_path / "store"), JobKeys("none"))
    for form in Form:
        with pytest.raises(NotFoundError, match="has no finished images"):
            collect_as(form, folder, tmp_path / "set")


def test_duckdb_reads_tables_of_records(made: JobFolder, tmp_path: Path):
    webdataset_of(made, LocalStore(tmp_path))
    files = str(tmp_path / "set" / "*.parquet")
    ask = "select guidance, count(*), max(meta_sku), min(finished) from read_parquet(?) group by 1"
    found = sorted(duckdb.execute(f"{ask} order by 1", [files]).fetchall())
    assert [(guidance, count, sku) for guidance, count, sku, _ in found] == [
        (7.0, 12, "023"),
        (7.5, 13, "024"),
    ]
    assert all(when.year >= 2026 for *_, when in found)
