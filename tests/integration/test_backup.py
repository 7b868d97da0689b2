"""A bucket that was lost comes back from its copy, and its jobs with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.ledger.types import JobState
from jobs.storage import open_store
from tests.infra.test_operations import block
from tests.integration.cluster import Cluster, make_model, undisturbed
from tests.servers import wait_for
from tests.servers_s3 import BUCKET

MANIFEST = """\
version: 1
name: {name}
model: odd
defaults: {{width: 64, height: 64, steps: {steps}}}
prompts: [{{prompt: a red circle, seeds: {{start: 0, count: {images}}}}}]
"""
SHORT, LONG = 4, 40


@pytest.fixture
def cluster(s3_server, s3_address, valkey, tmp_path):
    with valkey.client() as client:
        client.flushall()
    store = open_store(s3_address)
    cluster = Cluster(tmp_path, valkey, make_model(tmp_path), store=store, address=s3_address)
    yield cluster
    cluster.close()


def test_jobs_come_back_from_a_copy_made_while_they_ran(cluster, s3_server, valkey, tmp_path):
    for name, images, steps in (("ended", SHORT, 2), ("half", LONG, 30)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(MANIFEST.format(name=name, images=images, steps=steps))
    cluster.submit(tmp_path / "ended.yaml")
    worker = cluster.start_worker()
    cluster.wait_until_done()
    cluster.submit(tmp_path / "half.yaml")
    (job,) = (job.job_id for job in cluster.ledger.jobs() if job.state is not JobState.DONE)
    wait_for(lambda: cluster.ledger.status(job).done >= 3, "some images")
    backup = copied(cluster, tmp_path / "backup/jobs")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert not (backup / job / "done.json").exists()

    client, prefix = s3_server.client(), cluster.store.address.root
    for info in list(cluster.store.list("")):
        cluster.store.delete(info.key)
    with valkey.client() as redis:
        redis.flushall()
    for path in backup.rglob("*"):  # as `aws s3 sync` does: bytes, and nothing of what we noted
        if path.is_file():
            key = f"{prefix}{path.relative_to(backup)}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    first, script = block("aws s3 sync backup/jobs").split("\n", 1)
    assert first == "aws s3 sync backup/jobs s3://sdbatch/jobs"
    address = str(cluster.store.address).rstrip("/")
    environ = {**cluster.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", script.replace("s3://sdbatch/jobs", address)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (resumed,) = cluster.ledger.jobs()  # the other has ended
    assert resumed.job_id == job
    assert 0 < resumed.done < LONG
    cluster.start_worker()
    cluster.wait_until_done()
    images = cluster.digests(job)
    model = tmp_path / "odd.safetensors"
    assert images == undisturbed(tmp_path / "half.yaml", model, tmp_path / "calm")
    assert cluster.records(job) == images
    for name in ("half", "ended"):
        (whole,) = backup.glob(f"{name}-*")
        verified = cluster.command("verify", whole.name, "--store", address)
        assert verified.returncode == 0, verified.stdout + verified.stderr


def copied(cluster: Cluster, folder: Path) -> Path:
    """All objects of the store as files, copied while a worker writes others."""
    for info in list(cluster.store.list("")):
        path = folder / info.key
        path.parent.mkdir(parents=True, exist_ok=True)
        if cluster.store.head(info.key) is not None:
            path.write_bytes(cluster.store.get(info.key))
    return folder
