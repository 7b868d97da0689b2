"""A whole job in one process: complete, continued after any end, and honest about failures."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import jobs.manifest.manifest
from jobs.budget import Budget
from jobs.client.collect import collect
from jobs.dataset import webdataset
from jobs.errors import (
    BudgetSpent,
    InputError,
    Interrupted,
    JobConflictError,
    ModelError,
    StoreError,
    StoreFullError,
)
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.record_writer import ShardRecords
from jobs.folder.records import read_failures, read_records
from jobs.manifest.load import load_manifest
from jobs.pictures.embedded import read_record
from jobs.plan.shards import LEAST_IMAGES
from jobs.storage import LocalStore
from jobs.task import Failure
from sd_core.weights.export import save_single_file
from tests.forked import ForkedProcess
from tests.sd_core.small import ODD, small_model
from tests.servers import PATIENCE_S, wait_for
from worker.checkpoint.load import ModelChoice
from worker.faults import Reason
from worker.observer import Observer
from worker.output.live_gallery import gallery_kept_up_to_date
from worker.render.budget import BudgetWatch
from worker.run import run_job

MANIFEST = """\
version: 1
name: mixed
defaults: {width: 64, height: 64, steps: 3, guidance: 7.5}
prompts:
  - prompt: a red circle
    seeds: {start: 0, count: 4}
  - prompt: a green star
    guidance: 1.0
    sampler: euler_a
  - prompt: a blue ring
    init_image: start.png
    strength: 0.7
  - prompt: a black cross
    width: 96
"""
IMAGES = 7

# Long enough to be caught in the middle.
LONG_MANIFEST = MANIFEST.replace("count: 4", "count: 40").replace("steps: 3", "steps: 20")
LONG_IMAGES = 43


class Recorder(Observer):
    """Counts, and may do something when an image is finished."""

    def __init__(self, on_rendered=lambda count: None) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: list[str] = []
        self._on_rendered = on_rendered
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self.counts["steps"] += 1

    def rendered(self, index: int, seconds: float) -> None:
        with self._lock:
            self.counts["rendered"] += 1
        self._on_rendered(self.counts["rendered"])

    def reused(self, index: int, evaluations: int) -> None:
        self.counts["reused"] += 1

    def failed(self, failure: Failure, evaluations: int, reason: Reason) -> None:
        self.reasons.append(failure.reason)
        self.counts["not needed"] += evaluations


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


@pytest.fixture
def manifest_path(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    path = tmp_path / "mixed.yaml"
    path.write_text(MANIFEST)
    return path


def run(
    path: Path,
    checkpoint: Path,
    store: LocalStore,
    *,
    recorder=None,
    stop=None,
    cache=None,
    **options,
):
    cache = cache or Path(os.environ["SDBATCH_CACHE"])
    return run_job(
        load_manifest(path),
        [ModelChoice("odd", str(checkpoint), dtype="float32", device="cpu", cache=cache)],
        store,
        observe=lambda cost: contextlib.nullcontext(recorder or Recorder()),
        status=lambda text: contextlib.nullcontext(),
        stop=stop or threading.Event(),
        **options,
    )


def digests(store: LocalStore, job: str) -> dict[str, str]:
    """Image path -> sha256 of what is really in the store."""
    keys = JobKeys(job)
    return {
        keys.path(info.key): hashlib.sha256(store.get(info.key)).hexdigest()
        for info in store.list(keys.images_prefix)
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, checkpoint):
    """Job id and digests of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "start.png")
    (folder / "mixed.yaml").write_text(MANIFEST)
    store = LocalStore(folder / "out")
    summary = run(folder / "mixed.yaml", checkpoint, store)
    return summary.job, digests(store, summary.job)


