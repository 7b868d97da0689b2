"""Servers, clocks, models and files that are not as they should be, met by real workers."""

from __future__ import annotations

import datetime
import gzip
import json
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.errors import ExitCode
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.ledger.types import JobState, JobStatus
from jobs.storage import open_store
from sd_core.weights.export import save_single_file
from tests.integration import skewed
from tests.integration.cluster import Cluster, make_model, undisturbed
from tests.integration.proxies import S3Wire
from tests.sd_core.small import ODD, small_model
from tests.servers import Valkey, wait_for
from tests.servers_s3 import log_in
from worker.process import SLOTS

MANIFEST = """\
version: 1
name: NAME
model: odd
defaults: {width: 64, height: 64, steps: 20}
prompts:
  - prompt: a red circle
    seeds: {start: 0, count: COUNT}
"""


def write(folder: Path, name: str, images: int, more: str = "") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(MANIFEST.replace("NAME", name).replace("COUNT", str(images)) + more)
    return path


def of(cluster: Cluster, name: str) -> JobStatus:
    (job,) = (job for job in cluster.ledger.jobs() if job.name == name)
    return job


def check(cluster: Cluster, calm: dict[str, str]) -> JobStatus:
    """The job is done, and its folder is as one run in one process leaves it."""
    status = cluster.wait_until_done()
    assert (status.done, status.failed) == (len(calm), 0), cluster.logs()
    assert cluster.digests(status.job_id) == calm
    assert cluster.records(status.job_id) == calm
    return status


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path)


@pytest.fixture
def started(tmp_path: Path, model: Path, valkey: Valkey) -> Iterator[Callable[..., Cluster]]:
    """Makes the test's cluster, without workers."""
    with valkey.client() as client:
        client.flushall()
    clusters: list[Cluster] = []

    def start(server: Valkey = valkey, **options: Any) -> Cluster:
        clusters.append(Cluster(tmp_path, server, model, **options))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.close()


# Servers


@pytest.mark.slow
def test_a_full_redis_is_waited_for(started, model, tmp_path):
    images = 60
    (tmp_path / "valkey").mkdir()
    server = Valkey(tmp_path / "valkey", "--maxmemory-policy", "noeviction")
    try:
        cluster = started(server)
        cluster.submit(write(tmp_path, "full", images))
        worker = cluster.start_worker()
        cluster.wait_for_images(4)
        with server.client() as client:
            client.config_set("maxmemory", 1)
            refused = cluster.command(
                *("submit", str(write(tmp_path, "more", 2)), "--store", str(tmp_path / "out")),
                "--json",
            )
            assert refused.returncode == ExitCode.LEDGER, refused.stdout
            assert "it is full; raise its maxmemory" in json.loads(refused.stdout)["error"]
            # What the worker has it ends and tells; then it gets nothing more.
            wait_for(lambda: "it is full" in cluster.logs(), f"it to say so\n{cluster.logs()}")
            wait_for(lambda: not of(cluster, "full").leased, f"it to rest\n{cluster.logs()}")
            rested = of(cluster, "full")
            assert (rested.state, rested.failed) == (JobState.ACTIVE, 0)
            assert 4 <= rested.done < images
            assert len(cluster.digests(rested.job_id)) == rested.done
            assert worker.poll() is None
            client.config_set("maxmemory", 0)
        check(cluster, undisturbed(tmp_path / "full.yaml", model, tmp_path / "calm"))
        assert worker.poll() is None
    finally:
        server.kill()


class ForbiddingWire(S3Wire):
    """read_only: no object is written or deleted, as when a policy was changed."""

    read_only = False
    FORBIDDEN = b"<Error><Code>AccessDenied</Code><Message>a test says so</Message></Error>"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        if not self.read_only or handler.command in ("GET", "HEAD"):
            super()._serve(handler)
            return
        handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        handler.send_response_only(403)
        handler.send_header("Content-Length", str(len(self.FORBIDDEN)))
        handler.end_headers()
        handler.wfile.write(self.FORBIDDEN)


@pytest.mark.slow
def test_a_bucket_that_turns_read_only_loses_nothing(
    started, model, tmp_path, s3_server, s3_address, aws
):
    images = 60
    wire = ForbiddingWire(s3_server.ports["s3"], random.Random(0))
    try:
        log_in(aws, wire.endpoint)
        cluster = started(store=open_store(s3_address), address=s3_address)
        cluster.submit(write(tmp_path, "guarded", images))
        job_id = of(cluster, "guarded").job_id
        first = cluster.start_worker()
        wait_for(lambda: len(cluster.digests(job_id)) >= 4, f"images\n{cluster.logs()}")
        wire.read_only = True
        # A supervisor is to start it again, which helps nothing for now.
        wait_for(lambda: first.poll() is not None, f"the worker to give up\n{cluster.logs()}")
        assert first.returncode == ExitCode.STORE, cluster.logs()
        status = of(cluster, "guarded")
        assert (status.state, status.failed, status.leased) == (JobState.ACTIVE, 0, 0)
        assert 0 < status.done < images
        said = cluster.command("status", "guarded")
        assert said.returncode == ExitCode.DONE
        assert "last error   " in said.stdout
        assert "denied" in said.stdout.lower() or "rights" in said.stdout.lower(), said.stdout
        refused = cluster.command("submit", str(write(tmp_path, "new", 1)), "--store", s3_address)
        assert refused.returncode == ExitCode.STORE, refused.stderr
        kept = cluster.digests(job_id)
        wire.read_only = False
        cluster.start_worker()
        calm = undisturbed(tmp_path / "guarded.yaml", model, tmp_path / "calm")
        assert check(cluster, calm).error is None
        assert kept.items() <= calm.items()
        assert set(wire.written.values()) == {1}
        assert len(wire.written) == images
    finally:
        wire.close()


