"""Worker processes under Celery: started as anybody would, and with anything in their queue."""

from __future__ import annotations

import re
import signal

import pytest
import redis

from tests.integration.cluster import Cluster, make_model
from tests.servers import wait_for
from tests.worker.serve.garbage import BODIES, ENVELOPES, QUEUE
from tests.worker.serve.refusals import REFUSALS, Refusal

IMAGES = 40
MANIFEST = f"""\
version: 1
name: few
model: odd
defaults: {{width: 64, height: 64, steps: 5, guidance: 7.5}}
prompts: [{{prompt: a red circle, seeds: {{start: 0, count: {IMAGES}}}}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models"))


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "few.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def make_cluster(tmp_path, valkey, model):
    clusters = []

    def make(**options):
        clusters.append(Cluster(tmp_path, valkey, model, **options))
        return clusters[-1]

    with valkey.client() as client:
        client.flushall()
    yield make
    for cluster in clusters:
        cluster.close()


def refuse_until_told(cluster: Cluster, client: redis.Redis, refusal: Refusal) -> None:
    """The server refuses while there is a message for the worker, until that logs so."""
    read = len(cluster.logs())
    with client.pipeline() as both:
        both.lpush(QUEUE, BODIES["a job that nobody knows"])
        refusal.begin(both)
        both.execute()
    try:
        said = re.compile(f"the broker .*{refusal.words}")
        wait_for(lambda: said.search(cluster.logs(), read), "the worker to say so")
    finally:
        refusal.end(client)


def goes_on(cluster: Cluster, done: int) -> bool:
    """Whether more images are done, unless all were."""
    (job,) = cluster.ledger.jobs()
    return job.done > done or job.done == IMAGES


def test_no_message_and_no_refusal_ends_a_worker(make_cluster, manifest, valkey):
    """Full, and then a replica, is what the server becomes in the middle of a job that goes on."""
    cluster = make_cluster()
    with valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            worker = cluster.start_worker()
            cluster.wait_for_workers(1)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
        assert "its maxmemory-policy is allkeys-lru" in cluster.logs()
        for number, raw in enumerate([*ENVELOPES.values(), *BODIES.values()]):
            # A tag of its own: how one is noted must not hide how another is.
            text = raw if isinstance(raw, bytes) else raw.replace("tag-x1", f"tag-{number}")
            client.lpush(QUEUE, text)

        def all_taken() -> bool:
            assert worker.poll() is None, cluster.logs()
            return client.llen(QUEUE) == client.hlen("unacked") == 0

        wait_for(all_taken, "the worker to take everything")
        cluster.submit(manifest)
        cluster.wait_for_images(1)
        for name in ("full", "a replica"):
            refuse_until_told(cluster, client, REFUSALS[name])
            (job,) = cluster.ledger.jobs()
            # Messages that were taken meanwhile are missed after a while, others go on at once.
            wait_for(lambda done=job.done: goes_on(cluster, done), "more images")
    assert worker.poll() is None, cluster.logs()
    # By SIGHUP, Celery itself would begin anew.
    worker.send_signal(signal.SIGHUP)
    assert worker.wait(timeout=60) == 0, cluster.logs()
    assert "Warm shutdown" in cluster.logs()


@pytest.mark.slow
def test_plain_celery_starts_a_worker(make_cluster, manifest):
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    entry = ("celery", "-A", "worker.app", "worker", *quiet)
    cluster = make_cluster(entry=entry)
    worker = cluster.start_worker()
    cluster.submit(manifest)
    assert cluster.wait_until_done().done == IMAGES, cluster.logs()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0, cluster.logs()
    assert "INFO worker.serve.worker: claimed" in cluster.logs()