def test_a_manifest_is_expanded_once(tmp_path, checkpoint, monkeypatch):
    """Cost, names, shards and the plan of a large job are all of one pass."""
    images, made = 25_000, 0
    path = tmp_path / "many.yaml"
    body = "version: 1\nmodel: odd\ndefaults: {width: 64, height: 64, steps: 3}\n"
    path.write_text(f"{body}prompts: [{{prompt: a ring, seeds: {{start: 0, count: {images}}}}}]\n")
    expand = jobs.manifest.manifest.expand

    def counting(*arguments, **options):
        nonlocal made
        for task in expand(*arguments, **options):
            made += 1
            yield task

    monkeypatch.setattr(jobs.manifest.manifest, "expand", counting)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="stopped after 0 of 25,000 images"):
        run(path, checkpoint, LocalStore(tmp_path / "out"), stop=stop)
    assert made == images


SWEEP = """\
version: 1
name: sweep
defaults: {width: 64, height: 64, steps: 2}
prompts: [a red circle, a green star]
matrix: {seeds: [1, 2], guidance: [3, 5]}
"""


def test_a_growing_sweep_renders_what_is_new(tmp_path, checkpoint):
    path, store = tmp_path / "sweep.yaml", LocalStore(tmp_path / "out")

    def render(text: str, **options) -> tuple[int, int, int]:
        """Images rendered, and taken from earlier jobs; evaluations."""
        path.write_text(text)
        recorder = Recorder()
        summary = run(path, checkpoint, store, recorder=recorder, **options)
        assert summary.rendered + summary.reused == summary.images
        return summary.rendered, summary.copied, recorder.counts["steps"]

    assert render(SWEEP) == (8, 0, 8 * 3)  # PLMS takes one more
    assert render(SWEEP.replace("[1, 2]", "[1, 2, 3]")) == (4, 8, 4 * 3)
    renamed = SWEEP.replace("name: sweep", "name: other").replace("[1, 2]", "[3, 1]")
    assert render(renamed) == (0, 8, 0)
    assert render(renamed) == (0, 0, 0)  # there already
    again = SWEEP.replace("name: sweep", "name: again")
    assert render(again, reuse=False)[:2] == (8, 0)
    assert render(again.replace("again", "new"), force=True)[:2] == (8, 0)


