"""Images left half-way by one worker go on in the next, from the step that they had reached."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from safetensors.torch import load, save

from jobs.errors import StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.ledger.types import Shard
from jobs.task import Failure
from sd_core.sampling.samplers import evaluations
from tests.worker.serve.services import SHARD, Service
from worker.output.done import end_job

NEEDED = evaluations("plms", 3)
KEYS = JobKeys("job")


@pytest.fixture
def service(tmp_path):
    with Service(tmp_path) as service:
        yield service


def steps_of(service: Service) -> list[int]:
    """Evaluations that images have had here, in all batches together: filled as it works."""
    seen: list[int] = []
    submit = service.engine.submit

    def watched(request, *, on_step=None, state=None):
        def step(done: int, of: int) -> None:
            seen.append(done)
            if on_step is not None:
                on_step(done, of)

        return submit(request, on_step=step, state=state)

    service.engine.submit = watched
    return seen


def drained_after(service: Service, step: int) -> None:
    """The worker is told to end when its images have had so many evaluations."""
    submit = service.engine.submit

    def watched(request, *, on_step=None, state=None):
        def told(done: int, of: int) -> None:
            if on_step is not None:
                on_step(done, of)
            if done == step:
                service.worker.drain()
                suspended.wait(60)

        return submit(request, on_step=told, state=state)

    suspended = threading.Event()
    suspend = service.engine.suspend

    def suspending(futures, *, grace_s=0.0):
        suspend(futures, grace_s=grace_s)
        suspended.set()

    service.engine.submit, service.engine.suspend = watched, suspending
    service.handle()
    assert suspended.is_set()


def header_of(state: bytes) -> dict[str, str]:
    """The text of a file of safetensors."""
    return json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])["__metadata__"]


def saved(service: Service) -> list[str]:
    return [info.key for info in service.store.list(KEYS.saved_prefix)]


def continued(folder, first: Service) -> Service:
    """Another worker with the same ledger and folder."""
    second = Service(folder)
    second.worker.ledger = second.ledger = first.ledger
    return second


def images(service: Service) -> dict[str, bytes]:
    found = service.store.list(KEYS.images_prefix)
    return {info.key: service.store.get(info.key) for info in found}


def test_what_a_draining_worker_began_goes_on_in_another(tmp_path, service):
    service.enter()
    before = steps_of(service)
    drained_after(service, 2)
    assert service.ledger.status("job").done == 0
    assert len(saved(service)) == SHARD
    with continued(tmp_path, service) as second:
        steps = steps_of(second)
        second.worker.handle(Shard("job", 0, 0, SHARD))
        assert len(before) >= SHARD
        assert sorted(before + steps) == sorted([*range(1, NEEDED + 1)] * SHARD)  # none twice
        assert second.ledger.status("job").done == SHARD
        assert saved(second) == []
        continued_images = images(second)
    with Service(tmp_path / "calm") as calm:
        calm.enter()
        calm.handle()
        assert continued_images == images(calm)


@pytest.mark.parametrize("damage", ["bytes", "store"])
def test_what_cannot_be_continued_begins_anew(tmp_path, service, damage, monkeypatch):
    service.enter()
    drained_after(service, 2)
    with continued(tmp_path, service) as second:
        if damage == "bytes":
            for key in saved(second):
                second.store.put(key, b"half a file", overwrite=True)
        else:
            get = second.store.get

            def away(key: str, **limit: int) -> bytes:
                if "/saved/" in key:
                    raise StoreError("the store is away")
                return get(key, **limit)

            monkeypatch.setattr(second.store, "get", away)
        steps = steps_of(second)
        second.worker.handle(Shard("job", 0, 0, SHARD))
        assert sorted(steps) == sorted([*range(1, NEEDED + 1)] * SHARD)
        assert second.ledger.status("job").done == SHARD


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda x: x[..., 1:], lambda x: x + 1e-3])
def test_an_edited_state_costs_the_steps_of_its_image_alone(tmp_path, service, change):
    """Of another type, another size, and with other numbers under the old digest."""
    service.enter()
    drained_after(service, 2)
    with continued(tmp_path, service) as second:
        key, other = saved(second)
        left = int(load(second.store.get(other))["numbers"][0])  # it may have begun a step later
        state = second.store.get(key)
        tensors = load(state)
        tensors["latents"] = change(tensors["latents"]).contiguous()
        second.store.put(key, save(tensors, header_of(state)), overwrite=True)
        steps = steps_of(second)
        second.worker.handle(Shard("job", 0, 0, SHARD))
        assert sorted(steps) == sorted([*range(1, NEEDED + 1), *range(left + 1, NEEDED + 1)])
        assert second.ledger.status("job").done == SHARD
        assert saved(second) == []
        edited = images(second)
    with Service(tmp_path / "calm") as calm:
        calm.enter()
        calm.handle()
        assert edited == images(calm)


def test_no_more_is_read_than_a_state_has(tmp_path, service, monkeypatch, caplog):
    service.enter()
    drained_after(service, 2)
    with continued(tmp_path, service) as second:
        key, *_ = saved(second)
        second.store.put(key, bytes(2**20), overwrite=True)
        read: list[int] = []
        get = second.store.get

        def watched(key: str, *, limit_bytes: int) -> bytes:
            data = get(key, limit_bytes=limit_bytes)
            read.append(len(data))
            return data

        monkeypatch.setattr(second.store, "get", watched)
        second.worker.handle(Shard("job", 0, 0, SHARD))
        assert second.ledger.status("job").done == SHARD
    assert max(read) < 2**16
    assert "begins anew" in caplog.text


@pytest.mark.parametrize("error", [StoreError("away"), OSError("odd")])
def test_trouble_while_an_image_begins_anew_is_the_shards(tmp_path, service, monkeypatch, error):
    service.enter()
    drained_after(service, 2)
    with continued(tmp_path, service) as second:
        for key in saved(second):
            second.store.put(key, b"half a file", overwrite=True)
        submit = second.engine.submit

        def refusing(request, *, on_step=None, state=None):
            if state is None:
                raise error
            return submit(request, on_step=on_step, state=state)

        monkeypatch.setattr(second.engine, "submit", refusing)
        second.worker.handle(Shard("job", 0, 0, SHARD))
        job = second.ledger.status("job")
        assert (job.done, job.failed, job.leased) == (0, 0, 0)
        assert str(error) in job.error
        monkeypatch.undo()
        second.worker.handle(Shard("job", 0, 0, SHARD))
        assert second.ledger.status("job").done == SHARD


def test_a_store_that_takes_no_more_costs_only_the_steps(tmp_path, service, monkeypatch):
    service.enter()
    put = service.store.put

    def full(key, data, **options):
        if "/saved/" in key:
            raise StoreError("no room")
        return put(key, data, **options)

    monkeypatch.setattr(service.store, "put", full)
    drained_after(service, 2)
    assert saved(service) == []
    assert service.ledger.status("job").leased == 0
    with continued(tmp_path, service) as second:
        second.worker.handle(Shard("job", 0, 0, SHARD))
        assert second.ledger.status("job").done == SHARD


def test_a_cancelled_job_leaves_nothing_to_go_on_with(service):
    service.enter()
    reached = threading.Event()
    submit = service.engine.submit

    def watched(request, *, on_step=None, state=None):
        def told(done: int, of: int) -> None:
            on_step(done, of)
            if done == 2 and not reached.is_set():
                reached.set()
                service.ledger.set_state("job", "cancelled")
                service.worker.heartbeat.beat()

        return submit(request, on_step=told, state=state)

    service.engine.submit = watched
    service.handle()
    assert reached.is_set()
    assert saved(service) == []
    assert service.ledger.status("job").leased == 0


def test_the_end_of_a_job_leaves_none_behind(service):
    service.enter()
    drained_after(service, 2)
    assert saved(service)
    failures = [Failure(index, "n", "p", 0, "why") for index in range(4)]
    end_job(JobFolder(service.store, KEYS), failures, {}, images=4)
    assert saved(service) == []
