"""Verification: each kind of flaw is found, what can be mended is, and nothing else changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.errors import ExitCode, InputError, JobConflictError, NotFoundError
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines, read_records
from jobs.manifest.load import load_manifest
from jobs.settings import Settings
from jobs.storage import LocalStore
from sd_core.weights.export import save_single_file
from tests.commands import run_command
from tests.sd_core.small import ODD, small_model
from worker.checkpoint.load import ModelChoice
from worker.observer import Observer
from worker.run import run_job
from worker.verify.check import Kind
from worker.verify.compare import psnr_db, same_kind
from worker.verify.job import Verified, Wanted, verify_job
from worker.verify_command import read_share

MANIFEST = """\
version: 1
name: rings
model: odd
defaults: {width: 64, height: 64, steps: 2}
prompts:
  - {prompt: a ring, seeds: {start: 0, count: 6}}
  - {prompt: a star, init_image: start.png, strength: 0.5, seeds: [1, 2]}
"""
IMAGES = 8


def shown(*arguments: object, **options: object):
    return contextlib.nullcontext(lambda done: None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint) -> Path:
    """The folder of a finished job; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "start.png")
    (root / "rings.yaml").write_text(MANIFEST)
    summary = run_job(
        load_manifest(root / "rings.yaml"),
        [choice(checkpoint)],
        LocalStore(root / "out"),
        job="rings",
        observe=lambda cost: contextlib.nullcontext(Observer()),
        status=shown,
        stop=threading.Event(),
    )
    assert summary.rendered == IMAGES
    return root / "out" / "rings"


@pytest.fixture
def job(made: Path, tmp_path: Path) -> JobFolder:
    shutil.copytree(made, tmp_path / "out" / "rings")
    return JobFolder(LocalStore(tmp_path / "out"), JobKeys("rings"))


def choice(checkpoint: Path, dtype: str = "float32") -> ModelChoice:
    cache = Path(os.environ["SDBATCH_CACHE"])
    return ModelChoice("odd", str(checkpoint), dtype=dtype, device="cpu", cache=cache)


def verify(
    job: JobFolder,
    model: ModelChoice | None = None,
    *,
    share: float | None = None,
    repair: bool = False,
) -> Verified:
    def choose(name: str) -> ModelChoice:
        assert name == "odd"
        assert model is not None, "no model is to be loaded"
        return model

    return verify_job(
        job,
        read_job_file(job),
        Wanted(share, repair),
        choose,
        Settings(),
        counting=shown,
        status=shown,
        observe=lambda images, evaluations: contextlib.nullcontext(Observer()),
        stop=threading.Event(),
    )


def contents(job: JobFolder) -> dict[str, str]:
    """Image path -> sha256."""
    return {
        job.keys.path(info.key): hashlib.sha256(job.get(info.key, limit_bytes=2**20)).hexdigest()
        for info in job.list(job.keys.images_prefix)
    }


def lines_by_index(job: JobFolder) -> dict[int, dict]:
    return {line["index"]: line for line in read_records(job)}


def flip(job: JobFolder, key: str) -> None:
    data = job.get(key, limit_bytes=2**20)
    job.put(key, data[:-30] + bytes([data[-30] ^ 4]) + data[-29:], overwrite=True)