def test_a_data_set_that_was_broken_off_is_completed(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(webdataset, "SHARD_IMAGES", 3)
    monkeypatch.setattr(webdataset.WebDataset.__init__, "__defaults__", (3,))
    path, store = tmp_path / "sweep.yaml", LocalStore(tmp_path / "out")
    path.write_text(SWEEP + "output: {dataset: webdataset}\n")
    job = run(path, checkpoint, store).job
    folder = tmp_path / "out" / job / "webdataset"
    assert len(list(folder.glob("*.tar"))) == 3  # of eight images
    for name in ("00002.tar", "00002.parquet"):
        (folder / name).unlink()
    assert run(path, checkpoint, store).rendered == 0
    assert len(list(folder.glob("*.tar"))) == 3


def test_a_run_rests_when_its_budget_is_used_up(tmp_path, checkpoint):
    path, store = tmp_path / "sweep.yaml", LocalStore(tmp_path / "out")
    many = SWEEP.replace("[1, 2]", "{start: 0, count: 40}")
    path.write_text(many + "budget: {images: 20}\n")
    with pytest.raises(BudgetSpent, match=r"the budget of 20 images is used up after \d+ of 160"):
        run(path, checkpoint, store)
    keys = JobKeys(load_manifest(path).job_id())
    done = len(digests(store, keys.job_id))
    assert 20 <= done < 160
    assert store.head(keys.index) is not None  # with a gallery of what there is
    with pytest.raises(BudgetSpent):  # nothing more is rendered
        run(path, checkpoint, store)
    assert len(digests(store, keys.job_id)) - done < 40
    path.write_text(many + "budget: {images: 160, hours: 9}\n")
    assert run(path, checkpoint, store).job == keys.job_id
    assert len(digests(store, keys.job_id)) == 160


def test_time_is_a_budget_too():
    now, stop = [0.0], threading.Event()
    watch = BudgetWatch(Budget(money=1.0, price=2.0), stop, lambda: now[0])
    watch.step()
    now[0] = 1799.0
    watch.step()
    assert not stop.is_set()
    now[0] = 1801.0
    watch.step()
    assert stop.is_set()
    assert watch.spent == "1 at 2 an hour"


def test_a_data_set_is_written_beside_the_images_also_when_asked_for_later(tmp_path, checkpoint):
    path, store = tmp_path / "sweep.yaml", LocalStore(tmp_path / "out")
    path.write_text(SWEEP)
    summary = run(path, checkpoint, store)
    folder = tmp_path / "out" / summary.job
    table = pyarrow.parquet.read_table(folder / "records.parquet")
    sha256 = [record["sha256"] for record in read_records(JobFolder(store, JobKeys(summary.job)))]
    assert table.column("sha256").to_pylist() == sha256
    assert not (folder / "webdataset").exists()
    path.write_text(SWEEP + "output: {dataset: webdataset}\n")
    again = run(path, checkpoint, store)
    assert (again.job, again.rendered) == (summary.job, 0)
    twin = pyarrow.parquet.read_table(folder / "webdataset" / "00000.parquet")
    assert twin.column("sha256").to_pylist() == sha256
    assert (folder / "webdataset" / "00000.tar").stat().st_size > 0
    assert run(path, checkpoint, store).load_s == 0  # nothing to do


def test_what_a_stopped_run_has_made_is_taken(tmp_path, checkpoint):
    path, store, stop = tmp_path / "sweep.yaml", LocalStore(tmp_path / "out"), threading.Event()
    path.write_text(SWEEP.replace("[1, 2]", "{start: 0, count: 40}"))
    recorder = Recorder(lambda count: stop.set())
    with pytest.raises(Interrupted):
        run(path, checkpoint, store, recorder=recorder, stop=stop)
    made = recorder.counts["rendered"]
    path.write_text(path.read_text().replace("name: sweep", "name: other"))
    summary = run(path, checkpoint, store)
    assert summary.copied == made
    assert summary.rendered == summary.images - made


@pytest.mark.parametrize("thumbnails", [True, False])
def test_thumbnails_are_made_and_collected_unless_declined(tmp_path, checkpoint, thumbnails):
    path = tmp_path / "large.yaml"
    path.write_text(
        "version: 1\ndefaults: {width: 384, height: 64, steps: 1}\nprompts: [a ring]\n"
        f"output: {{thumbnails: {str(thumbnails).lower()}}}\n"
    )
    store = LocalStore(tmp_path / "out")
    folder = JobFolder(store, JobKeys(run(path, checkpoint, store).job))
    (record,) = read_records(folder)
    assert ("thumbnail" in record) == thumbnails
    collected = collect(folder, tmp_path / "mine").folder
    found = sorted(str(p.relative_to(collected)) for p in collected.rglob("*.webp"))
    assert found == ([record["thumbnail"]] if thumbnails else [])


def test_job_folder_is_complete(manifest_path, checkpoint, tmp_path):
    store = LocalStore(tmp_path / "out")
    recorder = Recorder()
    summary = run(manifest_path, checkpoint, store, recorder=recorder)
    assert (summary.images, summary.rendered, summary.reused, summary.failed) == (IMAGES, 7, 0, 0)
    keys = JobKeys(summary.job)
    records = list(read_records(JobFolder(store, keys)))
    assert [record["index"] for record in records] == list(range(IMAGES))
    assert {r["path"]: r["sha256"] for r in records} == digests(store, summary.job)
    assert recorder.counts["steps"] == sum(record["evaluations"] for record in records)
    done = json.loads(store.get(keys.done))
    assert (done["images"], done["failed"]) == (IMAGES, 0)
    for key in (keys.manifest, keys.plan_part(0), keys.index, keys.sheet(0)):
        assert store.head(key) is not None, key
    assert store.get(keys.manifest) == manifest_path.read_bytes()
    first = read_record(store.get(keys(records[0]["path"])))
    assert (first["prompt"], first["seed"], first["sampler"]) == ("a red circle", 0, "plms")
    assert first["model"]["digest"] == records[-1]["model"]["digest"]
    assert str(tmp_path) not in json.dumps(records)


def test_the_resolved_manifest_makes_the_same_images_elsewhere(
    manifest_path, checkpoint, tmp_path, undisturbed
):
    job, expected = undisturbed
    run(manifest_path, checkpoint, LocalStore(tmp_path / "out"))
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "out" / job / "inputs", moved / "inputs")
    shutil.copy(tmp_path / "out" / job / "manifest.resolved.yaml", moved)
    (tmp_path / "start.png").unlink()
    store = LocalStore(tmp_path / "again")
    assert run(moved / "manifest.resolved.yaml", checkpoint, store).job == job
    assert digests(store, job) == expected


