"""Jobs rendered by real worker processes over a real Valkey, whatever happens to them."""

from __future__ import annotations

import json
import signal
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs.folder.layout import JobKeys
from sd_core.weights.export import save_single_file
from tests.integration.cluster import Cluster, undisturbed
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import ODD, small_model
from tests.servers import wait_for
from worker.reconcile.reconciler import LOST_AFTER_S

IMAGES = 63
MANIFEST = """\
version: 1
name: mixed
model: odd
defaults: {width: 64, height: 64, steps: 30, guidance: 7.5}
prompts:
  - prompt: a red circle
    seeds: {start: 0, count: 30}
  - prompt: a red ink circle
    seeds: {start: 0, count: 30}
    loras: [{name: pen.safetensors, weight: 0.5}]
    embeddings: [ink.safetensors]
  - prompt: a green star
    guidance: 1.0
    sampler: euler_a
  - prompt: a blue ring
    init_image: start.png
    strength: 0.7
  - prompt: a black cross
    width: 96
"""

LONG = """\
version: 1
name: long
model: odd
defaults: {width: 64, height: 64, steps: 5}
prompts: [{prompt: a red circle, seeds: {start: 0, count: 200}}]
"""

BOTH = """\
version: 1
name: both
defaults: {width: 64, height: 64, steps: 3}
matrix: {model: [odd, even]}
prompts: [{prompt: a red circle, seeds: {start: 0, count: 20}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "odd.safetensors"
    save_single_file(small_model(ODD), path)
    return path


@pytest.fixture
def manifest(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    lora_file(tmp_path, lora_tensors(ODD, 1), "pen")
    save_file({"emb_params": torch.ones(2, ODD.text.width) / 4}, tmp_path / "ink.safetensors")
    path = tmp_path / "mixed.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def cluster(tmp_path, valkey, model):
    with valkey.client() as client:
        client.flushall()
    cluster = Cluster(tmp_path, valkey, model)
    yield cluster
    cluster.close()


def check(cluster: Cluster, manifest, model, tmp_path) -> None:
    """The job is done, and its folder is as one run in one process leaves it."""
    status = cluster.wait_until_done()
    assert (status.total, status.done, status.failed) == (IMAGES, IMAGES, 0), cluster.logs()
    images = cluster.digests(status.job_id)
    assert images == undisturbed(manifest, model, tmp_path / "calm")
    assert cluster.records(status.job_id) == images
    done = json.loads(cluster.store.get(JobKeys(status.job_id).done))
    assert (done["images"], done["failed"]) == (IMAGES, 0)


def test_a_killed_worker_loses_and_repeats_nothing(cluster, manifest, model, tmp_path):
    cluster.submit(manifest)
    first, _ = cluster.start_worker(), cluster.start_worker()
    cluster.wait_for_images(3)
    first.kill()
    watched = cluster.command("watch", "mixed", "--json")
    assert watched.returncode == 0, watched.stderr
    assert json.loads(watched.stdout)["done"] == IMAGES
    check(cluster, manifest, model, tmp_path)
    collected = cluster.command("collect", "mixed", str(tmp_path / "mine"), "--json")
    assert collected.returncode == 0, collected.stderr
    assert json.loads(collected.stdout)["copied"] == IMAGES


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_told_to_stop_gives_its_images_back(cluster, manifest, model, tmp_path, number):
    cluster.submit(manifest)
    first = cluster.start_worker()
    cluster.wait_for_images(3)
    first.send_signal(number)
    assert first.wait(timeout=30) == 0
    (job,) = cluster.ledger.jobs()
    assert job.leased == 0
    assert job.done < IMAGES
    assert cluster.ledger.workers() == []
    cluster.start_worker()
    check(cluster, manifest, model, tmp_path)


@pytest.mark.slow
def test_others_go_on_at_once_with_what_it_gives_back(tmp_path, valkey):
    with valkey.client() as client:
        client.flushall()
    path = tmp_path / "long.yaml"
    path.write_text(LONG)
    # No lease runs out meanwhile: what is taken up was given back.
    cluster = Cluster(
        tmp_path,
        valkey,
        tmp_path / "no-model",
        environ={"SDBATCH_LEASE_S": "600", "SDBATCH_GRACE_S": "0"},
        entry=("tests.integration.waiting", "--seconds", "0.1"),
    )
    try:
        first, _ = cluster.start_worker(), cluster.start_worker()
        cluster.wait_for_workers(2)
        cluster.submit(path)
        cluster.wait_for_images(20)
        first.send_signal(signal.SIGTERM)
        assert first.wait() == 0, cluster.logs()
        status = cluster.wait_until_done()
        assert (status.done, status.failed) == (200, 0), cluster.logs()
        events = cluster.ledger.events(status.job_id)
    finally:
        cluster.close()
    claimed_s = defaultdict(list)
    for event in events:
        if event.kind == "claimed":
            claimed_s[event.values["shard"]].append(event.time_s)
    given_back = [e for e in events if e.kind == "released" and e.values["left"] != "0"]
    assert given_back
    for event in given_back:
        again_s = min(at for at in claimed_s[event.values["shard"]] if at >= event.time_s)
        assert again_s - event.time_s < LOST_AFTER_S / 2


@pytest.mark.slow
def test_a_worker_that_slept_past_its_lease_changes_nothing(cluster, manifest, model, tmp_path):
    cluster.submit(manifest)
    first = cluster.start_worker()
    cluster.wait_for_images(3)
    first.send_signal(signal.SIGSTOP)
    cluster.start_worker()
    wait_for(lambda: "is gone (death 1)" in cluster.logs(), "the lease to run out")
    first.send_signal(signal.SIGCONT)
    check(cluster, manifest, model, tmp_path)


@pytest.mark.slow
def test_a_wiped_ledger_is_filled_again_by_submitting(cluster, manifest, model, tmp_path, valkey):
    cluster.submit(manifest)
    cluster.start_worker()
    cluster.wait_for_images(3)
    with valkey.client() as client:
        client.flushall()
    cluster.submit(manifest)
    check(cluster, manifest, model, tmp_path)


@pytest.mark.slow
def test_cancelling_ends_a_job_and_keeps_its_images(cluster, manifest, model, tmp_path):
    cluster.submit(manifest)
    cluster.start_worker()
    cluster.wait_for_images(3)
    assert cluster.command("cancel", "mixed").returncode == 0
    (job,) = cluster.ledger.jobs()
    wait_for(lambda: cluster.ledger.status(job.job_id).leased == 0, "the worker to stop")
    kept = cluster.digests(job.job_id)
    assert 3 <= len(kept) < IMAGES
    assert (
        cluster.command("submit", str(manifest), "--store", str(tmp_path / "out")).returncode == 0
    )
    check(cluster, manifest, model, tmp_path)


def test_each_worker_renders_the_images_of_its_model(cluster, tmp_path, model):
    """One job of two models, a worker for each, of which the second comes late."""
    other = tmp_path / "even.safetensors"
    save_single_file(small_model(ODD, 1), other)
    with (tmp_path / "models.yaml").open("a") as models:
        models.write(f"even: {other}\n")
    manifest = tmp_path / "both.yaml"
    manifest.write_text(BOTH)
    cluster.submit(manifest)
    cluster.start_worker()
    cluster.wait_for_images(20)
    (status,) = cluster.ledger.jobs()
    said = cluster.command("status", status.job_id).stdout
    assert "model        even: 0 of 20 (0 %) done, 0 workers" in said
    assert "no worker has model even; workers have odd (1)" in said
    cluster.start_worker(SDBATCH_MODEL="even")
    status = cluster.wait_until_done()
    assert (status.done, status.failed) == (40, 0)
    checkpoints = {"odd": model, "even": other}
    expected = undisturbed(manifest, checkpoints, tmp_path / "undisturbed")
    assert cluster.digests(status.job_id) == cluster.records(status.job_id) == expected
