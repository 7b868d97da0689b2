"""Init images and masks that lie in buckets, of a real S3 server."""

from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image

from jobs.errors import InputError, ManifestError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.manifest.load import load_manifest
from jobs.storage import LocalStore, open_store
from tests.jobs.manifests import write

KEYS = JobKeys("job")


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def bucket(s3_address):
    """A folder of pictures in a bucket."""
    store = open_store(s3_address)
    store.put("ring.png", png("blue"))
    store.put("text.png", b"no picture")
    return store


def manifest_of(tmp_path, s3_address, *names):
    prompts = "".join(
        f"  - {{prompt: a, init_image: '{s3_address}/{name}', seeds: [1, 2]}}\n" for name in names
    )
    return load_manifest(write(tmp_path, f"version: 1\nprompts:\n{prompts}"))


def test_a_picture_in_a_bucket_goes_with_the_job(tmp_path, s3_address, bucket):
    manifest = manifest_of(tmp_path, s3_address, "ring.png")
    name = f"{hashlib.sha256(png('blue')).hexdigest()}.png"
    assert {task.init_image for task in manifest.tasks()} == {name}
    store = LocalStore(tmp_path / "out")
    prepare(manifest, JobFolder(store, KEYS))
    assert store.get(KEYS.input(name)) == png("blue")


def test_all_that_is_wrong_is_told_at_once(tmp_path, s3_address, bucket, monkeypatch):
    store = open_store(s3_address)
    store.put("large.png", b"x" * 5000)
    monkeypatch.setattr("jobs.manifest.input_images.MAX_IMAGE_BYTES", 4096)
    with pytest.raises(ManifestError) as caught:
        manifest_of(tmp_path, s3_address, "nope.png", "ring.png", "text.png", "large.png")
    missing, damaged, large = caught.value.problems
    assert (missing.line, missing.path) == (3, "prompts[0].init_image")
    assert missing.message == f"'{s3_address}/nope.png' does not exist"
    assert damaged.message.endswith("is not a PNG, JPEG or WebP image")
    assert "it is larger than" in large.message


def test_no_rights_to_read_it(tmp_path, s3_address, bucket, aws):
    aws.setenv("AWS_SECRET_ACCESS_KEY", "of-another")
    with pytest.raises(ManifestError, match=r"ring\.png' cannot be read: ") as caught:
        manifest_of(tmp_path, s3_address, "ring.png")
    assert "of-another" not in str(caught.value)


def test_a_picture_that_changed_meanwhile_is_refused(tmp_path, s3_address, bucket):
    manifest = manifest_of(tmp_path, s3_address, "ring.png")
    bucket.put("ring.png", png("red"), overwrite=True)
    with pytest.raises(InputError, match=r"ring\.png changed while"):
        prepare(manifest, JobFolder(LocalStore(tmp_path / "out"), KEYS))


def test_a_picture_that_is_gone_meanwhile(tmp_path, s3_address, bucket):
    manifest = manifest_of(tmp_path, s3_address, "ring.png")
    bucket.delete("ring.png")
    with pytest.raises(InputError, match=r"ring\.png' does not exist"):
        prepare(manifest, JobFolder(LocalStore(tmp_path / "out"), KEYS))