def test_second_run_renders_only_what_is_missing(manifest_path, checkpoint, tmp_path, undisturbed):
    store = LocalStore(tmp_path / "out")
    job, expected = undisturbed
    assert run(manifest_path, checkpoint, store).job == job
    again = run(manifest_path, checkpoint, store)
    assert (again.rendered, again.reused) == (0, IMAGES)
    lost = sorted(expected)[2]
    store.delete(f"{job}/{lost}")
    store.delete(JobKeys(job).records(0))
    again = run(manifest_path, checkpoint, store)
    assert (again.rendered, again.reused) == (1, IMAGES - 1)
    assert digests(store, job) == expected
    records = list(read_records(JobFolder(store, JobKeys(job))))
    assert {r["path"]: r["sha256"] for r in records} == expected


def test_equal_images_of_a_job_are_rendered_once_and_told_apart(
    manifest_path, checkpoint, tmp_path
):
    """In a fresh folder none of them was there before."""
    text = MANIFEST + "  - a red circle\n" + 'output: {name: "{prompt}-s{seed}"}\n'
    manifest_path.write_text(text.replace("start: 0", "start: 42"))
    store = LocalStore(tmp_path / "out")
    first = run(manifest_path, checkpoint, store)
    assert (first.images, first.rendered, first.reused, first.equal) == (IMAGES + 1, IMAGES, 1, 1)
    store.delete(JobKeys(first.job).done)
    again = run(manifest_path, checkpoint, store)
    assert (again.rendered, again.reused, again.equal) == (0, IMAGES + 1, 0)


def test_a_run_shows_what_it_has_while_it_renders(manifest_path, checkpoint, tmp_path, monkeypatch):
    manifest_path.write_text(LONG_MANIFEST)
    store = LocalStore(tmp_path / "out")
    keys = JobKeys(load_manifest(manifest_path).job_id())
    often = partial(gallery_kept_up_to_date, every_s=0.01)
    monkeypatch.setattr("worker.run.gallery_kept_up_to_date", often)
    monkeypatch.setitem(ShardRecords.__init__.__kwdefaults__, "interval_s", 0.0)
    seen = []

    def look(count):
        if count == 3:
            wait_for(lambda: store.head(keys.index) is not None, "the gallery")
            seen.append(store.get(keys.index).decode())

    summary = run(manifest_path, checkpoint, store, recorder=Recorder(on_rendered=look))
    assert f"of {LONG_IMAGES} pictures so far; load this page again" in seen[0]
    assert summary.rendered == LONG_IMAGES
    page = store.get(keys.index).decode()  # that of the end
    assert "pictures so far" not in page
    assert "grid-0000.jpg" in page


def test_a_gallery_that_cannot_be_written_stops_no_run(tmp_path, monkeypatch, caplog):
    tried = threading.Semaphore(0)

    def broken(*_, **__):
        tried.release()
        raise StoreError("the disk is gone")

    monkeypatch.setattr("jobs.report.LiveGallery.refresh", broken)
    folder = JobFolder(LocalStore(tmp_path), JobKeys("job"))
    with gallery_kept_up_to_date(folder, planned=3, every_s=0.001):
        for _ in range(3):
            assert tried.acquire(timeout=PATIENCE_S)
    assert caplog.text.count("there is no gallery for now: the disk is gone") == 1


def test_force_renders_anew_and_gives_the_same_bytes(
    manifest_path, checkpoint, tmp_path, undisturbed
):
    store = LocalStore(tmp_path / "out")
    job, expected = undisturbed
    run(manifest_path, checkpoint, store)
    damaged = f"{job}/{sorted(expected)[0]}"
    store.put(damaged, b"damaged", overwrite=True)
    again = run(manifest_path, checkpoint, store, force=True)
    assert (again.rendered, again.reused) == (IMAGES, 0)
    assert digests(store, job) == expected


