"""When a worker goes on after a shard that failed, and when it stops."""

from __future__ import annotations

import pytest
import torch

from jobs.errors import ExitCode, StoreError
from jobs.ledger.base import ClaimAnswer, JobState
from tests.worker.services import Service, refused
from worker.faults import is_device_lost, is_out_of_memory
from worker.service import STORE_FAILURES


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


def test_shards_are_rendered_and_given_back(service):
    service.enter()
    service.handle(number=0)
    service.handle(number=1)
    job = service.ledger.status("job")
    assert (job.done, job.failed, job.leased) == (4, 0, 0)
    assert service.worker.state == "idle"
    assert service.worker.images == 4


def test_three_failures_of_the_store_in_a_row_stop_the_worker(service):
    service.enter(images=8)
    service.store.broken = True
    service.store.error = StoreError("redis://:hunter2@store is away")
    for number in range(STORE_FAILURES - 1):
        service.handle(number=number)
        assert service.worker.stopped is None
    service.handle(number=STORE_FAILURES - 1)
    (stopped,) = service.stops
    assert stopped is service.worker.stopped
    assert stopped.code is ExitCode.STORE
    assert stopped.why == "3 shards in a row failed: redis://***@store is away"
    assert service.worker.state == f"stopped: {stopped.why}"
    job = service.ledger.status("job")
    assert (job.done, job.failed, job.leased) == (0, 0, 0)
    # Others go on with what it leaves.
    service.handle(number=3)
    assert refused(service) == {"run": 3}
    assert service.ledger.claim("job", 3, "w2").answer is ClaimAnswer.RUN


def test_one_good_shard_forgives_the_failures_before(service):
    service.enter(images=12)
    for number in range(6):
        service.store.broken = number % STORE_FAILURES != STORE_FAILURES - 1
        service.handle(number=number)
    assert service.worker.stopped is None
    assert service.ledger.status("job").done == 4


def test_what_is_a_jobs_own_fault_stops_nobody(service):
    for number in range(STORE_FAILURES + 1):
        service.enter_without_folder(f"gone-{number}")
        service.enter_without_folder(f"other-{number}", model="another")
        service.handle(f"gone-{number}")
        service.handle(f"other-{number}")
    assert service.worker.stopped is None
    service.enter()
    service.handle()
    assert service.ledger.status("job").done == 2


def test_a_lost_device_fails_no_image_and_stops_the_worker_at_once(service, monkeypatch):
    def denoise(*_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    service.enter()
    monkeypatch.setattr(service.engine.model, "denoise", denoise)
    service.handle()
    (stopped,) = service.stops
    assert stopped.code is ExitCode.UNEXPECTED
    assert "illegal memory access" in stopped.why
    job = service.ledger.status("job")
    assert (job.done, job.failed, job.leased) == (0, 0, 0)


def test_an_engine_that_ended_stops_the_worker(service):
    service.enter()
    service.engine.close()
    service.handle()
    (stopped,) = service.stops
    assert stopped.code is ExitCode.UNEXPECTED
    assert service.ledger.status("job").leased == 0


def test_draining_takes_no_more(service):
    service.enter()
    service.worker.drain()
    service.handle()
    assert service.worker.state == "draining"
    assert refused(service) == {}
    assert service.stops == []


def test_deliveries_are_counted_by_their_answer(service):
    service.enter()
    service.handle()
    service.handle()
    service.handle("nobody")
    service.ledger.set_state("job", JobState.CANCELLED)
    service.handle(number=1)
    assert refused(service) == {"run": 1, "done": 1, "unknown": 1, "cancelled": 1}


ILLEGAL = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("error", "lost", "memory"),
    [
        (torch.AcceleratorError(ILLEGAL), True, False),
        (RuntimeError(ILLEGAL), True, False),
        (RuntimeError("CUDA error: out of memory"), False, True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False, True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), False, True),
        (MemoryError(), False, True),
        (RuntimeError("shapes do not fit"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_the_device_are_told_apart(error, lost, memory):
    assert is_device_lost(error) is lost
    assert is_out_of_memory(error) is memory
