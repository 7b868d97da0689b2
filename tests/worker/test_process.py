"""How a worker process ends, and what it says of it."""

from __future__ import annotations

import threading

import pytest

from jobs.errors import ExitCode
from jobs.ledger.types import WorkerInfo
from tests.worker.serve.services import Service
from worker import process
from worker.serve.worker import Stopped


@pytest.fixture
def service(tmp_path, monkeypatch):
    with Service(tmp_path) as service:
        life = process._Life(service.worker, service.ledger, [], threading.Event(), None)
        monkeypatch.setattr(process, "_life", life)
        info = WorkerInfo("w1", "host", 1, "cpu", "odd", 0, 0, "idle")
        service.ledger.worker_seen(info, 60)
        yield service


def test_told_to_stop_it_ends_well(service):
    service.worker.drain()
    process.stop(0)
    assert service.ledger.workers() == []


@pytest.mark.parametrize("code", [1, None])
def test_ended_by_an_error_of_celery_it_does_not_end_as_if_told_to(service, caplog, code):
    with pytest.raises(SystemExit) as ended:
        process.stop(code)
    assert ended.value.code == ExitCode.UNEXPECTED
    assert "ended without being told to" in caplog.text
    assert not service.engine.alive
    assert service.ledger.workers() == []


def test_told_to_stop_an_error_on_the_way_changes_nothing(service):
    service.worker.drain()
    process.stop(1)


def test_stopped_by_itself_it_ends_with_that_code(service):
    service.worker.stop(Stopped("the store is away", ExitCode.STORE))
    with pytest.raises(SystemExit) as ended:
        process.stop(ExitCode.STORE)
    assert ended.value.code == ExitCode.STORE
    assert len(service.ledger.workers()) == 1  # listed with the reason for a while


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("no engine")])
def test_it_takes_work_though_its_own_size_does_not_fit(service, caplog, monkeypatch, error):
    def fail() -> None:
        raise error

    monkeypatch.setattr(service.engine, "compile_ahead", fail)
    process._compile_ahead(service.engine)
    assert f"native size cannot be rendered here: {error}" in caplog.text