def test_a_stopped_run_keeps_what_is_finished(manifest_path, checkpoint, tmp_path):
    manifest_path.write_text(LONG_MANIFEST)
    store = LocalStore(tmp_path / "out")
    job = load_manifest(manifest_path).job_id()
    stop = threading.Event()
    recorder = Recorder(on_rendered=lambda count: stop.set())
    with pytest.raises(Interrupted, match="the same command continues") as stopped:
        run(manifest_path, checkpoint, store, recorder=recorder, stop=stop)
    assert f"\ngallery   {store.root}/{job}/index.html" in str(stopped.value)
    kept = digests(store, job)
    assert 1 <= len(kept) < LONG_IMAGES
    assert {r["path"]: r["sha256"] for r in read_records(JobFolder(store, JobKeys(job)))} == kept
    assert store.head(JobKeys(job).done) is None
    page = store.get(JobKeys(job).index).decode()
    assert f"is not finished: it has {len(kept)} of {LONG_IMAGES} pictures so far" in page
    assert Image.open(io.BytesIO(store.get(JobKeys(job).sheet(0)))).width > 0


def test_a_run_stopped_before_its_first_image_has_no_gallery(manifest_path, checkpoint, tmp_path):
    store, stop = LocalStore(tmp_path / "out"), threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="stopped after 0 of 7 images"):
        run(manifest_path, checkpoint, store, stop=stop)
    assert store.head(JobKeys(load_manifest(manifest_path).job_id()).index) is None


def test_trouble_with_the_gallery_of_a_stopped_run_hides_no_stop(
    manifest_path, checkpoint, tmp_path, monkeypatch, caplog
):
    manifest_path.write_text(LONG_MANIFEST)

    def broken(*_, **__):
        raise StoreError("the disk is gone")

    monkeypatch.setattr("worker.run.write_unfinished_report", broken)
    stop = threading.Event()
    with pytest.raises(Interrupted):
        run(
            manifest_path,
            checkpoint,
            LocalStore(tmp_path / "out"),
            recorder=Recorder(on_rendered=lambda count: stop.set()),
            stop=stop,
        )
    assert "there is no gallery: the disk is gone" in caplog.text


class Running:
    """A process of the real command, which writes into a folder's `said` and `errors`."""

    def __init__(self, folder: Path, path: Path, checkpoint: Path, *options: str) -> None:
        self.store, self._said, self._errors = folder / "out", folder / "said", folder / "errors"
        for file in (self._said, self._errors):
            file.unlink(missing_ok=True)
        given = ["--model", str(checkpoint), "--store", str(self.store), "--dtype", "float32"]
        entry = ["jobs.cli", "run", str(path), *given, *options]
        self.process = ForkedProcess(entry, os.environ, self._said, self._errors)

    def wait(self, timeout: float = 120) -> tuple[int, str, str]:
        """Code, and what it said to stdout and stderr."""
        return self.process.wait(timeout), self._said.read_text(), self._errors.read_text()

    def wait_for_image(self) -> None:
        """Until the first image is in the store, or the process has ended."""
        deadline = time.monotonic() + 120
        while not list(self.store.glob("*/images/*.png")):
            assert self.process.poll() is None, self.wait()
            assert time.monotonic() < deadline
            time.sleep(0.01)


def start(folder: Path, path: Path, checkpoint: Path) -> Running:
    """A run of the real command that has stored its first image."""
    path.write_text(LONG_MANIFEST)
    running = Running(folder, path, checkpoint)
    running.wait_for_image()
    return running


