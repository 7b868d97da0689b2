"""A data set that workers write straight into a bucket, one of them killed in the middle."""

from __future__ import annotations

import hashlib
import signal
import tarfile
from io import BytesIO
from pathlib import Path

import duckdb
import pandas
import pytest

from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.storage import open_store
from tests.integration.cluster import Cluster, make_model
from tests.jobs.dataset.test_forms import load
from tests.servers import Valkey, wait_for

MANIFEST = """\
version: 1
name: many
model: odd
defaults: {{width: 64, height: 64, sampler: euler, steps: 1, guidance: 1}}
prompts: [{{prompt: a ring, seeds: {{start: 0, count: {images}}}}}]
output: {{dataset: webdataset}}
"""


@pytest.mark.parametrize("images", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_sample_once_though_a_worker_is_killed(
    tmp_path: Path, valkey: Valkey, s3_address: str, images: int
):
    with valkey.client() as client:
        client.flushall()
    (tmp_path / "many.yaml").write_text(MANIFEST.format(images=images))
    store, model = open_store(s3_address), make_model(tmp_path)
    cluster = Cluster(tmp_path, valkey, model, store=store, address=s3_address)
    try:
        cluster.submit(tmp_path / "many.yaml")
        killed = cluster.start_worker()
        wait_for(lambda: cluster.ledger.jobs()[0].done > images // 10, f"images\n{cluster.logs()}")
        cluster.start_worker()
        cluster.wait_for_workers(2)
        killed.send_signal(signal.SIGKILL)
        cluster.start_worker()
        wait_for(
            lambda: cluster.ledger.jobs()[0].state == "done", "the end of the job", patience_s=3600
        )
        status = cluster.ledger.jobs()[0]
    finally:
        cluster.close()
    assert (status.done, status.failed) == (images, 0)
    folder = JobFolder(store, JobKeys(status.job_id))
    wanted = {record["index"]: record["sha256"] for record in read_records(folder)}
    assert len(wanted) == images
    found: dict[int, str] = {}
    local = tmp_path / "set"
    local.mkdir()
    for info in store.list(folder.keys.dataset("webdataset")):
        data = store.get(info.key, limit_bytes=2**30)
        (local / info.key.rpartition("/")[2]).write_bytes(data)
        if not info.key.endswith(".tar"):
            continue
        with tarfile.open(fileobj=BytesIO(data)) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    index, file = int(member.name.removesuffix(".png")), tar.extractfile(member)
                    assert index not in found
                    assert file is not None
                    found[index] = hashlib.sha256(file.read()).hexdigest()
    assert found == wanted
    twins = sorted(local.glob("*.parquet"))
    table = pandas.concat([pandas.read_parquet(path) for path in twins])
    assert dict(zip(table["index"], table["sha256"], strict=True)) == wanted
    ask = "select count(*), count(distinct sha256) from read_parquet(?)"
    whole = store.get(folder.keys.table, limit_bytes=2**30)
    (tmp_path / "records.parquet").write_bytes(whole)
    distinct = len(set(wanted.values()))
    for files in (str(local / "*.parquet"), str(tmp_path / "records.parquet")):
        assert duckdb.execute(ask, [files]).fetchall() == [(images, distinct)]
    pictures = load(
        "webdataset", tmp_path, data_files=[str(p) for p in sorted(local.glob("*.tar"))]
    )
    assert len(pictures) == images
    assert pictures[images - 1]["png"].size == (64, 64)
