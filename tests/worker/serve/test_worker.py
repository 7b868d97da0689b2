"""When a worker goes on after a shard that failed, and when it stops."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.errors import ExitCode, NotFoundError, StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.model_file import read_pin
from jobs.folder.prepare import prepare
from jobs.folder.records import read_lines, read_records
from jobs.ledger.types import ClaimAnswer, JobState, ModelShards, NewJob
from jobs.manifest.load import load_manifest
from jobs.reuse.index import write_index
from jobs.task import Task
from sd_core.spec import Sampling
from tests.worker.samples import resaved
from tests.worker.serve.services import SHARD, FailingStore, Service, refused
from worker.faults import is_device_lost, is_out_of_memory
from worker.serve.worker import STORE_FAILURES


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
    assert service.metrics.finished == 4


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


class Asking(FailingStore):
    """Remembers what it was asked about images, and in which way."""

    def __init__(self, root) -> None:
        super().__init__(root)
        self.asked = []

    def head(self, key):
        self.asked += ["head"] * ("/images/" in key)
        return super().head(key)

    def get(self, key, **limit):
        self.asked += ["get"] * ("/images/" in key)
        return super().get(key, **limit)


def again(service: Service, store: type[Asking] = Asking) -> None:
    """The first shard once more, as after a lost ledger; its store then counts what it is asked."""
    service.ledger.forget("job")
    service.enter_without_folder("job")
    service.store.__class__, service.store.asked = store, []
    service.handle()


def images(service: Service) -> dict[str, bytes]:
    return {i.key: service.store.get(i.key) for i in service.store.list("job/images/")}


def test_whole_images_are_not_read(service):
    service.enter()
    service.handle()
    again(service)
    assert service.ledger.status("job").done == SHARD
    assert service.store.asked == ["head"] * SHARD
    service.store.delete(JobKeys("job").records(0))
    again(service)
    assert sorted(service.store.asked) == ["get"] * SHARD + ["head"] * SHARD


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("damage", [b"", b"no picture", "half"])
def test_a_damaged_image_is_rendered_again(service, recorded, damage):
    service.enter()
    service.handle()
    records = JobKeys("job").records(0)
    lines = [without_timings(line) for line in read_lines(service.store, records)]
    before = images(service)
    first = min(before)
    other = before[first][: len(before[first]) // 2] if damage == "half" else damage
    service.store.put(first, other, overwrite=True)
    if not recorded:
        service.store.delete(records)
    again(service)
    job = service.ledger.status("job")
    assert (job.done, job.failed) == (SHARD, 0)
    assert images(service) == before
    assert [without_timings(line) for line in read_lines(service.store, records)] == lines
    assert service.value("sdbatch_images_total", model="odd") == SHARD + 1


def without_timings(line: dict) -> dict:
    return {name: line[name] for name in line.keys() - {"timings_s", "finished"}}


def test_another_picture_of_the_same_size_is_known_where_the_store_notes_digests(service):
    """As `S3Store` does."""

    class Noting(Asking):
        def head(self, key):
            info = super().head(key)
            sha256 = hashlib.sha256(self.get(key)).hexdigest()
            return replace(info, metadata={"sha256": sha256})

    service.enter()
    service.handle()
    before = images(service)
    first = min(before)
    other = before[first][:-1] + b"x"
    service.store.put(first, other, overwrite=True)
    again(service)
    assert images(service)[first] == other  # a folder notes nothing
    again(service, Noting)
    assert images(service) == before


def test_another_picture_of_another_size_is_not_taken_for_the_recorded_one(service):
    """It is whole, and says that it is the one: only the record knows better."""
    service.enter()
    service.handle()
    before = images(service)
    first = min(before)
    service.store.put(first, resaved(before[first]), overwrite=True)
    again(service)
    assert images(service) == before


def test_a_whole_picture_of_somebody_elses_fails_its_image_alone(service):
    service.enter()
    service.handle()
    keys = JobKeys("job")
    first, second = images(service)
    theirs = resaved(images(service)[first], kept=False)
    service.store.put(first, theirs, overwrite=True)
    service.store.delete(keys.records(0))
    again(service)
    job = service.ledger.status("job")
    assert (job.done, job.failed) == (1, 1)
    (failure,) = service.ledger.failures("job")
    assert first.rpartition("/")[2] in failure.reason
    assert "move it away" in failure.reason
    assert service.worker.stopped is None
    assert images(service)[first] == theirs
    assert [line["path"] for line in read_lines(service.store, keys.records(0))] == [
        keys.path(second)
    ]


def with_init_image(service: Service) -> None:
    """A job whose first of two images has one."""
    picture = service.folder / "start.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture)
    service.enter(prompts="{prompt: a star, init_image: start.png}, a red circle")


def test_an_init_image_that_is_gone_fails_its_image_alone(service):
    with_init_image(service)
    keys = JobKeys("job")
    (info,) = service.store.list(f"{keys.prefix}inputs/")
    service.store.delete(info.key)
    service.handle()
    job = service.ledger.status("job")
    assert (job.done, job.failed) == (1, 1)
    (failure,) = service.ledger.failures("job")
    assert failure.index == 0
    assert service.value("sdbatch_image_failures_total", model="odd", reason="input") == 1


@pytest.mark.parametrize("damage", ["another picture", "a flipped bit", "cut", "large"])
def test_an_init_image_that_is_another_fails_its_image_alone(service, damage, monkeypatch):
    monkeypatch.setattr("worker.render.inputs.MAX_IMAGE_BYTES", 10_000)
    with_init_image(service)
    (info,) = service.store.list("job/inputs/")
    data = service.store.get(info.key)
    other = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(other, "PNG")
    flipped = data[:60] + bytes([data[60] ^ 4]) + data[61:]
    damaged = {"another picture": other.getvalue(), "a flipped bit": flipped, "cut": data[:-9]}
    service.store.put(info.key, damaged.get(damage, bytes(20_000)), overwrite=True)
    service.handle()
    job = service.ledger.status("job")
    assert (job.done, job.failed, job.leased) == (1, 1, 0)
    (failure,) = service.ledger.failures("job")
    assert failure.index == 0
    assert info.key in failure.reason
    assert "submit or run the job's manifest again" in failure.reason
    assert service.value("sdbatch_image_failures_total", model="odd", reason="input") == 1


def test_an_init_image_whose_bits_flip_on_the_way_is_read_again(service, monkeypatch):
    with_init_image(service)
    get, bad = service.store.get, [b"other bytes"]

    def flipping(key, **limit):
        return bad.pop() if "/inputs/" in key and bad else get(key, **limit)

    monkeypatch.setattr(service.store, "get", flipping)
    service.handle()
    assert bad == []
    assert service.ledger.status("job").done == 2


def test_submitting_again_mends_an_input(service):
    with_init_image(service)
    (info,) = service.store.list("job/inputs/")
    before = service.store.get(info.key)
    service.store.put(info.key, b"another", overwrite=True)
    prepare(load_manifest(service.folder / "job.yaml"), JobFolder(service.store, JobKeys("job")))
    assert service.store.get(info.key) == before


def plan_part(line: bytes | None = None, **changes: object) -> bytes:
    """Of two tasks, the first with these changes, or this line in its place."""
    task = Task(0, "000000-s0", "a ring", "", Sampling(width=64, height=64, steps=3)).to_json()
    first = json.dumps(task | changes).encode() if line is None else line
    second = json.dumps(task | {"index": 1, "name": "000001-s0"}).encode()
    return gzip.compress(first + b"\n" + second + b"\n", 1)


@pytest.mark.parametrize(
    ("part", "flaw"),
    [
        (lambda: plan_part(prompt="x" * 50_000_000), "line 1 is longer than"),
        (lambda: plan_part(prompt="x" * 20_000), "prompt: String should have at most"),
        (lambda: plan_part(format="exe"), "format: Input should be"),
        (lambda: plan_part(index=5), "its index is that of another place"),
        (lambda: plan_part(tiling=True), "tiling is not known here"),
        (lambda: plan_part(name="../../../x"), "is no name of an image"),
        (lambda: plan_part(b"[1, 2]"), "Input should be an object"),
        (lambda: plan_part(b"[" * 200_000), "recursion limit exceeded"),
        (lambda: plan_part(bytes(300_000_000)), "line 1 is longer than"),
        (lambda: plan_part()[:-9], "ended before"),
        (lambda: bytes(70_000_000), "more than the 67,108,864 bytes"),
        (lambda: b"", "it is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_that_nobody_could_have_submitted_stops_its_job_alone(service, part, flaw):
    """As whoever may write to the store can make it: with or without a digest in `job.json`."""
    service.enter("bad", images=2)
    keys = JobKeys("bad")
    values = json.loads(service.store.get(keys.job))
    service.store.put(keys.plan_part(0), part(), overwrite=True)
    service.handle("bad")
    assert "part-00000.jsonl.gz" in service.ledger.status("bad").error
    service.store.put(keys.job, json.dumps(values | {"parts": None}).encode(), overwrite=True)
    service.handle("bad")
    job = service.ledger.status("bad")
    assert flaw in job.error
    assert (job.done, job.failed, job.leased) == (0, 0, 0)
    service.enter()
    service.handle()
    assert service.ledger.status("job").done == 2
    assert service.worker.stopped is None


def test_a_plan_that_was_mended_is_rendered_by_the_same_worker(service):
    service.enter()
    service.store.put(JobKeys("job").plan_part(0), b"damaged", overwrite=True)
    service.handle()
    assert "submit or run the job's manifest again" in service.ledger.status("job").error
    prepare(load_manifest(service.folder / "job.yaml"), JobFolder(service.store, JobKeys("job")))
    service.handle()
    assert service.ledger.status("job").done == SHARD


def test_trouble_that_nobody_expects_is_its_shards_and_the_lease_goes_back(service, monkeypatch):
    def odd(*_, **__):
        raise KeyError("redis://:hunter2@queue")

    service.enter("odd")
    with monkeypatch.context() as patch:
        patch.setattr("worker.serve.worker.render_shard", odd)
        service.handle("odd")
    job = service.ledger.status("odd")
    assert job.leased == 0
    assert job.error == ("w1: unexpected KeyError: 'redis://***@queue'; the worker's log has more")
    service.handle("odd")
    assert service.ledger.status("odd").done == 2
    assert service.worker.stopped is None


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
    assert service.store.head(keys.model()) is not None


def test_pictures_of_an_earlier_job_are_taken_unless_declined(service):
    service.enter("first")
    service.handle("first", 0)
    write_index(JobFolder(service.store, JobKeys("first")))
    service.enter("second")
    evaluated = service.value("sdbatch_evaluations_total", model="odd")
    service.handle("second", 0)
    status = service.ledger.status("second")
    assert (status.done, status.failed, status.evaluated) == (2, 0, 0)
    assert service.value("sdbatch_evaluations_total", model="odd") == evaluated
    (one, two) = read_lines(service.store, JobKeys("second").records(0))
    assert one["reused_from"] == two["reused_from"] == "first"
    described = JobKeys("third").job
    service.enter("third")
    job = json.loads(service.store.get(described)) | {"reuse": False}
    service.store.put(described, json.dumps(job).encode(), overwrite=True)
    service.handle("third", 0)
    assert service.ledger.status("third").evaluated > 0


def test_of_a_job_of_several_models_it_renders_its_own_shards(service):
    service.enter(prompts="a ring, a star", head="matrix: {model: [odd, even]}")
    service.ledger.forget("job")
    models = (ModelShards("odd", 1, 2), ModelShards("even", 1, 2))
    both = NewJob("job", "job", "p" * 64, "out", "odd, even", (2, 4), 16, models=models)
    service.ledger.create(both)
    service.ledger.publish("job", 2)
    service.handle(number=0)
    service.handle(number=1)
    status = service.ledger.status("job")
    assert (status.done, status.leased, status.failed) == (2, 0, 0)
    assert status.error == "w1: it wants model even, this worker has odd"
    folder = JobFolder(service.store, JobKeys("job"))
    assert read_pin(folder, "odd")["name"] == "odd"
    assert [record["model"]["name"] for record in read_records(folder)] == ["odd", "odd"]
    with pytest.raises(NotFoundError):
        read_pin(folder)


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
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), False, True),
        (
            torch.AcceleratorError("CUDA error: not permitted when stream is capturing"),
            False,
            False,
        ),
        (RuntimeError("shapes do not fit"), False, False),
        (ValueError("CUDA error"), False, False),
    ],
)
def test_errors_of_the_device_are_told_apart(error, lost, memory):
    assert is_device_lost(error) is lost
    assert is_out_of_memory(error) is memory
