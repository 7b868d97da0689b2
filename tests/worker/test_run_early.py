"""A run that is refused, and one that has nothing to do, end before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import ExitCode, JobConflictError
from jobs.folder.layout import JobKeys
from jobs.storage import LocalStore, open_store
from sd_core.weights.export import save_single_file
from tests.sd_core.small import ODD, small_model
from tests.worker.test_run import digests, run

MANIFEST = """\
version: 1
name: early
model: odd
defaults: {width: 64, height: 64, steps: 2}
prompts:
  - prompt: a red circle
    seeds: [1, 2, 3]
"""
JOB_IMAGES = 3

# What `sdbatch` does, and then whether torch was imported, on a line of its own.
COMMAND = """\
import sys
from jobs.cli import main
code = main(sys.argv[1:])
print("imported torch" if "torch" in sys.modules else "no torch", file=sys.stderr)
sys.exit(code)
"""


class Place:
    """A folder with a manifest, a checkpoint, a store with the finished job, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.store = LocalStore(folder / "out")
        self.checkpoint = folder / "odd.safetensors"
        self.manifest = folder / "early.yaml"
        self.manifest.write_text(MANIFEST)
        save_single_file(small_model(ODD), self.checkpoint)

    def run(self, *, checkpoint: Path | None = None, **options):
        """A run in this process."""
        return run(
            self.manifest, checkpoint or self.checkpoint, self.store, cache=self.cache, **options
        )

    def command(self, *options: str, manifest: str = MANIFEST) -> subprocess.CompletedProcess[str]:
        """A run in a process of its own, of the same job unless told otherwise."""
        path = self.folder / "typed" / "early.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(manifest)
        arguments = ["run", str(path), "--store", str(self.store.root), "--dtype", "float32"]
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments, *options],
            env={
                **os.environ,
                "SDBATCH_CACHE": str(self.cache),
                "SDBATCH_MODELS": json.dumps({"odd": str(self.checkpoint)}),
            },
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A place whose job is done; it stays as it is."""
    place = Place(tmp_path_factory.mktemp("finished"))
    place.run()
    place.run(job="mine")
    return place


def test_nothing_to_do(finished):
    done = finished.command("--json")
    assert done.returncode == ExitCode.DONE, done.stderr
    assert "no torch" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rendered"], summary["reused"]) == (0, JOB_IMAGES)


OTHER = MANIFEST.replace("a red circle", "a red square")


@pytest.mark.parametrize(
    ("manifest", "options", "code", "said"),
    [
        (OTHER, ["--job", "mine"], ExitCode.CONFLICT, "mine holds another job"),
        (MANIFEST, ["--job", "a/b"], ExitCode.BAD_INPUT, "not a folder name"),
        (MANIFEST, ["--model", "nowhere.ckpt"], ExitCode.MODEL, "nowhere.ckpt: no such file"),
        (
            MANIFEST,
            ["--model", "an/model"],
            ExitCode.MODEL,
            "the Hugging Face hub is written hf:an/m",
        ),
        (MANIFEST, ["--vae", "~/no.ckpt"], ExitCode.MODEL, "~/no.ckpt: no such file"),
        (MANIFEST, ["--device", "abacus"], ExitCode.BAD_INPUT, "--device: found 'abacus'"),
    ],
)
def test_what_is_refused(finished, manifest, options, code, said):
    done = finished.command(*options, manifest=manifest)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "no torch" in done.stderr


def test_a_half_submitted_folder_of_another_job_is_refused(place):
    (place.store.root / "mine").mkdir(parents=True)
    place.run(job="mine")
    place.store.delete(JobKeys("mine").job)
    done = place.command("--job", "mine", manifest=OTHER)
    assert done.returncode == ExitCode.CONFLICT, done.stderr
    assert "mine holds another job" in done.stderr
    assert "no torch" in done.stderr


def test_a_folder_rendered_with_another_model_is_refused(place):
    other = place.folder / "other" / "odd.safetensors"
    other.parent.mkdir()
    save_single_file(small_model(ODD, seed=1), other)
    place.run(checkpoint=other, job="another")
    place.run(job="mine")
    done = place.command("--job", "mine", "--model", str(other))
    assert done.returncode == ExitCode.CONFLICT, done.stderr
    assert "mine is rendered with another model" in done.stderr
    assert "render all anew with --force" in done.stderr
    assert "no torch" in done.stderr


def test_another_model_in_the_same_file_is_noticed(place):
    place.run()
    before = place.checkpoint.stat()
    save_single_file(small_model(ODD, seed=1), place.checkpoint)
    os.utime(place.checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert place.checkpoint.stat().st_size == before.st_size
    with pytest.raises(JobConflictError, match="another model"):
        place.run()


def lose_an_image(store: LocalStore, keys: JobKeys) -> None:
    (first, *_) = store.list(keys.images_prefix)
    store.delete(first.key)


def lose_the_gallery(store: LocalStore, keys: JobKeys) -> None:
    store.delete(keys.index)


def lose_the_end(store: LocalStore, keys: JobKeys) -> None:
    store.delete(keys.done)


def damage_the_end(store: LocalStore, keys: JobKeys) -> None:
    store.put(keys.done, b"[" * 100_000, overwrite=True)


def lose_the_records(store: LocalStore, keys: JobKeys) -> None:
    store.delete(keys.records(0))


@pytest.mark.parametrize(
    "harm", [lose_an_image, lose_the_gallery, lose_the_end, damage_the_end, lose_the_records]
)
def test_what_is_missing_is_made_again(place, harm):
    keys = JobKeys(place.run().job)
    before = digests(place.store, keys.job_id)
    harm(place.store, keys)
    again = place.run()
    assert again.rendered == (harm is lose_an_image)
    assert again.rendered + again.reused == JOB_IMAGES
    assert digests(place.store, keys.job_id) == before
    assert json.loads(place.store.get(keys.done))["images"] == JOB_IMAGES
    assert place.store.head(keys.index) is not None


def test_a_bucket_s_image_that_was_replaced_is_made_again(place, s3_address, monkeypatch):
    """By one of the same size, which the server's note of its digest tells."""
    place.store = open_store(s3_address)
    job = place.run().job
    before = digests(place.store, job)
    assert place.run().reused == JOB_IMAGES
    key = f"{job}/{sorted(before)[1]}"
    place.store.put(key, bytes(len(place.store.get(key))), overwrite=True)
    assert place.run().rendered == 1
    assert digests(place.store, job) == before


def test_all_is_rendered_anew_if_that_is_asked_for(place):
    place.run()
    assert place.run(force=True).rendered == JOB_IMAGES
