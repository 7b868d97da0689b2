"""What a real worker process tells: metrics, health and log lines, and how it ends."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs.ledger.types import JobState
from jobs.storage import LocalStore
from sd_core.weights.export import save_single_file
from tests.integration.cluster import Cluster
from tests.sd_core.small import ODD, small_model
from tests.servers import Valkey, free_port, wait_for

PASSWORD = "hunter2-is-secret"
MANIFEST = """\
version: 1
name: sizes
model: odd
defaults: {width: 64, height: 64, steps: 3, guidance: 7.5}
prompts:
  - {prompt: a red circle, seeds: {start: 0, count: 9}}
  - {prompt: a green star, width: 96}
  - {prompt: a blue ring, height: 96}
  - {prompt: a black cross, width: 128}
"""
IMAGES = 12
SHARDS = 3


class GuardedValkey(Valkey):
    """Asks for a password."""

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


@contextlib.contextmanager
def guarded_cluster(tmp_path, model, **options):
    folder = tmp_path / "valkey"
    folder.mkdir()
    valkey = GuardedValkey(folder, "--requirepass", PASSWORD)
    cluster = Cluster(tmp_path, valkey, model, **options)
    cluster.port = free_port()
    cluster.environ["SDBATCH_METRICS"] = f"127.0.0.1:{cluster.port}"
    try:
        yield cluster
    finally:
        cluster.close()
        valkey.kill()


@pytest.fixture
def cluster(tmp_path, model):
    with guarded_cluster(tmp_path, model) as cluster:
        yield cluster


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "sizes.yaml"
    path.write_text(MANIFEST)
    return path


def metrics(cluster) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.port}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_worker_tells_what_it_did(cluster, manifest):
    cluster.environ["SDBATCH_LOG"] = "json"
    cluster.submit(manifest)
    worker = cluster.start_worker()
    job = cluster.wait_until_done()
    assert (job.done, job.shards) == (IMAGES, SHARDS)

    # Shards are given back just before their job is done; the queue is read every few seconds.
    def settled():
        now = metrics(cluster)
        return now if now["sdbatch_leases",] == 0 and now["sdbatch_workers", "odd"] == 1 else None

    found = wait_for(settled, "the last shard")
    assert found["sdbatch_images_total", "odd"] == job.done
    assert found["sdbatch_images_reused_total", "odd"] == 0
    assert found["sdbatch_upload_seconds_count",] == job.done
    assert found["sdbatch_claims_total", "run"] == SHARDS
    assert found["sdbatch_in_flight_images",] == 0
    assert found["sdbatch_evaluation_seconds_count", "odd"] > 0
    wait_for(lambda: metrics(cluster)["sdbatch_engine_stalled_seconds",] == 0, "an idle engine")
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.port}/healthz") as answer:
        assert answer.status == 200
        assert json.load(answer) == {"status": "ok", "state": "idle", "model": "odd"}

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0, cluster.logs()
    lines = [json.loads(line) for line in cluster.logs().splitlines()]
    assert all({"time", "level", "logger", "message", "owner"} <= set(line) for line in lines)
    assert {"celery.worker.consumer.connection", "worker.serve.worker"} <= {
        line["logger"] for line in lines
    }
    claimed = [line for line in lines if line["message"].startswith("claimed")]
    assert sorted(line["shard"] for line in claimed) == list(range(SHARDS))
    assert {line["job"] for line in claimed} == {job.job_id}
    assert any("Warm shutdown" in line["message"] for line in lines)
    assert PASSWORD not in cluster.logs()


def test_a_worker_whose_disk_is_full_ends_and_says_why(tmp_path, model, manifest, small_disk):
    out = small_disk / "out"
    options = {"store": LocalStore(out), "address": str(out)}
    with guarded_cluster(tmp_path, model, **options) as cluster:
        cluster.submit(manifest)
        (job,) = cluster.ledger.jobs()
        with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(4096))
        worker = cluster.start_worker()
        assert worker.wait(timeout=120) == 5, cluster.logs()
        (listed,) = cluster.ledger.workers()
        assert listed.state.startswith("stopped: 3 shards in a row failed: ")
        job = cluster.ledger.status(job.job_id)
        assert (job.state, job.failed, job.leased) == (JobState.ACTIVE, 0, 0)
        assert listed.state in cluster.logs()
        assert f"job={job.job_id} shard=" in cluster.logs()
        assert "Traceback" not in cluster.logs()
        assert PASSWORD not in cluster.logs()
        # With room again, another worker does what is left.
        (small_disk / "ballast").unlink()
        cluster.start_worker()
        assert cluster.wait_until_done().done == IMAGES


def test_a_jobs_own_trouble_is_told_and_ends_no_worker(cluster, manifest):
    cluster.submit(manifest)
    (job,) = cluster.ledger.jobs()
    # No image can be written where a folder is expected to be; the store itself is well.
    images = cluster.folder / "out" / job.job_id / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.write_text("in the way")
    worker = cluster.start_worker()
    error = wait_for(lambda: cluster.ledger.status(job.job_id).error, "the job's last error")
    assert "images" in error
    images.unlink()
    done = cluster.wait_until_done()
    assert (done.done, done.failed, done.error) == (IMAGES, 0, None)
    assert worker.poll() is None
    assert PASSWORD not in cluster.logs()