# Models


@pytest.mark.slow
def test_a_job_is_rendered_with_one_model_only(started, model, tmp_path):
    """Two workers mean different weights by one name."""
    images = 60
    cluster = started()
    other = tmp_path / "other.safetensors"
    save_single_file(small_model(ODD, seed=1), other)
    (tmp_path / "other.yaml").write_text(f"odd: {other}\n")
    cluster.submit(write(tmp_path, "pinned", images))
    job_id = of(cluster, "pinned").job_id
    cluster.start_worker()
    cluster.wait_for_images(1)
    cluster.ledger.set_state(job_id, JobState.PAUSED)
    stranger = cluster.start_worker(SDBATCH_MODELS=str(tmp_path / "other.yaml"))
    cluster.wait_for_workers(2)
    assert of(cluster, "pinned").done < images  # there is something left for it to ask for
    cluster.ledger.set_state(job_id, JobState.ACTIVE)

    def refused() -> bool:
        return "is rendered with another model" in (tmp_path / "worker-1.log").read_text()

    wait_for(refused, f"the other worker to say why\n{cluster.logs()}")
    check(cluster, undisturbed(tmp_path / "pinned.yaml", model, tmp_path / "calm"))
    assert "is rendered with another model" not in (tmp_path / "worker-0.log").read_text()
    digests = {
        r["model"]["digest"] for r in read_records(JobFolder(cluster.store, JobKeys(job_id)))
    }
    assert digests == {json.loads(cluster.store.get(JobKeys(job_id).model()))["digest"]}
    assert stranger.poll() is None  # other jobs may want what it has
    # A job that nobody has begun may be the stranger's.
    cluster.workers[0].terminate()
    assert cluster.workers[0].wait() == ExitCode.DONE
    cluster.submit(write(tmp_path, "second", 2))
    wait_for(lambda: of(cluster, "second").state is JobState.DONE, f"it\n{cluster.logs()}")
    second = JobKeys(of(cluster, "second").job_id)
    theirs = {
        record["model"]["digest"] for record in read_records(JobFolder(cluster.store, second))
    }
    assert len(theirs) == 1
    assert theirs != digests


# Clocks


@pytest.mark.slow
def test_clocks_two_hours_apart_change_nothing(started, model, tmp_path):
    images = 240
    hour = 3600.0
    cluster = started(entry=("tests.integration.skewed",))
    ahead = cluster.start_worker(**{skewed.VARIABLE: str(hour)})
    cluster.start_worker(**{skewed.VARIABLE: str(-hour)})
    cluster.wait_for_workers(2)
    cluster.submit(write(tmp_path, "clocks", images))
    job_id = of(cluster, "clocks").job_id

    def finished() -> set[bool]:
        """Whether by the clock that is ahead; one that is read off its image says no time."""
        now = datetime.datetime.now(datetime.UTC)
        return {
            datetime.datetime.fromisoformat(record["finished"]) > now
            for record in read_records(JobFolder(cluster.store, JobKeys(job_id)))
            if "finished" in record
        }

    wait_for(lambda: finished() == {True, False}, f"images by both\n{cluster.logs()}")
    # Each has leases then that the other's clock says ended an hour ago, or begin in an hour.
    wait_for(lambda: of(cluster, "clocks").leased > SLOTS, f"leases of both\n{cluster.logs()}")
    before = of(cluster, "clocks")
    assert before.done < images
    assert not [e for e in cluster.ledger.events(job_id) if e.kind == "expired"]
    ahead.kill()
    status = check(cluster, undisturbed(tmp_path / "clocks.yaml", model, tmp_path / "calm"))
    assert "is gone (death 1)" in cluster.logs()
    assert finished() == {True, False}
    expired = [e for e in cluster.ledger.events(job_id) if e.kind == "expired"]
    assert 0 < len(expired) <= before.leased + 4
    # The job's own times are the ledger's.
    now = datetime.datetime.now(datetime.UTC).timestamp()
    assert status.ended_s is not None
    assert now - 600 < status.created_s <= status.ended_s <= now


# Files that are none of a job's


