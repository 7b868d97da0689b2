"""An image that ends the process of every worker that renders it."""

from __future__ import annotations

import json
import time

import pytest

from jobs.errors import ExitCode
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_failures
from jobs.ledger.types import MOST_DEATHS, JobState
from tests.integration import poison
from tests.integration.cluster import Cluster, make_model

POISON = "a poisonous frog"
MANIFEST = f"""\
version: 1
name: poisoned
model: odd
defaults: {{width: 64, height: 64, steps: 10, guidance: 7.5}}
prompts:
  - prompt: a red circle
    seeds: {{start: 0, count: 5}}
  - prompt: {POISON}
    seeds: 77
  - prompt: a blue ring
    seeds: {{start: 6, count: 6}}
"""
IMAGES, INDEX = 12, 5
PATIENCE_S = 420.0
"""For some seven workers that are started one after another."""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_it_alone_is_given_up(tmp_path, valkey, workers):
    with valkey.client() as client:
        client.flushall()
    manifest = tmp_path / "poisoned.yaml"
    manifest.write_text(MANIFEST)
    environ = {poison.VARIABLE: POISON}
    cluster = Cluster(
        tmp_path,
        valkey,
        make_model(tmp_path),
        environ=environ,
        entry=("tests.integration.poison",),
    )
    try:
        cluster.submit(manifest)
        live = [cluster.start_worker() for _ in range(workers)]
        deadline = time.monotonic() + PATIENCE_S
        while cluster.ledger.jobs()[0].state is not JobState.DONE:
            assert time.monotonic() < deadline, cluster.logs()
            # As a supervisor does it, whatever a worker died of.
            live = [cluster.start_worker() if w.poll() is not None else w for w in live]
            time.sleep(0.05)
        (status,) = cluster.ledger.jobs()
        assert (status.done, status.failed) == (IMAGES - 1, 1), cluster.ledger.failures(
            status.job_id
        )
        (failure,) = cluster.ledger.failures(status.job_id)
        assert failure.index == INDEX
        assert failure.reason == f"{MOST_DEATHS} workers died while rendering it"
        keys = JobKeys(status.job_id)
        assert [f.index for f in read_failures(JobFolder(cluster.store, keys))] == [INDEX]
        assert len(cluster.digests(status.job_id)) == IMAGES - 1
        watched = cluster.command("watch", "poisoned", "--json")
        assert watched.returncode == ExitCode.SOME_FAILED, watched.stderr
        assert json.loads(watched.stdout)["failed"] == 1
        # Three to see that it is the shard, three to see that it is the image.
        killed = sum(worker.poll() == -9 for worker in cluster.workers)
        assert killed == 2 * MOST_DEATHS
    finally:
        cluster.close()
