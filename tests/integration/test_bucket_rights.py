"""Policies of the bucket: who submits, renders or looks can do that, and nothing else.

The documents of `infra/s3` are those of AWS; here SeaweedFS reads them.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError
from PIL import Image

from jobs.dataset import Form
from jobs.errors import ExitCode, StoreError
from jobs.folder.layout import JobKeys
from jobs.reuse.index import index_key
from jobs.storage import open_store
from tests.infra.files import INFRA
from tests.integration.cluster import Cluster, make_model
from tests.servers_s3 import BUCKET, Keys, S3Server, identity, log_in

POLICIES = {name: INFRA / f"s3/{name}-policy.json" for name in ("read", "submit", "worker")}
COARSE = {
    "read": ["Read", "List"],
    "submit": ["Read", "List", "Write"],
    "worker": ["Read", "List", "Write"],
}
"""The same in SeaweedFS's own words, which know no more of a folder than this."""
STORE = f"s3://{BUCKET}/jobs"
JOB = JobKeys("shapes")

ENTERED = [
    JOB.manifest,
    JOB.resolved,
    JOB.job,
    JOB.input_names,
    JOB.input("a.png"),
    JOB.plan_part(0),
]
"""Written by who submits."""
RENDERED = [
    *(JOB.image("a/b", "0" * 64, "png"), JOB.records(0), JOB.saved(0, "0" * 64), JOB.failures),
    *(JOB.thumbnail(JOB.image("a", "0" * 64, "png")), index_key("shapes"), JOB.table),
    *(f"{JOB.dataset(form)}a" for form in Form),
]
"""Written by workers, and deleted."""
ENDED = [JOB.model(), JOB.model("a"), JOB.index, JOB.sheet(0), JOB.done]
"""Written by workers."""
MAY_PUT = {"read": [], "submit": ENTERED, "worker": [*RENDERED, *ENDED]}
MAY_DELETE = {"read": [], "submit": [], "worker": RENDERED}
ALL = [*ENTERED, *RENDERED, *ENDED]

MANIFEST = """\
version: 1
name: shapes
model: odd
defaults: {width: 64, height: 64, steps: 2}
output: {dataset: webdataset}
prompts:
  - {prompt: a red circle, seeds: {start: 0, count: 4}}
  - {prompt: a large circle, width: 384}
  - {prompt: a blue ring, init_image: start.png, strength: 0.5}
"""
IMAGES = 6


def keys_of(user: str) -> Keys:
    return Keys(f"{user.upper()}KEYID", f"{user}/secret+0123456789")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    policies = {
        name: re.sub(r"arn:aws:s3:::sdbatch\b", f"arn:aws:s3:::{BUCKET}", path.read_text())
        for name, path in POLICIES.items()
    }
    users = [identity(name, keys_of(name), policyNames=[name]) for name in POLICIES]
    users += [
        identity(
            f"coarse{name}",
            keys_of(f"coarse{name}"),
            actions=[f"{action}:{BUCKET}/jobs/*" for action in actions],
        )
        for name, actions in COARSE.items()
    ]
    server = S3Server(tmp_path_factory.mktemp("s3"), users, policies)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(server, aws):
    """A client that may do anything, to a bucket in which every kind of object is."""
    client = server.client()
    for key in ALL:
        client.put_object(Bucket=BUCKET, Key=f"jobs/{key}", Body=b"x")
    for key in ("other/a", "models/a"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])


def store_of(user, server, aws):
    log_in(aws, server.endpoint, keys_of(user))
    return open_store(STORE)


def allowed(call) -> bool:
    """False if it is refused. Other errors pass."""
    try:
        call()
    except StoreError as error:
        if "access denied" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("user", POLICIES)
def test_each_may_read_all_and_write_its_own(user, bucket, server, aws):
    store = store_of(user, server, aws)
    assert {info.key for info in store.list("")} == set(ALL)
    assert all(store.get(key) == b"x" for key in ALL)
    assert store.head(JOB("images/missing.png")) is None
    put = [key for key in ALL if allowed(lambda key=key: store.put(key, b"y", overwrite=True))]
    assert put == [key for key in ALL if key in MAY_PUT[user]]
    deleted = [key for key in ALL if allowed(lambda key=key: store.delete(key))]
    assert deleted == [key for key in ALL if key in MAY_DELETE[user]]
    assert {info.key for info in store.list("")} == set(ALL) - set(deleted)
    assert allowed(store.check_writable) == (user != "read")
    left = bucket.list_objects_v2(Bucket=BUCKET, Prefix="jobs/.tmp-")
    assert "Contents" not in left  # what it was checked with is gone


@pytest.mark.parametrize("user", POLICIES)
def test_the_rest_of_the_bucket_is_out_of_reach(user, bucket, server, aws):
    log_in(aws, server.endpoint, keys_of(user))
    client = boto3.Session().client("s3")  # the default one remembers other keys
    image = {"Bucket": BUCKET, "Key": f"jobs/{RENDERED[0]}"}
    other = {"Bucket": BUCKET, "Key": "other/a"}
    calls = [
        lambda: client.get_object(**other),
        lambda: client.put_object(**other),
        lambda: client.delete_object(**other),
        lambda: client.copy_object(**image, CopySource=other),
        lambda: client.list_objects_v2(Bucket=BUCKET, Prefix="other/"),
        lambda: client.put_object(Bucket=BUCKET, Key="models/a"),
        lambda: client.delete_bucket(Bucket=BUCKET),
        lambda: client.create_bucket(Bucket="another"),
        lambda: client.get_bucket_policy(Bucket=BUCKET),
        lambda: client.put_object_acl(**image, ACL="public-read"),
    ]
    if user != "worker":
        calls.append(lambda: client.get_object(Bucket=BUCKET, Key="models/a"))
    for call in calls:
        with pytest.raises(ClientError, match="AccessDenied"):
            call()


