"""Which stores a worker opens (SDBATCH_STORES)."""

from __future__ import annotations

import threading

import pytest

from jobs.errors import ExitCode
from jobs.ledger import open_ledger
from jobs.ledger.types import Shard
from jobs.settings import Settings
from jobs.storage.addresses import opener
from tests.integration.waiting import WaitingEngine, WaitingModel
from tests.ledgers import new_job
from tests.servers import wait_for
from tests.worker.serve.services import SHARD, Service
from worker import process
from worker.serve.worker import STORE_FAILURES, Worker

REFUSED = "none that this worker may use; SDBATCH_STORES allows"


def test_jobs_elsewhere_are_refused_and_stop_nobody(tmp_path, caplog):
    """Their own store is not at fault, so the worker goes on with other jobs."""
    with Service(tmp_path) as service:
        worker = Worker(
            "w2",
            service.engine,
            service.worker.model,
            service.ledger,
            opener([str(tmp_path / "allowed")]),
            observer=service.metrics,
            added=service.added,
            pause_s=(0.0,),
        )
        shards = STORE_FAILURES + 1
        service.enter(images=SHARD * shards)
        for number in range(shards):
            worker.handle(Shard("job", number, SHARD * number, SHARD * (number + 1)))
        assert worker.stopped is None
        job = service.ledger.status("job")
        assert (job.done, job.failed, job.leased) == (0, 0, 0)
    assert REFUSED in caplog.text


def test_a_worker_process_goes_by_its_settings(valkey, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(process, "load", lambda choice: WaitingModel())
    monkeypatch.setattr(process, "Engine", lambda model, **_: WaitingEngine(0.0))
    with valkey.client() as client:
        client.flushall()
    ledger = open_ledger(valkey.url)
    ledger.create(new_job(store=str(tmp_path / "other")))
    process.start(Settings(redis=valkey.url, stores=(str(tmp_path / "allowed"),)), "w1")
    worker = process.worker()
    try:
        shard = threading.Thread(target=worker.handle, args=(Shard("job", 0, 0, 4),))
        shard.start()
        wait_for(lambda: REFUSED in caplog.text, "the refusal")
        assert ledger.status("job").done == 0
    finally:
        worker.drain()
        shard.join()
        process.stop()


def test_a_setting_that_is_no_address_ends_the_worker_at_once(caplog):
    with pytest.raises(SystemExit) as ended:
        process.start(Settings(stores=("s3://Bucket",)), "w1")
    assert ended.value.code == ExitCode.STORE
    assert "'Bucket' is no bucket name" in caplog.text