def cut(job: JobFolder, key: str) -> None:
    data = job.get(key, limit_bytes=2**20)
    job.put(key, data[: len(data) // 2], overwrite=True)


def another(job: JobFolder, key: str) -> None:
    other = next(i.key for i in job.list(job.keys.images_prefix) if i.key != key)
    job.put(key, job.get(other, limit_bytes=2**20), overwrite=True)


def gone(job: JobFolder, key: str) -> None:
    job.delete(key)


def unrecorded(job: JobFolder, key: str) -> None:
    shard = next(i.key for i in job.list(job.keys.records_prefix))
    rows = [line for line in read_records(job) if job.keys(line["path"]) != key]
    shards: dict[str, list] = {}
    for row in rows:
        shards.setdefault(job.keys.records(row["index"] // 4), []).append(row)
    assert shard == job.keys.records(0)
    for name, own in shards.items():
        job.put(name, dump_lines(own), overwrite=True)


FLAWS = {
    flip: Kind.DAMAGED,
    cut: Kind.DAMAGED,
    another: Kind.FOREIGN,
    gone: Kind.MISSING,
    unrecorded: Kind.UNRECORDED,
}


def test_a_finished_job_is_right(job: JobFolder):
    verified = verify(job)
    assert verified.left == 0
    assert (verified.checked.right, verified.checked.images) == (IMAGES, IMAGES)
    assert verify(job, repair=True).mended == 0


@pytest.mark.parametrize(("damage", "kind"), FLAWS.items(), ids=lambda v: getattr(v, "__name__", v))
def test_each_flaw_is_found_and_mended(job: JobFolder, checkpoint: Path, damage, kind: Kind):
    before, line = contents(job), lines_by_index(job)[3]
    key = job.keys(line["path"])
    damage(job, key)
    harmed = contents(job)
    verified = verify(job)
    assert verified.checked.counts == {kind: 1}
    (finding,) = verified.checked.findings
    assert (finding.kind, finding.index, finding.path) == (kind, 3, line["path"])
    assert verified.checked.right == IMAGES - 1
    assert contents(job) == harmed  # nothing was touched
    if kind is Kind.FOREIGN:  # somebody's picture stays where it is
        assert verify(job, repair=True).mended == 0
        assert contents(job) == harmed
        return
    repaired = verify(job, choice(checkpoint), repair=True)
    assert (repaired.mended, repaired.left) == (1, 0)
    assert contents(job) == before
    assert verify(job).left == 0


def test_an_extra_object_is_named_and_left(job: JobFolder):
    job.put(job.keys("images/000099-s1-0123456789abcdef.png"), b"mine")
    verified = verify(job, repair=True)
    assert verified.checked.counts == {Kind.EXTRA: 1}
    assert verified.checked.right == IMAGES
    assert (verified.mended, verified.left) == (0, 1)
    assert job.head(job.keys("images/000099-s1-0123456789abcdef.png")) is not None


def test_all_of_it_gone_is_all_missing(job: JobFolder, checkpoint: Path):
    before = contents(job)
    for path in before:
        job.delete(job.keys(path))
    verified = verify(job, choice(checkpoint), repair=True)
    assert verified.checked.counts == {Kind.MISSING: IMAGES}
    assert verified.mended == IMAGES
    assert contents(job) == before


def test_a_sample_has_the_same_pixels_on_the_same_kind_of_device(job: JobFolder, checkpoint: Path):
    before = contents(job)
    sampled = verify(job, choice(checkpoint), share=0.5).sampled
    assert sampled is not None
    assert (sampled.images, sampled.same, sampled.close) == (IMAGES // 2, IMAGES // 2, 0)
    assert contents(job) == before


def test_another_number_format_draws_nearly_the_same(job: JobFolder, checkpoint: Path):
    verified = verify(job, choice(checkpoint, "bfloat16"), share=1.0)
    sampled = verified.sampled
    assert sampled is not None
    assert verified.left == 0
    assert sampled.same + sampled.close == IMAGES
    assert sampled.close
    assert sampled.least_psnr_db is not None


def test_what_the_model_does_not_draw_is_different_and_mended(job: JobFolder, checkpoint: Path):
    """A picture whose bytes fit its record, but not what it says of its making."""
    before, lines = contents(job), lines_by_index(job)
    path = lines[3]["path"]
    data = job.get(job.keys(path), limit_bytes=2**20)
    changed = repainted(data)
    job.put(job.keys(path), changed, overwrite=True)
    lines[3] |= {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
    for shard in range(2):
        rows = [line for index, line in lines.items() if index // 4 == shard]
        job.put(job.keys.records(shard), dump_lines(rows), overwrite=True)
    assert verify(job).left == 0
    verified = verify(job, choice(checkpoint), share=1.0, repair=True)
    assert verified.checked.counts == {Kind.DIFFERENT: 1}
    assert verified.checked.findings[0].path == path
    assert verified.mended == 1
    assert contents(job) == before


def repainted(data: bytes) -> bytes:
    """The same file, with the same record, of other pixels."""
    from jobs.pictures.embedded import read_record
    from worker.output.encode import encode_image

    return encode_image(np.zeros((64, 64, 3), np.uint8), read_record(data), "png")


def test_a_model_of_other_weights_is_refused(job: JobFolder, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_single_file(small_model(ODD, seed=5), other)
    with pytest.raises(JobConflictError, match="is rendered with another model"):
        verify(job, choice(other), share=0.5)


def test_a_job_that_was_never_begun_has_nothing_to_verify(job: JobFolder):
    job.delete(job.keys.model())
    with pytest.raises(NotFoundError, match="none was begun"):
        verify(job)


def test_images_that_failed_are_not_expected(job: JobFolder):
    line = lines_by_index(job)[3]
    job.delete(job.keys(line["path"]))
    failure = {"index": 3, "name": line["name"], "prompt": "a ring", "seed": 3, "reason": "none"}
    job.put(job.keys.failures, dump_lines([failure | {"attempts": 1}]))
    verified = verify(job)
    assert verified.left == 0
    assert (verified.checked.right, verified.checked.failed) == (IMAGES - 1, 1)


@pytest.mark.parametrize("text", ["0%", "101%", "1", "-1%", "x", "", "1e2%", "nan%", "0.0%"])
def test_what_is_no_share(text: str):
    with pytest.raises(InputError, match="expected more than 0% and up to 100%"):
        read_share(text)


def test_shares():
    assert [read_share(text) for text in ("1%", "100%", " 0.5% ")] == [0.01, 1.0, 0.005]


def test_kinds_and_distances():
    record = {"reproducible": "exact", "device": "cpu", "dtype": "float32", "software": {}}
    assert same_kind(record, dict(record))
    assert not same_kind(record | {"reproducible": "fast"}, record | {"reproducible": "fast"})
    assert not same_kind(record, record | {"dtype": "bfloat16"})
    assert not same_kind(record, record | {"software": {"torch": "1"}})
    assert psnr_db(b"no picture", b"no picture") == 0.0


def test_the_command(job: JobFolder, tmp_path: Path):
    cache = {"SDBATCH_CACHE": os.environ["SDBATCH_CACHE"]}
    path = str(tmp_path / "out" / "rings")
    assert run_command(["verify", path], cache).returncode == ExitCode.DONE
    flip(job, job.keys(lines_by_index(job)[0]["path"]))
    found = run_command(["verify", path], cache)
    assert found.returncode == ExitCode.STORE
    assert "7 of 8 are right" in found.stdout
    assert "damaged   1" in found.stdout
    none = run_command(["verify", str(tmp_path)], cache)
    assert none.returncode == ExitCode.BAD_INPUT
    assert "is no folder of a job" in none.stderr


def test_a_repair_beside_what_it_cannot_mend_still_reports(job: JobFolder, checkpoint: Path):
    lines = lines_by_index(job)
    another(job, job.keys(lines[1]["path"]))
    gone(job, job.keys(lines[5]["path"]))
    verified = verify(job, choice(checkpoint), repair=True)
    assert verified.checked.counts == {Kind.FOREIGN: 1, Kind.MISSING: 1}
    assert (verified.mended, verified.left) == (1, 1)
