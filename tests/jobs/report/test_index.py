"""The gallery's index: what is in its files, and that they hold nothing but data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jobs.folder.layout import JobFolder
from jobs.report import shards, write_report
from jobs.report.fields import DETAIL_LABELS, INDEX_LABELS, MOST_LABELS
from jobs.report.shards import (
    FIRST_EXTRA,
    MOST_OPEN,
    ChangedFiles,
    IndexWriter,
    embeddable_json,
    script,
)
from jobs.storage import LocalStore
from tests.jobs.report.samples import HOSTILE, KEYS, a_record, images_of, read_script
from tests.worker.samples import MODEL


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def written(store: LocalStore, *records):
    write_report(JobFolder(store, KEYS), records)
    return images_of(store)


def test_every_parameter_is_there(store):
    changes = {"sampler": "ddim", "eta": 0.5, "init_image": "ff.png", "strength": 0.25}
    record = a_record(1, negative="blurry", **changes)
    image = written(store, record, a_record(2))[0]
    for name in ("prompt", "negative", "sampler", "steps", "guidance", "eta", "strength", "seed"):
        assert image[name] == record[name]
    assert image["model"] == "demo"
    assert image["size"] == "64×64"
    assert image["model_digest"] == MODEL.digest
    assert image["render_s"] == 1.25
    assert set(image) <= {*INDEX_LABELS, *DETAIL_LABELS}


def test_loras_embeddings_and_labels(store):
    uses = [
        {"name": "ink", "sha256": "ab" * 32, "weight": 1.0, "text_weight": 1.0},
        {"name": "pen", "sha256": "ab" * 32, "weight": 0.5, "text_weight": 0.5},
        {"name": "oil", "sha256": "ab" * 32, "weight": 0.5, "text_weight": 0.0},
    ]
    odd = {"loras": [5, {}, "x"], "embeddings": "y"}  # anybody may have written a record
    named = {"meta": {"sku": "5", "size": "XL"}, "loras": uses, "embeddings": uses[:1]}
    first, second = written(store, a_record() | named | {"vae": uses[1]}, a_record(1) | odd)
    assert first["loras"] == "ink, pen 0.5, oil 0.5 (text 0.0)"
    assert (first["meta.sku"], first["meta.size"], first["size"]) == ("5", "XL", "64×64")
    assert (first["embeddings"], first["vae"]) == ("ink", "pen")
    assert second["loras"] == "5, None None, x"


def test_labels_beyond_those_with_fields_of_their_own(store):
    many = [{f"l{index}-{n}": "x" for n in range(30)} for index in range(6)]
    images = written(store, *(a_record(i) | {"meta": meta} for i, meta in enumerate(many)))
    fields = {name for image in images for name in image if name.startswith("meta.")}
    assert len(fields) == MOST_LABELS
    assert images[5]["meta"] == ", ".join(f"l5-{n}: x" for n in range(30))
    assert "meta" not in images[0]


def test_a_value_that_many_have_is_said_once(store):
    written(store, *(a_record(i, guidance=5.0 + i % 2, seed=i) for i in range(4)))
    fields = read_script(store.get(KEYS.gallery_index(0)))["fields"]
    assert fields["sampler"] == {"values": ["plms"]}
    assert fields["guidance"] == {"values": [5.0, 6.0], "codes": [0, 1, 0, 1]}
    assert fields["seed"] == {"values": [0, 1, 2, 3]}
    assert "strength" not in fields


def test_values_are_kept_apart_by_kind_and_absence(store):
    strange = [{"steps": value} for value in (True, 1, 1.0, "1", None, [1], math.nan, math.inf)]
    images = written(store, *(a_record(i) | change for i, change in enumerate(strange)))
    found = [image.get("steps") for image in images]
    assert found == [True, 1, 1, "1", None, "[1]", "nan", "inf"]
    assert [type(value) for value in found[:3]] == [bool, int, int]


def test_seeds_keep_their_digits_in_a_browser(store):
    seeds = [0, 2**53 - 1, 2**53, 2**64 - 1]
    images = written(store, *(a_record(i, seed=seed) for i, seed in enumerate(seeds)))
    assert [image["seed"] for image in images] == [0, 2**53 - 1, str(2**53), str(2**64 - 1)]


def test_embeddable_json_round_trip():
    for text in HOSTILE:
        encoded = embeddable_json({"text": text})
        assert encoded.isascii()
        assert not set("<>&") & set(encoded)
        assert json.loads(encoded) == {"text": text}


@pytest.mark.parametrize("text", [*HOSTILE, "'); alert(1); ('", "\\'); alert(1) //", "\n\r\\"])
def test_a_file_is_one_call_with_one_text(text):
    data = {text: [text], "__proto__": text}
    assert read_script(script("indexShard", 7, data)) == data  # also that there is nothing else


def write(store, indices):
    writer = IndexWriter(JobFolder(store, KEYS), ChangedFiles(JobFolder(store, KEYS)))
    for index in indices:
        writer.add(a_record(index))
    return [(one.number, one.images, one.first, one.last) for one in writer.finish()]


def test_images_go_to_files_by_their_index(store, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)
    assert write(store, [5, 4, 0, 1, 13, 5]) == [(0, 2, 0, 1), (1, 2, 4, 5), (3, 1, 13, 13)]
    assert [image["index"] for image in images_of(store, 0, 1, 3)] == [0, 1, 4, 5, 13]


def test_images_that_come_late_are_in_a_file_of_their_own(store, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 2)
    files = 3 * MOST_OPEN
    found = write(store, [*range(0, 2 * files, 2), 1])
    assert found[0] == (0, 1, 0, 0)
    assert found[1][0] >= FIRST_EXTRA
    assert found[1][1:] == (1, 1, 1)
    assert sum(images for _, images, _, _ in found) == files + 1


def test_a_file_that_is_as_before_is_not_written_again(store):
    puts = []

    class Counting(LocalStore):
        def put(self, key, data, **options):
            puts.append(key)
            return super().put(key, data, **options)

    files = ChangedFiles(JobFolder(Counting(store.root), KEYS))
    for data in (b"a", b"a", b"b"):
        assert files.put(KEYS.index, data) == "index.html"
    assert puts == [KEYS.index, KEYS.index]
    assert store.get(KEYS.index) == b"b"
