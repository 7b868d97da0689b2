"""Digests of models that were loaded before: remembered for as long as their files are the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sd_core.weights.hub_server import running_hub
from tests.sd_core.weights.test_hub import point_to
from tests.servers_s3 import BUCKET, log_in
from worker.checkpoint import digests, s3_source
from worker.checkpoint.digests import identity, recall, remember
from worker.checkpoint.load import ModelChoice

DIGEST = "ab" * 32


def of(source: Path | str, **more) -> str | None:
    return identity(ModelChoice("any", str(source), **more))


def change(path: Path) -> None:
    """Another content of the same size, written at the same time as far as anybody says."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of a model, a part of which lies elsewhere."""
    for name in ("model/text_encoder", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("model/model_index.json", "model/text_encoder/model.bin", "elsewhere/unet.bin"):
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "model" / "unet").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "model"


class TestFiles:
    def test_the_same_file_has_the_same_identity(self, model, monkeypatch):
        monkeypatch.chdir(model.parent)
        monkeypatch.setenv("HOME", str(model.parent))
        assert of(model) == of("model.ckpt") == of("~/model.ckpt") is not None

    def test_a_changed_file_has_another(self, model):
        before = of(model)
        change(model)
        assert of(model) not in (None, before)

    def test_a_file_put_in_its_place_has_another(self, model, tmp_path):
        before, times = of(model), model.stat()
        (tmp_path / "new").write_bytes(b"others!")
        os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
        (tmp_path / "new").replace(model)
        assert of(model) not in (None, before)

    def test_what_is_read_beside_it_counts(self, model, tmp_path):
        other = tmp_path / "other.ckpt"
        other.write_bytes(b"other")
        seen = {of(model), of(model, vae=str(other)), of(model, config=other), of("demo")}
        assert len(seen) == 4
        before = of(model, vae=str(other))
        change(other)
        assert of(model, vae=str(other)) != before

    def test_another_version_of_what_reads_it_counts(self, model, monkeypatch):
        before = of(model)
        monkeypatch.setattr(digests, "_code", lambda: "another")
        assert of(model) != before

    @pytest.mark.parametrize("harm", ["changed", "added", "changed behind a link"])
    def test_all_files_of_a_folder_count(self, folder, harm):
        before = of(folder)
        assert before is not None
        if harm == "added":
            (folder / "text_encoder" / "model.safetensors").write_bytes(b"preferred")
        else:
            change(folder / ("unet/unet.bin" if "link" in harm else "text_encoder/model.bin"))
        assert of(folder) not in (None, before)

    def test_a_folder_of_too_many_files_is_not_looked_through(self, folder, monkeypatch):
        monkeypatch.setattr(digests, "MOST_FILES", 4)
        assert of(folder) is None

    def test_a_file_that_is_not_there_has_none(self, model):
        assert of(model.with_name("absent.ckpt")) is None
        assert of(model, vae="absent.ckpt") is None


class TestHub:
    def test_a_branch_is_its_commit(self, tmp_path, monkeypatch):
        repo = tmp_path / "repo"
        repo.mkdir()
        (repo / ".gitattributes").write_text("")
        refs = {"main": "a" * 40, "old": "b" * 40, "also": "a" * 40}
        with running_hub({"some/model": repo}, refs) as server:
            point_to(monkeypatch, server.url, tmp_path / "cache")
            before = of("hf:some/model")
            assert of("hf:some/model") == before is not None
            assert of("hf:some/model@old") not in (None, before)
            server.refs["main"] = "c" * 40
            assert of("hf:some/model") not in (None, before)
            assert of("hf:some/none") is None

    def test_a_commit_needs_no_network(self, monkeypatch, tmp_path):
        point_to(monkeypatch, "http://127.0.0.1:1", tmp_path / "cache")
        assert of("hf:some/model@" + "a" * 40) is not None
        assert of("hf:some/model") is None


class TestBucket:
    def test_an_object_is_its_etag(self, s3_address, s3_server, aws, monkeypatch):
        monkeypatch.setattr(s3_source, "CHECK_RETRIES", 0)
        client, source = s3_server.client(), f"{s3_address}/model.ckpt"
        key = source.removeprefix(f"s3://{BUCKET}/")
        client.put_object(Bucket=BUCKET, Key=key, Body=b"old")
        before = of(source)
        assert of(source) == before is not None
        client.put_object(Bucket=BUCKET, Key=key, Body=b"new")
        assert of(source) not in (None, before)
        log_in(aws, "http://127.0.0.1:1")
        assert of(source) is None


class TestMemory:
    def test_what_was_remembered_is_recalled(self, model, tmp_path):
        found = of(model)
        assert recall(tmp_path / "cache", found) is None
        remember(tmp_path / "cache", found, DIGEST)
        assert recall(tmp_path / "cache", found) == DIGEST
        assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b'{"digest": 1}',
            b'{"digest": "ab"}',
            b"\xff",
            b"[" * 100_000,
            b'{"digest": "%s", "more": "%s"}' % (DIGEST.encode(), b"x" * 10_000),
        ],
    )
    def test_a_damaged_memory_is_none(self, tmp_path, content):
        remember(tmp_path, DIGEST, DIGEST)
        (path,) = (tmp_path / "digests").iterdir()
        path.write_bytes(content)
        assert recall(tmp_path, DIGEST) is None

    def test_a_cache_that_cannot_be_written_is_no_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        remember(tmp_path / "file", DIGEST, DIGEST)
        assert recall(tmp_path / "file", DIGEST) is None


def test_no_home(monkeypatch):
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError))
    remember(Path("~/cache"), DIGEST, DIGEST)
    assert recall(Path("~/cache"), DIGEST) is None
