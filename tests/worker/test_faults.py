"""A job that no worker can render, or end, says why."""

from __future__ import annotations

import pytest

from jobs.errors import LedgerError, NotFoundError, StoreError
from tests.worker.serve.services import Service
from worker.faults import LONGEST, report_job_error


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


def test_a_folder_that_the_worker_does_not_see(service):
    service.enter_without_folder("job")
    service.handle()
    assert service.ledger.status("job").error.startswith("w1: ")
    assert service.ledger.status("job").error.endswith("has no plan")


def test_another_model(service):
    service.enter("job", model="another")
    service.handle()
    expected = "w1: it wants model another, this worker has odd"
    assert service.ledger.status("job").error == expected


def test_a_store_without_rights_and_with_a_secret_in_its_address(service):
    service.enter()
    service.store.broken = True
    service.store.error = StoreError("s3://key:hunter2@bucket:\nno rights")
    service.handle()
    assert service.ledger.status("job").error == "w1: s3://***@bucket: no rights"
    service.store.broken = False
    service.handle()
    assert service.ledger.status("job").error is None


def test_a_ledger_that_is_away_is_told_nothing(service, monkeypatch):
    service.enter()
    report_job_error(service.ledger, "job", "w1", LedgerError("away"))
    assert service.ledger.status("job").error is None

    def away(*_):
        raise LedgerError("away")

    monkeypatch.setattr(service.ledger, "note_error", away)
    report_job_error(service.ledger, "job", "w1", NotFoundError("gone"))


def test_a_long_story_is_cut(service):
    service.enter()
    report_job_error(service.ledger, "job", "w1", StoreError("x" * 10_000))
    assert len(service.ledger.status("job").error) == LONGEST
