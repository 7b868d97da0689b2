"""Entering jobs: from a manifest, and from a folder after the ledger was lost."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest

from jobs.errors import InputError, JobConflictError, LedgerError, NotFoundError, StoreError
from jobs.job_file import read_job_file
from jobs.ledger.base import JobState
from jobs.ledger.memory import MemoryLedger
from jobs.manifest import load_manifest
from jobs.plan import read_plan
from jobs.prepare import prepare
from jobs.publish import LEAST_WINDOW
from jobs.records import dump_lines
from jobs.resume import resume
from jobs.storage import JobKeys, LocalStore
from jobs.submit import submit
from tests.jobs.manifests import write

TEXT = """\
version: 1
name: shapes
defaults: {steps: 4}
prompts:
  - prompt: a red circle
    seeds: {start: 0, count: 40}
output: {format: jpeg, quality: 80}
"""


class Messages:
    """A queue that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent = []

    def send(self, model, shards):
        self.sent += [(model, shard) for shard in shards]

    def length(self, model):
        return len(self.sent)


class Away(MemoryLedger):
    def ping(self):
        raise LedgerError("away")


@pytest.fixture
def manifest(tmp_path):
    return load_manifest(write(tmp_path, TEXT))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "out")


def quiet(text):
    return contextlib.nullcontext()


def enter(manifest, store, ledger, queue=None, **options):
    queue = Messages() if queue is None else queue
    return submit(manifest, store, ledger, queue, address="out", status=quiet, **options)


def again(job, store, ledger, queue=None):
    queue = Messages() if queue is None else queue
    return resume(job, store, ledger, queue, address="out", status=quiet)


def render(store, job, indices):
    """Puts images and their records where a worker does."""
    keys = JobKeys(job)
    records = []
    for index in indices:
        key = keys.image(f"{index:06d}", f"{index:064x}", "jpeg")
        store.put(key, b"x")
        records.append({"index": index, "path": keys.path(key)})
    store.put(keys.records(0), dump_lines(records))


def test_a_job_goes_to_the_store_the_ledger_and_the_queue(manifest, store):
    ledger, queue = MemoryLedger(), Messages()
    submitted = enter(manifest, store, ledger, queue, priority=50)
    assert (submitted.images, submitted.done, submitted.new) == (40, 0, True)
    status = ledger.status(submitted.job)
    assert (status.total, status.priority, status.quality) == (40, 50, 80)
    assert (status.store, status.model) == ("out", "demo")
    assert status.evaluations == 40 * 5  # PLMS asks once more than it steps
    assert len(list(read_plan(store, JobKeys(submitted.job)))) == 40
    assert [model for model, _ in queue.sent] == ["demo"] * LEAST_WINDOW


def test_submitting_again_continues(manifest, store):
    ledger = MemoryLedger()
    first = enter(manifest, store, ledger)
    render(store, first.job, [0, 1])
    second = enter(manifest, store, ledger)
    assert (second.job, second.new, second.done) == (first.job, False, 2)
    assert len(ledger.jobs()) == 1


def test_two_submitters_at_once_make_one_job(manifest, store):
    ledger = MemoryLedger()
    start = threading.Barrier(4)
    entered = []

    def race():
        start.wait()
        entered.append(enter(manifest, store, ledger))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(submitted.new for submitted in entered) == [False] * 3 + [True]
    assert ledger.status(entered[0].job).total == 40


def test_another_manifest_under_the_same_name_is_refused(manifest, store, tmp_path):
    ledger = MemoryLedger()
    enter(manifest, store, ledger, job="mine")
    other = load_manifest(write(tmp_path, TEXT.replace("red", "blue")))
    with pytest.raises(JobConflictError):
        enter(other, store, ledger, job="mine")
    assert read_job_file(store, JobKeys("mine")).plan == manifest.digest


@pytest.mark.parametrize("job", ["a/b", "..", ""])
def test_job_names_that_are_no_folder(manifest, store, job):
    with pytest.raises(InputError, match="is not a folder name"):
        enter(manifest, store, MemoryLedger(), job=job)
    assert not store.root.exists()


def test_nothing_is_written_while_the_ledger_is_away(manifest, store):
    with pytest.raises(LedgerError):
        enter(manifest, store, Away())
    assert not store.root.exists()


class TestResume:
    def test_a_lost_ledger_is_made_again_from_the_folder(self, manifest, store):
        before = MemoryLedger()
        job = enter(manifest, store, before, priority=50, webhook="https://example.com/x").job
        render(store, job, [0, 1, 7])
        after, queue = MemoryLedger(), Messages()
        resumed = again(job, store, after, queue)
        assert (resumed.job, resumed.done, resumed.new) == (job, 3, True)
        assert after.pending(job, 0, 10) == [2, 3, 4, 5, 6, 8, 9]
        old, new = before.status(job), after.status(job)
        for same in ("name", "plan", "store", "model", "priority", "webhook", "quality", "total"):
            assert getattr(new, same) == getattr(old, same)
        assert (new.shards, new.evaluations) == (old.shards, old.evaluations)
        assert queue.sent

    def test_a_job_that_is_known_goes_on(self, manifest, store):
        ledger = MemoryLedger()
        job = enter(manifest, store, ledger).job
        ledger.set_state(job, JobState.CANCELLED)
        assert again(job, store, ledger).new is False
        assert ledger.status(job).state is JobState.ACTIVE

    def test_by_the_beginning_of_its_name(self, manifest, store):
        job = enter(manifest, store, MemoryLedger()).job
        assert again("sha", store, MemoryLedger()).job == job
        enter(manifest, store, MemoryLedger(), job="shapes-b")
        with pytest.raises(InputError, match="any of 2 jobs: shapes-"):
            again("sha", store, MemoryLedger())

    def test_a_whole_name_may_be_the_beginning_of_another(self, manifest, store):
        for job in ("a", "ab"):
            enter(manifest, store, MemoryLedger(), job=job)
        assert again("a", store, MemoryLedger()).job == "a"

    @pytest.mark.parametrize("job", ["a/b", "..", "../shapes"])
    def test_names_that_are_no_folder(self, store, job):
        with pytest.raises(InputError, match="is not a folder name"):
            again(job, store, MemoryLedger())

    def test_no_such_job(self, store):
        with pytest.raises(NotFoundError, match="nope is no job, and no job there begins so"):
            again("nope", store, MemoryLedger())

    def test_a_folder_that_was_left_half_submitted(self, manifest, store):
        keys = JobKeys("half")
        prepare(manifest, store, keys)
        store.delete(keys.job)
        with pytest.raises(NotFoundError):
            again("half", store, MemoryLedger())

    @pytest.mark.parametrize("data", [b"", b"[]", b'{"name": "a"}'])
    def test_a_damaged_description(self, manifest, store, data):
        job = enter(manifest, store, MemoryLedger()).job
        store.put(JobKeys(job).job, data, overwrite=True)
        with pytest.raises(StoreError, match=r"job\.json is damaged"):
            again(job, store, MemoryLedger())

    def test_a_priority_that_is_none(self, manifest, store):
        job = enter(manifest, store, MemoryLedger()).job
        key = JobKeys(job).job
        values = json.loads(store.get(key)) | {"priority": 1000}
        store.put(key, json.dumps(values).encode(), overwrite=True)
        with pytest.raises(StoreError, match="priority"):
            again(job, store, MemoryLedger())
