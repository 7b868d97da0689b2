"""When a worker goes on after a shard that failed, and when it stops."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.errors import ExitCode, StoreError
from jobs.ledger.base import ClaimAnswer, JobState
from jobs.records import read_lines
from jobs.storage import JobKeys
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
    service.store.broken = service.store.away = True
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
        service.store.broken = service.store.away = number % STORE_FAILURES != STORE_FAILURES - 1
        service.handle(number=number)
    assert service.worker.stopped is None
    assert service.ledger.status("job").done == 4


def test_a_store_that_answers_but_fails_one_job_stops_nobody(service):
    service.enter(images=2 * STORE_FAILURES + 2)
    service.store.broken = True
    for number in range(STORE_FAILURES + 1):
        service.handle(number=number)
    assert service.worker.stopped is None
    service.store.broken = False
    service.enter("other")
    service.handle("other")
    assert service.ledger.status("other").done == 2


def test_a_damaged_object_in_an_images_place_fails_that_image_alone(service):
    service.enter()
    service.handle()
    keys = JobKeys("job")
    first, second = (info.key for info in service.store.list(keys.images_prefix))
    service.store.put(first, b"no picture", overwrite=True)
    service.store.delete(keys.records(0))
    service.ledger.forget("job")
    service.enter_without_folder("job")
    service.handle()
    job = service.ledger.status("job")
    assert (job.done, job.failed) == (1, 1)
    (failure,) = service.ledger.failures("job")
    assert first.rpartition("/")[2] in failure.reason
    assert "move it away" in failure.reason
    assert service.worker.stopped is None
    assert [line["path"] for line in read_lines(service.store, keys.records(0))] == [
        keys.path(second)
    ]


def test_an_init_image_that_is_gone_fails_its_image_alone(service):
    picture = service.folder / "start.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture)
    manifest = "{prompt: a star, init_image: start.png}, a red circle"
    service.enter(prompts=manifest)
    keys = JobKeys("job")
    (info,) = service.store.list(f"{keys.prefix}inputs/")
    service.store.delete(info.key)
    service.handle()
    job = service.ledger.status("job")
    assert (job.done, job.failed) == (1, 1)
    (failure,) = service.ledger.failures("job")
    assert failure.index == 0
    assert service.value("sdbatch_image_failures_total", model="odd", reason="input") == 1


def test_a_job_that_came_again_under_its_name_is_another_job(service):
    """Forgotten, its folder removed, and another plan entered: nothing of the old one is used."""
    service.enter()
    service.handle()
    shutil.rmtree(service.folder / "out/job")
    service.ledger.forget("job")
    service.enter(prompts="a green star, a blue ring")
    service.handle()
    keys = JobKeys("job")
    lines = read_lines(service.store, keys.records(0))
    assert {line["prompt"] for line in lines} == {"a green star", "a blue ring"}
    assert service.store.head(keys.model) is not None


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
