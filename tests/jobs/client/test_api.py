"""Jobs from Python: what a script or a notebook does with them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from jobs import client
from jobs.errors import InputError, ManifestError, NotFoundError
from jobs.ledger.types import JobState
from sd_core.weights.export import save_single_file
from tests.sd_core.small import ODD, small_model
from tests.servers import Valkey

MANIFEST = {
    "version": 1,
    "name": "rings",
    "defaults": {"width": 64, "height": 64, "steps": 2},
    "prompts": ["a ring", {"prompt": "a star", "seeds": [1, 2**63 + 1], "meta": {"sku": "7"}}],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return str(path)


@pytest.fixture(scope="module")
def job(tmp_path_factory, checkpoint) -> client.Job:
    """A finished job of three images; not to be changed."""
    store = tmp_path_factory.mktemp("out")
    return client.run(MANIFEST, store=store, model=checkpoint, dtype="float32")


def test_a_job_that_was_run_is_done(job: client.Job):
    status = job.status()
    assert (status.state, status.images, status.done, status.failed) == ("done", 3, 3, 0)
    assert status.ended
    assert job.wait() == status
    assert job.failures() == []
    assert repr(job) == f"<Job {job.name} in {job.url}>"


def test_pictures_come_with_their_records(job: client.Job):
    pictures = list(job.images())
    assert [picture.record["seed"] for picture in pictures] == [42, 1, 2**63 + 1]
    for picture in pictures:
        assert picture.image.size == (64, 64)
        with Image.open(io.BytesIO(picture.data)) as image:
            assert image.tobytes() == picture.image.tobytes()
    assert [p.record["prompt"] for p in job.images(containing="STAR")] == ["a star"] * 2


def test_a_picture_that_is_gone_says_so(job: client.Job, tmp_path: Path, checkpoint: str):
    other = client.run(MANIFEST, store=tmp_path, model=checkpoint, dtype="float32")
    picture = next(other.images())
    other.folder.delete(other.folder.keys(picture.record["path"]))
    with pytest.raises(NotFoundError, match="is gone, or not what its record says"):
        _ = picture.data


def test_records_are_a_table(job: client.Job):
    table = job.to_pandas()
    assert list(table["seed"]) == [42, 1, 2**63 + 1]
    assert list(table["meta_sku"].fillna("")) == ["", "7", "7"]
    assert list(table["model_name"].unique()) == ["odd"]


def test_a_notebook_shows_its_pictures(job: client.Job):
    shown = job._repr_html_()
    assert "done, 3 of 3 images" in shown
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', shown)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as sheet:
        assert sheet.format == "JPEG"


@pytest.mark.parametrize("kind", ["path", "str", "text", "json"])
def test_a_manifest_may_be_a_path_or_a_text(
    job: client.Job, tmp_path: Path, checkpoint: str, kind: str
):
    text = json.dumps(MANIFEST, indent=1)
    path = tmp_path / "rings.yaml"
    path.write_text(text)
    given = {"path": path, "str": str(path), "text": text, "json": MANIFEST}[kind]
    again = client.run(given, store=job.folder.store.root, model=checkpoint, dtype="float32")  # type: ignore[attr-defined]
    assert again.name == job.name  # the same job, whatever it is written in


def test_files_that_a_mapping_names_are_in_the_current_folder(
    tmp_path: Path, checkpoint: str, monkeypatch
):
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    monkeypatch.chdir(tmp_path)
    manifest = MANIFEST | {"prompts": [{"prompt": "a ring", "init_image": "start.png"}]}
    job = client.run(manifest, store="out", model=checkpoint, dtype="float32")
    assert next(job.images()).record["init_image_name"] == "start.png"


def test_a_prompt_of_a_mapping_is_that_prompt(tmp_path: Path, checkpoint: str):
    odd = "a\x85ring\u2028\x7f 🦊"
    manifest = MANIFEST | {"prompts": [odd.replace("\x7f", "").replace("\x85", "")]}
    job = client.run(manifest, store=tmp_path, model=checkpoint, dtype="float32")
    assert next(job.records())["prompt"] == "aring\u2028 🦊"
    with pytest.raises(ManifestError, match="character"):  # as in a file
        client.run(MANIFEST | {"prompts": [odd]}, store=tmp_path, model=checkpoint)


def test_all_mistakes_are_in_one_error():
    with pytest.raises(ManifestError) as caught:
        client.run({"version": 1, "prompts": ["a"], "defaults": {"steps": 0, "sampler": "none"}})
    assert len(caught.value.problems) == 2
    assert all(problem.file == "manifest" for problem in caught.value.problems)
    with pytest.raises(InputError, match="cannot be written as JSON"):
        client.run({"version": 1, "prompts": [object()]})


def test_a_job_of_before_is_found_by_its_folder_and_its_store(job: client.Job):
    root = job.folder.store.root  # type: ignore[attr-defined]
    for found in (client.find(root / job.name), client.find(job.name, store=root)):
        assert found.status() == job.status()
    with pytest.raises(InputError, match="is not in a ledger"):
        found.cancel()


def test_collected_in_any_form(job: client.Job, tmp_path: Path):
    assert job.collect(tmp_path / "files").copied == 3
    assert job.collect(tmp_path / "set", form="webdataset").copied == 3
    with pytest.raises(InputError, match="form 'tar' is none of files, webdataset"):
        job.collect(tmp_path, form="tar")


def test_a_submitted_job_is_steered_and_waited_for(tmp_path: Path, valkey: Valkey):
    with valkey.client() as redis:
        redis.flushall()
    job = client.submit(MANIFEST, store=tmp_path / "out", redis=valkey.url)
    assert job.status().state is JobState.ACTIVE
    assert job.wait(timeout_s=0.1, progress=False).ended is False
    job.pause()
    assert client.find("rings", redis=valkey.url).status().state is JobState.PAUSED
    job.unpause()
    assert job.retry() == 0
    job.cancel()
    ended = job.wait(progress=False)
    assert (ended.state, ended.images, ended.done) == (JobState.CANCELLED, 3, 0)
    assert job.failures() == []
    assert "cancelled, 0 of 3 images" in job._repr_html_()
    with pytest.raises(InputError, match="is cancelled and stays so"):
        job.pause()


def test_names_that_the_package_does_not_have():
    with pytest.raises(AttributeError, match="has no attribute 'render'"):
        _ = client.render
    for name in client.__all__:
        assert getattr(client, name) is not None