def test_killed_in_the_middle_loses_and_repeats_nothing(manifest_path, checkpoint, tmp_path):
    store = tmp_path / "out"
    running = start(tmp_path, manifest_path, checkpoint)
    running.process.kill()
    running.wait()
    kept = len(list(store.glob("*/images/*.png")))
    assert 1 <= kept < LONG_IMAGES
    code, said, errors = Running(tmp_path, manifest_path, checkpoint, "--json").wait()
    assert code == 0, errors
    summary = json.loads(said)
    assert summary["reused"] == kept
    assert summary["rendered"] + kept == summary["images"] == LONG_IMAGES
    disturbed = digests(LocalStore(store), summary["job"])
    calm = LocalStore(tmp_path / "calm")
    assert digests(calm, run(manifest_path, checkpoint, calm).job) == disturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_between_steps_with_its_own_code(manifest_path, checkpoint, tmp_path, number):
    running = start(tmp_path, manifest_path, checkpoint)
    running.process.send_signal(number)
    code, _, said = running.wait(60)
    assert code == 130
    assert "the same command continues" in said
    assert "Traceback" not in said
    store = LocalStore(tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("mixed-*")
    records = {r["path"]: r["sha256"] for r in read_records(JobFolder(store, JobKeys(folder.name)))}
    assert records == digests(store, folder.name)


def test_an_image_that_fails_fails_alone(manifest_path, checkpoint, tmp_path, undisturbed):
    store = LocalStore(tmp_path / "out")
    job, expected = undisturbed
    keys = JobKeys(job)
    manifest = load_manifest(manifest_path)
    (name,) = manifest.inputs
    get = store.get
    store.get = lambda key, **limit: (  # the disk gives other bytes than were written
        b"no picture" if key == keys.input(name) else get(key, **limit)
    )
    recorder = Recorder()
    summary = run(manifest_path, checkpoint, store, recorder=recorder)
    assert (summary.rendered, summary.failed) == (IMAGES - 1, 1)
    (failure,) = read_failures(JobFolder(store, keys))
    assert failure.index == 5
    assert name in failure.reason
    assert len(recorder.reasons) == 1
    assert recorder.counts["not needed"] == 3  # two of three steps, the first of PLMS twice
    store.get = get
    summary = run(manifest_path, checkpoint, store)
    assert (summary.rendered, summary.reused, summary.failed) == (1, IMAGES - 1, 0)
    assert store.head(keys.failures) is None
    assert digests(store, job) == expected


@pytest.mark.parametrize("recorded", [True, False])
def test_a_damaged_image_is_rendered_again(
    manifest_path, checkpoint, tmp_path, undisturbed, recorded
):
    store = LocalStore(tmp_path / "out")
    job, expected = undisturbed
    run(manifest_path, checkpoint, store)
    store.put(f"{job}/{sorted(expected)[3]}", b"damaged", overwrite=True)
    if not recorded:
        store.delete(JobKeys(job).records(0))
    summary = run(manifest_path, checkpoint, store)
    assert (summary.rendered, summary.reused, summary.failed) == (1, IMAGES - 1, 0)
    assert digests(store, job) == expected


class Lagging(LocalStore):
    """Its lists do not have the records that were written last. Another writer's flush, which had
    begun before, comes after the last one of ours, and has one line less.
    """

    def __init__(self, root, *, hides=False, loses=False) -> None:
        super().__init__(root)
        self.hides, self.loses = hides, loses

    def list(self, prefix):
        found = super().list(prefix)
        return (i for i in found if not (self.hides and "/records/" in i.key))

    def put(self, key, data, **options):
        lines = data.splitlines(keepends=True)
        if self.loses and key.endswith("/records/000000.jsonl") and len(lines) == LEAST_IMAGES:
            data = b"".join(lines[:-1])
            self.loses = False
        return super().put(key, data, **options)


@pytest.mark.parametrize("fault", [{"hides": True}, {"loses": True}], ids=["hides", "loses"])
def test_a_run_is_done_once_all_its_images_have_records(
    manifest_path, checkpoint, tmp_path, undisturbed, fault
):
    store = Lagging(tmp_path / "out", **fault)
    job, expected = undisturbed
    summary = run(manifest_path, checkpoint, store)
    assert (summary.rendered, summary.failed) == (IMAGES, 0)
    store = LocalStore(tmp_path / "out")
    assert json.loads(store.get(JobKeys(job).done))["images"] == IMAGES
    records = {r["path"]: r["sha256"] for r in read_records(JobFolder(store, JobKeys(job)))}
    assert records == digests(store, job) == expected
    gallery = store.get(JobKeys(job).index).decode()
    assert all(path in gallery for path in expected)


def test_a_run_whose_image_is_gone_at_its_end_is_not_done(
    manifest_path, checkpoint, tmp_path, undisturbed
):
    class Forgetting(LocalStore):
        """At the end, it has no records any more, and not all images."""

        def list(self, prefix):
            return (info for info in super().list(prefix) if "/records/" not in info.key)

        def put(self, key, data, **options):
            if key.endswith("/index.html"):
                keys = JobKeys(key.partition("/")[0])
                self.delete(keys.records(0))
                self.delete(keys(min(expected)))
            return super().put(key, data, **options)

    job, expected = undisturbed
    store = Forgetting(tmp_path / "out")
    with pytest.raises(StoreError, match=r"1 image is gone or damaged.*; run the job again"):
        run(manifest_path, checkpoint, store)
    store = LocalStore(tmp_path / "out")
    assert store.head(JobKeys(job).done) is None
    summary = run(manifest_path, checkpoint, store)
    assert (summary.rendered, summary.reused) == (1, IMAGES - 1)
    assert digests(store, job) == expected


def test_full_disk_keeps_finished_images_valid(manifest_path, checkpoint, small_disk, undisturbed):
    job, expected = undisturbed
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(940_000))
    store = LocalStore(small_disk / "out")
    with pytest.raises(StoreFullError, match="out"):
        run(manifest_path, checkpoint, store)
    kept = digests(store, job)
    assert kept.items() <= expected.items()
    ballast.unlink()
    again = run(manifest_path, checkpoint, store)
    assert again.reused == len(kept)
    assert digests(store, job) == expected


