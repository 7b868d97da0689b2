"""Jobs beside one another, and jobs that are cancelled, on workers whose engine only waits."""

from __future__ import annotations

import json

import pytest

from jobs.errors import ExitCode
from jobs.ledger.types import JobState, JobStatus
from jobs.queue.publish import LEAST_WINDOW
from tests.integration.cluster import Cluster
from tests.servers import wait_for
from worker.process import SLOTS

IMAGE_S = 0.1
STEPS = 5
MANIFEST = f"""\
version: 1
name: NAME
model: odd
defaults: {{width: 64, height: 64, steps: {STEPS}, sampler: ddim}}
prompts:
  - prompt: a picture of NAME
    seeds: {{start: 0, count: COUNT}}
"""
WORKERS = 2
SHARD = 4  # images of a shard in small jobs


@pytest.fixture
def cluster(tmp_path, valkey):
    with valkey.client() as client:
        client.flushall()
    cluster = Cluster(
        tmp_path,
        valkey,
        tmp_path / "no-model",
        entry=("tests.integration.waiting", "--seconds", str(IMAGE_S)),
    )
    yield cluster
    cluster.close()


def submit(cluster: Cluster, name: str, images: int, *options: str) -> str:
    """The job's id."""
    path = cluster.folder / f"{name}.yaml"
    path.write_text(MANIFEST.replace("NAME", name).replace("COUNT", str(images)))
    cluster.submit(path, *options)
    return job(cluster, name).job_id


def job(cluster: Cluster, name: str) -> JobStatus:
    (found,) = (job for job in cluster.ledger.jobs() if job.name == name)
    return found


@pytest.mark.slow
def test_two_jobs_share_the_workers(cluster):
    images = 160
    submit(cluster, "first", images)
    submit(cluster, "second", images)
    for _ in range(WORKERS):
        cluster.start_worker()
    apart = 0

    def one_is_done() -> bool:
        nonlocal apart
        done = [job(cluster, name).done for name in ("first", "second")]
        if max(done) < images:
            apart = max(apart, abs(done[0] - done[1]))
        return max(done) == images

    wait_for(one_is_done, "the first job to end")
    # Each has as many shards out as the other, at most so many; in the queue they take turns. So
    # one may be ahead by its window, and by one more that was refilled before the other's was.
    window = max(LEAST_WINDOW, SLOTS * WORKERS)
    assert apart <= 2 * window * SHARD, cluster.logs()
    assert min(job(cluster, name).done for name in ("first", "second")) >= images / 2


@pytest.mark.slow
def test_an_urgent_job_overtakes_a_long_one(cluster):
    submit(cluster, "long", 2000, "--priority", "1")
    cluster.start_worker()
    wait_for(lambda: job(cluster, "long").done > 0, "the long job to begin")
    submit(cluster, "urgent", 20, "--priority", "100")
    wait_for(lambda: job(cluster, "urgent").state is JobState.DONE, "the urgent job")
    assert job(cluster, "long").done < 2000 / 4


@pytest.mark.slow
def test_cancelling_takes_effect_within_a_second_and_a_step(cluster):
    job_id = submit(cluster, "long", 2000)
    # Its heartbeats are a quarter of an hour apart, so it is not by one of them that it learns it,
    # but by a look at the job: tests/worker/serve/test_heartbeat.py has how often there is one.
    cluster.start_worker(SDBATCH_LEASE_S="3600")
    cluster.wait_for_images(10)
    assert cluster.command("cancel", "long").returncode == 0
    wait_for(lambda: cluster.ledger.status(job_id).leased == 0, "the worker to stop")
    kept = cluster.digests(job_id)
    assert len(kept) >= 10
    steps = cluster.ledger.status(job_id).evaluated
    # The engine takes images in order: when those of another job come out, nothing is left of this.
    submit(cluster, "next", 2 * SHARD)
    wait_for(lambda: job(cluster, "next").state is JobState.DONE, "the next job")
    assert cluster.digests(job_id) == kept
    assert cluster.ledger.status(job_id).evaluated == steps
    # What was finished is recorded and marked, nothing else is.
    assert cluster.records(job_id) == kept
    assert cluster.ledger.status(job_id).done == len(kept)
    assert steps - STEPS * len(kept) < STEPS + 1  # only the image that it was at was begun in vain
    watched = cluster.command("watch", "long", "--json")
    assert watched.returncode == ExitCode.CANCELLED, watched.stderr
    assert json.loads(watched.stdout)["done"] == len(kept)
