"""Messages, windows, and sending them through a real broker."""

from __future__ import annotations

import pytest
from celery import Celery

from jobs.errors import InputError, LedgerError
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import JobState, NewJob, Shard
from jobs.queue.messages import SEND_RETRIES, CeleryQueue, celery_settings, from_message, to_message
from jobs.queue.publish import LEAST_WINDOW, publish, window
from tests.servers import free_port
from tests.worker.serve.refusals import REFUSALS

SHARD = Shard("shapes-1a2b", 3, 192, 256)


def test_a_message_comes_back():
    assert from_message(to_message(SHARD)) == SHARD


@pytest.mark.parametrize(
    "message",
    [
        None,
        "render",
        [],
        {},
        {**to_message(SHARD), "version": 0},
        {**to_message(SHARD), "version": "1"},
        {**to_message(SHARD), "job": "../other"},
        {**to_message(SHARD), "job": "a/b"},
        {**to_message(SHARD), "job": ""},
        {**to_message(SHARD), "job": 7},
        {**to_message(SHARD), "shard": -1},
        {**to_message(SHARD), "shard": "3"},
        {**to_message(SHARD), "start": 256},
        {**to_message(SHARD), "stop": 10**12},
        {**to_message(SHARD), "stop": True},
    ],
)
def test_anything_else_is_refused(message):
    with pytest.raises(InputError, match="not a message of sdbatch"):
        from_message(message)


def new_job(name, shards=100, **options):
    return NewJob(name, name, "p" * 64, "out", "demo", range(4, 4 * shards + 1, 4), 1, **options)


def test_jobs_share_the_workers_by_priority():
    ledger = MemoryLedger()
    ledger.create(new_job("long"))
    ledger.create(new_job("urgent", priority=90))
    ledger.create(new_job("paused", priority=90))
    ledger.set_state("paused", JobState.PAUSED)
    jobs = ledger.jobs()
    windows = {job.job_id: window(job, jobs, slots=100) for job in jobs}
    assert windows["urgent"] == 180
    assert windows["long"] == 20
    assert window(ledger.status("long"), jobs, slots=1) == LEAST_WINDOW
    ledger.set_state("urgent", JobState.CANCELLED)
    assert window(ledger.status("long"), ledger.jobs(), slots=100) == 200


def test_messages_go_to_the_queue_of_the_model(valkey):
    with valkey.client() as client:
        client.flushall()
    queue, ledger = CeleryQueue(valkey.url), MemoryLedger()
    ledger.create(new_job("shapes"))
    assert queue.length("demo") == 0
    assert publish(ledger, queue, ledger.status("shapes"), 6) == 6
    assert publish(ledger, queue, ledger.status("shapes"), 6) == 0
    assert queue.length("demo") == 6
    assert queue.length("other") == 0


def test_a_broker_that_is_away_is_named_without_its_password(monkeypatch):
    monkeypatch.setitem(SEND_RETRIES, "max_retries", 0)
    port = free_port()
    queue = CeleryQueue(f"redis://someone:secret@127.0.0.1:{port}/0")
    for call in (lambda: queue.send("demo", [SHARD]), lambda: queue.length("demo")):
        with pytest.raises(LedgerError, match=str(port)) as caught:
            call()
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(queue)


def test_a_broker_that_refuses_says_why(valkey, monkeypatch):
    monkeypatch.setitem(SEND_RETRIES, "max_retries", 1)
    queue = CeleryQueue(valkey.url)
    with valkey.client() as client:
        client.flushall()
        with REFUSALS["full"].under_way(client), pytest.raises(LedgerError, match="it is full"):
            queue.send("odd", [SHARD])
        with (
            REFUSALS["another type"].under_way(client),
            pytest.raises(LedgerError, match="wrong kind of value"),
        ):
            queue.length("odd")
    queue.send("odd", [SHARD])
    assert queue.length("odd") == 1


def test_a_broker_that_is_away_is_waited_for_without_end():
    """Celery gives up after a hundred tries, most of an hour, and ends the worker."""
    app = Celery(set_as_current=False)
    app.conf.update(celery_settings("redis://host"))
    assert app.conf.broker_connection_max_retries is None