class Listener:
    """Counts who asks an address for a picture."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.asked.append(self.path)
                self.send_error(404)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/x.png"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


SECRET = "secret.png"
SHARD = 4  # images of a shard in small jobs


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture of somebody else on this machine, beside all folders of the test."""
    path = tmp_path / SECRET
    Image.new("RGB", (64, 64), "crimson").save(path)
    return path


def foreign(secret: Path, listener: Listener) -> list[str]:
    return [
        "/etc/passwd",
        str(secret),
        f"../{SECRET}",
        f"photos/../../{SECRET}",
        "http://169.254.169.254/latest/meta-data",
        listener.url,
        f"file://{secret}",
    ]


def test_foreign_files_are_refused_at_submit(started, tmp_path, secret, listener):
    cluster = started()
    folder = tmp_path / "manifests"
    (folder / "photos").mkdir(parents=True)
    (folder / "link.png").symlink_to(secret)
    names = [*foreign(secret, listener), "link.png"]
    prompts = "".join(
        f"  - {{prompt: a star, init_image: '{name}'}}\n"
        f"  - {{prompt: a ring, init_image: good.png, mask: '{name}'}}\n"
        for name in names
    )
    Image.new("RGB", (64, 64), "teal").save(folder / "good.png")
    manifest = str(write(folder, "foreign", 1, prompts))
    for command in (("submit", manifest, "--store", str(tmp_path / "out")), ("validate", manifest)):
        refused = cluster.command(*command, "--json")
        assert refused.returncode == ExitCode.BAD_INPUT, refused.stdout
        problems = json.loads(refused.stdout)["problems"]
        assert len(problems) == 2 * len(names)
        for problem, name in zip(problems, sorted(names * 2, key=names.index), strict=True):
            assert name[:20] in problem["message"]
            assert "outside" in problem["message"] or "is no local file" in problem["message"]
        assert [problem["path"] for problem in problems] == [
            f"prompts[{number}].{'mask' if number % 2 == 0 else 'init_image'}"
            for number in range(1, 2 * len(names) + 1)
        ]
    assert cluster.ledger.jobs() == []
    assert not (tmp_path / "out").exists()
    assert listener.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("bucket", [False, True])
def test_a_worker_reads_no_foreign_files(
    started, model, tmp_path, secret, listener, bucket, request
):
    """The plan in the store was changed by somebody who may write there."""
    options: dict[str, Any] = {}
    if bucket:
        address = request.getfixturevalue("s3_address")
        options = {"store": open_store(address), "address": address}
    cluster = started(**options)
    pictures = tmp_path / "manifests"
    pictures.mkdir()
    Image.new("RGB", (64, 64), "teal").save(pictures / "good.png")
    names = foreign(secret, listener)
    deep = "/".join([".."] * 20)
    names += [f"../../../{SECRET}", f"{deep}{secret}"]  # as seen from the job's inputs
    names += ["../manifest.yaml", "../plan/part-00000.jsonl.gz"]
    from_picture = (
        "  - prompt: a star\n    init_image: good.png\n"
        f"    seeds: {{start: 100, count: {2 * len(names)}}}\n"
    )
    # The first shards have no pictures, so nothing is wrong with them.
    cluster.submit(write(pictures, "tampered", 40, from_picture))
    job = of(cluster, "tampered")
    keys = JobKeys(job.job_id)
    part = keys.plan_part(0)
    lines = [json.loads(line) for line in gzip.decompress(cluster.store.get(part)).splitlines()]
    with_picture = [line for line in lines if line["init_image"] is not None]
    pictures_of_the_job = {line["init_image"] for line in with_picture}
    assert len(with_picture) == 2 * len(names)
    for line, name in zip(with_picture, sorted(names * 2, key=names.index), strict=True):
        line["mask" if line["index"] % 2 else "init_image"] = name
    changed = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    cluster.store.put(part, gzip.compress(changed), overwrite=True)
    described = json.loads(cluster.store.get(keys.job)) | {"parts": None}  # which has its digest
    cluster.store.put(keys.job, json.dumps(described).encode(), overwrite=True)

    worker = cluster.start_worker()
    shards = {line["index"] // SHARD for line in with_picture}

    def tried() -> bool:
        events = cluster.ledger.events(job.job_id)
        return shards <= {int(e.values["shard"]) for e in events if e.kind == "released"}

    wait_for(tried, f"every shard\n{cluster.logs()}")
    status = of(cluster, "tampered")
    reasons = [failure.reason for failure in cluster.ledger.failures(job.job_id)]
    reasons += [status.error] if status.error else []
    assert reasons
    assert all("is not valid" in reason for reason in reasons), reasons
    assert listener.asked == []
    assert worker.poll() is None

    def made() -> set[int]:
        return {record["index"] for record in read_records(JobFolder(cluster.store, keys))}

    wait_for(lambda: set(range(40)) <= made(), f"the images without pictures\n{cluster.logs()}")
    assert not made() & {line["index"] for line in with_picture}
    assert {keys.path(info.key) for info in cluster.store.list(f"{keys.prefix}inputs/")} == {
        f"inputs/{name}" for name in pictures_of_the_job
    }