def test_folder_of_another_job_is_refused(manifest_path, checkpoint, tmp_path):
    store = LocalStore(tmp_path / "out")
    run(manifest_path, checkpoint, store, job="mine")
    before = digests(store, "mine")
    manifest_path.write_text(MANIFEST.replace("a red circle", "a red square"))
    with pytest.raises(JobConflictError, match="another job"):
        run(manifest_path, checkpoint, store, job="mine")
    assert digests(store, "mine") == before


def test_images_of_another_model_are_not_mixed_in(manifest_path, checkpoint, tmp_path):
    store = LocalStore(tmp_path / "out")
    run(manifest_path, checkpoint, store)
    other = tmp_path / "other.safetensors"
    save_single_file(small_model(ODD, seed=1), other)
    with pytest.raises(JobConflictError, match="another model"):
        run(manifest_path, other, store)


def test_force_replaces_the_images_of_another_model(manifest_path, checkpoint, tmp_path):
    store = LocalStore(tmp_path / "out")
    other = tmp_path / "other.safetensors"
    save_single_file(small_model(ODD, seed=1), other)
    job = run(manifest_path, other, store).job
    before = digests(store, job)
    assert run(manifest_path, checkpoint, store, force=True).rendered == IMAGES
    after = digests(store, job)
    assert len(after) == IMAGES
    assert after.keys().isdisjoint(before)
    assert {r["path"]: r["sha256"] for r in read_records(JobFolder(store, JobKeys(job)))} == after


