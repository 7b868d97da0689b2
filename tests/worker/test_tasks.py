"""The queue's edge: what becomes of a message."""

from __future__ import annotations

import threading

import pytest
from celery.exceptions import Reject

from jobs.errors import LedgerError
from jobs.ledger.types import Shard
from jobs.queue.messages import to_message
from tests.worker.serve.services import Service
from worker import process
from worker.tasks import render_shard

MESSAGE = to_message(Shard("job", 0, 0, 2))


@pytest.fixture
def service(tmp_path, monkeypatch):
    with Service(tmp_path) as service:
        life = process._Life(service.worker, service.ledger, [], threading.Event(), None)
        monkeypatch.setattr(process, "_life", life)
        service.enter()
        yield service


def test_a_shard_is_rendered_once(service):
    render_shard(MESSAGE)
    assert service.ledger.status("job").done == 2
    render_shard(MESSAGE)  # delivered twice
    assert service.ledger.status("job").done == 2


def test_a_worker_that_drains_gives_the_message_back(service):
    service.worker.drain()
    with pytest.raises(Reject) as given_back:
        render_shard(MESSAGE)
    assert given_back.value.requeue
    status = service.ledger.status("job")
    assert (status.published, status.leased) == (2, 0)


def test_a_worker_that_is_told_to_stop_while_it_renders_keeps_the_message(service, monkeypatch):
    claim = service.ledger.claim

    def told_to_stop(*args):
        claimed = claim(*args)
        service.worker.drain()
        return claimed

    monkeypatch.setattr(service.ledger, "claim", told_to_stop)
    render_shard(MESSAGE)  # what is left of it waits to be published again
    status = service.ledger.status("job")
    assert (status.waiting, status.leased) == (1, 0)


def test_no_message_is_none_of_anybody(service, caplog):
    render_shard({"job": "../other"})
    assert "message refused" in caplog.text


def test_without_the_ledger_the_shard_is_left_to_it(service, monkeypatch, caplog):
    def away(*_):
        raise LedgerError("no answer")

    monkeypatch.setattr(service.ledger, "claim", away)
    render_shard(MESSAGE)
    assert "shard left to the ledger: no answer" in caplog.text
