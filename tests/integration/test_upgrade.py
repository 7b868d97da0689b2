"""Workers of the version before and of this one share a job, as while a cluster is upgraded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, make_model, undisturbed
from tests.servers import wait_for

ROOT = Path(__file__).parents[2]
BEFORE = "23fa43370505e3a61bb1eb132af2db2b7fe54b9e"
"""The version before: that of a week ago, when jobs had neither thumbnails nor reuse."""

IMAGES = 60
MANIFEST = f"""\
version: 1
name: shapes
model: odd
defaults: {{width: 64, height: 64, steps: 30}}
prompts: [{{prompt: a red circle, seeds: {{start: 0, count: {IMAGES}}}}}]
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The code of the version before. A clone without history has none, in CI either."""
    folder = tmp_path_factory.mktemp("before")
    command = ["git", "archive", "--format=tar", BEFORE, "jobs", "sd_core", "worker"]
    packed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip(f"needs commit {BEFORE[:7]} in the history of this clone")
    subprocess.run(["tar", "-xf", "-"], cwd=folder, input=packed.stdout, check=True)
    for kernels in (ROOT / "sd_core/cpu").glob("*.so"):  # their sources are the same
        shutil.copy(kernels, folder / "sd_core/cpu")
    return folder


class TwoVersions(Cluster):
    """A cluster whose commands and workers may be of the version before."""

    def before(self, code: Path, *arguments: str, name: str) -> subprocess.Popen[bytes]:
        """Starts `sdbatch` of that code."""
        with (self.folder / f"{name}.log").open("wb") as log:
            # Started there, for the folder that it starts in is looked at first.
            return subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *arguments],
                cwd=code,
                env={**self.environ, "PYTHONPATH": str(code)},
                stdout=log,
                stderr=log,
            )

    def start_worker_before(self, code: Path) -> subprocess.Popen[bytes]:
        worker = self.before(code, "worker", name=f"worker-{len(self.workers)}")
        self.workers.append(worker)
        return worker

    def submit_before(self, code: Path, manifest: Path) -> None:
        arguments = ("submit", str(manifest), "--store", self._address)
        assert self.before(code, *arguments, name="submit").wait() == 0

    def rendered_by(self, job: str) -> set[int]:
        """Processes that took shards of the job."""
        claims = [event for event in self.ledger.events(job) if event.kind == "claimed"]
        return {int(event.values["owner"].split("-")[-2]) for event in claims}


@pytest.fixture
def cluster(tmp_path, valkey):
    with valkey.client() as client:
        client.flushall()
    (tmp_path / "shapes.yaml").write_text(MANIFEST)
    cluster = TwoVersions(tmp_path, valkey, make_model(tmp_path))
    yield cluster
    cluster.close()


def check(cluster: TwoVersions, tmp_path: Path) -> None:
    """Every image is there once, with the bytes of an undisturbed run of this version."""
    status = cluster.wait_until_done()
    assert (status.done, status.failed) == (IMAGES, 0), cluster.logs()
    images = cluster.digests(status.job_id)
    assert len(images) == IMAGES
    assert images == undisturbed(
        tmp_path / "shapes.yaml", tmp_path / "odd.safetensors", tmp_path / "calm"
    )
    assert cluster.records(status.job_id) == images
    assert cluster.rendered_by(status.job_id) == {worker.pid for worker in cluster.workers}


def test_the_code_is_that_of_the_version_before(before):
    command = [sys.executable, "-c", "import jobs, worker, sd_core; print(jobs, worker, sd_core)"]
    environ = {**os.environ, "PYTHONPATH": str(before)}
    done = subprocess.run(
        command, cwd=before, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.count(str(before)) == 3
    assert not (before / "jobs/reuse").exists()
    # Else the fixture has to build its kernels, or take a later version.
    same = subprocess.run(
        ["git", "diff", "--quiet", BEFORE, "--", "sd_core/cpu/cpp"], cwd=ROOT, check=False
    )
    assert same.returncode == 0


@pytest.mark.parametrize("submitted_by", ["the version before", "this version"])
def test_workers_of_two_versions_share_a_job(cluster, before, tmp_path, submitted_by):
    cluster.start_worker_before(before)
    cluster.start_worker()
    cluster.wait_for_workers(2)
    if submitted_by == "this version":
        cluster.submit(tmp_path / "shapes.yaml")
    else:
        cluster.submit_before(before, tmp_path / "shapes.yaml")
    check(cluster, tmp_path)
    for command in ("status", "jobs", "failures"):
        arguments = () if command == "jobs" else ("shapes",)
        assert cluster.before(before, command, *arguments, name=command).wait() == 0


def test_a_worker_takes_up_what_one_of_the_version_before_left(cluster, before, tmp_path):
    cluster.submit_before(before, tmp_path / "shapes.yaml")
    first = cluster.start_worker_before(before)
    cluster.wait_for_images(3)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0, cluster.logs()
    assert 0 < cluster.ledger.jobs()[0].done < IMAGES
    cluster.start_worker(SDBATCH_GRACE_S="0")
    check(cluster, tmp_path)


def test_back_to_the_version_before(cluster, before, tmp_path):
    """As after an upgrade that was not wanted."""
    cluster.submit_before(before, tmp_path / "shapes.yaml")
    first = cluster.start_worker()
    cluster.wait_for_images(3)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0, cluster.logs()
    wait_for(lambda: not cluster.ledger.workers(), "the end of the first worker")
    assert 0 < cluster.ledger.jobs()[0].done < IMAGES
    cluster.start_worker_before(before)
    check(cluster, tmp_path)