def test_input_that_changed_since_it_was_read_is_refused(manifest_path, checkpoint, tmp_path):
    manifest = load_manifest(manifest_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    with pytest.raises(InputError, match=r"start\.png changed"):
        run_job(
            manifest,
            [ModelChoice("odd", str(checkpoint))],
            LocalStore(tmp_path / "out"),
            observe=lambda cost: contextlib.nullcontext(Recorder()),
            status=lambda text: contextlib.nullcontext(),
            stop=threading.Event(),
        )


def test_wrong_digest_and_missing_model_are_model_errors(manifest_path, checkpoint, tmp_path):
    def run_with(choice: ModelChoice) -> None:
        run_job(
            load_manifest(manifest_path),
            [choice],
            LocalStore(tmp_path / "out"),
            observe=lambda cost: contextlib.nullcontext(Recorder()),
            status=lambda text: contextlib.nullcontext(),
            stop=threading.Event(),
        )

    with pytest.raises(ModelError, match="the model list says"):
        run_with(ModelChoice("odd", str(checkpoint), digest="0" * 64))
    with pytest.raises(ModelError, match="nowhere"):
        run_with(ModelChoice("odd", str(tmp_path / "nowhere.ckpt")))
    with pytest.raises(InputError, match=r"^SDBATCH_EXECUTION: execution 'fast' is unknown"):
        run_with(ModelChoice("odd", str(checkpoint), execution="fast"))
    with pytest.raises(InputError, match=r"^device 'tpu' is unknown"):
        run_with(ModelChoice("odd", str(checkpoint), device="tpu"))
    assert list((tmp_path / "out").iterdir()) == []  # no job was begun


def test_records_tell_of_prompts_that_are_not_drawn_as_written(tmp_path, checkpoint):
    """And only those records have the fields."""
    path = tmp_path / "cut.yaml"
    long = "cat " * 80
    path.write_text(
        "version: 1\nmodel: odd\ndefaults: {steps: 1, width: 64, height: 64, guidance: 2}\n"
        "prompts:\n"
        f"- {{prompt: {long}, negative: a (hat:1.2), long_prompts: cut}}\n"
        f"- {{prompt: a BREAK b, negative: {long}, long_prompts: cut}}\n"
        f"- {{prompt: a, negative: {long}, guidance: 1, long_prompts: cut}}\n"
        f"- {{prompt: {long}, negative: {long}}}\n"
        f"- {{prompt: a BREAK (b:1.2), syntax: a1111}}\n"
    )
    store = LocalStore(tmp_path / "out")
    keys = JobKeys(run(path, checkpoint, store).job)
    first, second, *others = read_records(JobFolder(store, keys))
    assert (first["tokens_cut"], first["syntax_as_text"]) == ({"prompt": 5}, ["weights"])
    assert (second["tokens_cut"], second["syntax_as_text"]) == ({"negative": 5}, ["parts"])
    for line in others:
        assert line.keys().isdisjoint({"tokens_cut", "syntax_as_text"})
    assert [line.get("long_prompts") for line in others] == [None, "chunk", "chunk"]
    for line in (first, second):
        assert line.items() >= read_record(store.get(keys(line["path"]))).items()


LABELLED = """\
prompt,meta.sku,init_image,mask
a ${sku},A-100,photos/start.png,photos/mask.png
a star,,,
"""


def test_labels_and_names_of_inputs_are_in_records_and_files(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "photos/start.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "photos/mask.png")
    (tmp_path / "rows.csv").write_text(LABELLED)
    path = tmp_path / "labelled.yaml"
    path.write_text(
        "version: 1\ndefaults: {width: 64, height: 64, steps: 2}\nprompts: [{file: rows.csv}]\n"
    )
    store = LocalStore(tmp_path / "out")
    summary = run(path, checkpoint, store)
    folder = JobFolder(store, JobKeys(summary.job))
    first, second = read_records(folder)
    assert (first["prompt"], first["template"], first["meta"]) == (
        *("a A-100", "a ${sku}"),
        {"sku": "A-100"},
    )
    assert (first["init_image_name"], first["mask_name"]) == ("start.png", "mask.png")
    assert not {"meta", "init_image_name", "mask_name"} & second.keys()
    embedded = read_record(store.get(folder.keys(first["path"])))
    assert embedded.items() <= first.items()
    assert embedded["meta"] == {"sku": "A-100"}
    collected = tmp_path / "collected"
    assert collect(folder, collected).damaged == []
    collected /= summary.job
    lines = (collected / "records/000000.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["meta"] == {"sku": "A-100"}
    assert "A-100" in (collected / "index.html").read_text()
    # A file of names that is damaged harms no picture.
    store.put(folder.keys.input_names, b"{]", overwrite=True)
    store.delete(folder.keys(first["path"]))
    assert run(path, checkpoint, store).rendered == 1