def test_a_worker_copies_pictures_and_sends_large_tables_in_parts(bucket, server, aws, tmp_path):
    store = store_of("worker", server, aws)
    target = JOB.image("copied", "0" * 64, "png")
    assert store.copy(RENDERED[0], target)
    assert store.get(target) == b"x"
    path = tmp_path / "table"
    path.write_bytes(bytes(9 * 2**20))  # boto3 sends more than 8 MiB in parts
    store.put_file(JOB.table, path)
    info = store.head(JOB.table)
    assert info is not None
    assert info.size_bytes == 9 * 2**20
    assert open_store(f"s3://{BUCKET}/models").get("a") == b"x"


@pytest.mark.parametrize("user", COARSE)
def test_the_servers_own_words_hold_them_in_their_folder(user, bucket, server, aws):
    store = store_of(f"coarse{user}", server, aws)
    assert {info.key for info in store.list("")} == set(ALL)
    writes = user != "read"
    for key in ALL:
        assert allowed(lambda key=key: store.put(key, b"y", overwrite=True)) == writes
        assert allowed(lambda key=key: store.delete(key)) == writes
    for call in (
        lambda: open_store(f"s3://{BUCKET}/other").get("a"),
        lambda: open_store(f"s3://{BUCKET}/other").put("a", b"y", overwrite=True),
        lambda: list(open_store(f"s3://{BUCKET}/other").list("")),
    ):
        assert not allowed(call)


@pytest.fixture
def cluster(server, bucket, aws, valkey, tmp_path):
    with valkey.client() as client:
        client.flushall()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "start.png")
    (tmp_path / "shapes.yaml").write_text(MANIFEST)
    for key in ALL:  # of a job that there is not
        bucket.delete_object(Bucket=BUCKET, Key=f"jobs/{key}")
    log_in(aws, server.endpoint, keys_of("read"))
    cluster = Cluster(
        tmp_path, valkey, make_model(tmp_path), store=open_store(STORE), address=STORE
    )
    yield cluster
    cluster.close()


@pytest.fixture
def run(cluster):
    """Runs a command with the keys of one of the users."""

    def run(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        cluster.environ |= environ_of(user)
        return cluster.command(*arguments)

    return run


def environ_of(user: str) -> dict[str, str]:
    keys = keys_of(user)
    return {"AWS_ACCESS_KEY_ID": keys.key_id, "AWS_SECRET_ACCESS_KEY": keys.secret}


def test_a_job_runs_with_no_more_rights(cluster, run, bucket, tmp_path):
    def runs(user: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = run(user, *arguments)
        assert done.returncode == 0, (user, arguments, done.stderr, cluster.logs())
        return done

    manifest = str(tmp_path / "shapes.yaml")
    runs("submit", "submit", manifest, "--store", STORE)
    worker = cluster.start_worker(**environ_of("worker"))
    assert json.loads(runs("read", "watch", "shapes", "--json").stdout)["done"] == IMAGES
    runs("submit", "submit", manifest, "--store", STORE, "--job", "again")  # all are copied
    assert json.loads(runs("read", "watch", "again", "--json").stdout)["done"] == IMAGES
    runs("read", "collect", "again", str(tmp_path / "mine"))
    runs("read", "verify", "again")
    runs("read", "grid", "again", "--output", str(tmp_path / "grid"))
    lost = next(info.key for info in cluster.store.list("again/images/"))
    bucket.delete_object(Bucket=BUCKET, Key=f"jobs/{lost}")
    assert "1 that was done" in runs("submit", "resume", "again", "--store", STORE).stdout
    runs("read", "watch", "again")
    assert cluster.store.head(lost) is not None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0, cluster.logs()
    assert "denied" not in cluster.logs()
    kinds = {re.sub(r"^[^/]+/([\w.]+).*", r"\1", info.key) for info in cluster.store.list("")}
    assert {"images", "thumbs", "records", "records.parquet", "webdataset"} <= kinds


@pytest.mark.parametrize(
    ("user", "arguments"),
    [
        ("read", ("submit", "{manifest}", "--store", STORE, "--job", "another")),
        ("worker", ("submit", "{manifest}", "--store", STORE, "--job", "another")),
        ("submit", ("resume", "{job}", "--store", STORE, "--check")),
        ("read", ("index", "--store", STORE)),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_other_commands_are_refused_and_change_nothing(
    cluster, run, bucket, tmp_path, user, arguments
):
    manifest = str(tmp_path / "shapes.yaml")
    assert run("submit", "submit", manifest, "--store", STORE).returncode == 0
    (job,) = cluster.ledger.jobs()
    keys = JobKeys(job.job_id)
    record = {"index": 0, "path": "images/a.png", "sha256": "0" * 64, "bytes": 1}
    line = json.dumps(record).encode() + b"\n"
    for key, data in ((keys("images/a.png"), b"x"), (keys.records(0), line)):
        bucket.put_object(Bucket=BUCKET, Key=f"jobs/{key}", Body=data)
    before = {info.key: cluster.store.get(info.key) for info in cluster.store.list("")}
    names = {"manifest": manifest, "job": job.job_id}
    done = run(user, *(argument.format(**names) for argument in arguments))
    assert done.returncode == ExitCode.STORE, done.stderr
    *_, last = done.stderr.splitlines()
    assert "access denied" in last
    assert "Traceback" not in done.stderr
    after = {info.key: cluster.store.get(info.key) for info in cluster.store.list("")}
    assert after == before
    assert cluster.ledger.jobs() == [job]
