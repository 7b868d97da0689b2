"""Entering jobs: from a manifest, and from a folder after the ledger was lost."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
from rich.console import Console

from jobs.budget import Budget
from jobs.client.enter import submit
from jobs.client.resume import resume
from jobs.client.watch import watch
from jobs.errors import (
    DamagedError,
    InputError,
    JobConflictError,
    LedgerError,
    NotFoundError,
    StoreError,
)
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import read_plan
from jobs.folder.prepare import prepare
from jobs.folder.records import dump_lines, read_lines
from jobs.ledger.memory.ledger import MemoryLedger
from jobs.ledger.types import BY_BUDGET, JobState, ModelShards
from jobs.manifest.load import load_manifest
from jobs.queue.publish import LEAST_WINDOW
from jobs.storage import LocalStore
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


def enter(manifest, store, ledger, queue=None, address="out", **options):
    queue = Messages() if queue is None else queue
    return submit(manifest, store, ledger, queue, address=address, status=quiet, **options)


def again(job, store, ledger, queue=None, address="out"):
    queue = Messages() if queue is None else queue
    return resume(job, store, ledger, queue, address=address, status=quiet)


def render(store, job, indices):
    """Puts images and their records where a worker does."""
    keys = JobKeys(job)
    records = []
    for index in indices:
        key = keys.image(f"{index:06d}", f"{index:064x}", "jpeg")
        store.put(key, b"x")
        records.append({"index": index, "path": keys.path(key), "bytes": 1})
    store.put(keys.records(0), dump_lines(records))


MODELS = """\
version: 1
name: both
matrix: {model: [a, b]}
prompts: [{prompt: a ring, seeds: {start: 0, count: 10}}, a star]
"""


def test_each_model_has_its_queue_also_after_a_resume(tmp_path, store):
    (tmp_path / "both.yaml").write_text(MODELS)
    both = load_manifest(tmp_path / "both.yaml")
    ledger, queue = MemoryLedger(), Messages()
    job = enter(both, store, ledger, queue).job
    models = (ModelShards("a", 3, 11), ModelShards("b", 3, 11))
    for _ in range(2):
        assert (ledger.status(job).models, ledger.status(job).model) == (models, "a, b")
        sent = [(model, shard.start, shard.stop) for model, shard in queue.sent]
        assert sent == [
            *(("a", 0, 4), ("a", 4, 8), ("a", 8, 11)),
            *(("b", 11, 15), ("b", 15, 19), ("b", 19, 22)),
        ]
        ledger, queue = MemoryLedger(), Messages()
        again(job, store, ledger, queue)
    described = json.loads(store.get(JobKeys(job).job))
    assert described["models"] == [{"name": "a", "images": 11}, {"name": "b", "images": 11}]
    described["models"][0]["images"] = 12
    store.put(JobKeys(job).job, json.dumps(described).encode(), overwrite=True)
    with pytest.raises(DamagedError, match=r"job.json is damaged: the models of both"):
        again(job, store, MemoryLedger())


def test_a_budget_that_is_used_up_is_refused_and_a_larger_one_goes_on(tmp_path, store):
    def load(budget: str):
        return load_manifest(write(tmp_path, f"{TEXT}budget: {budget}\n"))

    ledger = MemoryLedger()
    job = enter(load("{images: 3}"), store, ledger).job
    assert ledger.status(job).budget == Budget(images=3)
    render(store, job, range(3))
    with pytest.raises(
        InputError, match=r"the budget of 3 images is used up: 3 of 40 images are done"
    ):
        enter(load("{images: 3}"), store, ledger)
    ledger.set_state(job, JobState.PAUSED, reason=BY_BUDGET)
    assert watch(ledger, job, Console(quiet=True)).reason == BY_BUDGET  # and no longer
    larger = enter(load("{images: 5, hours: 2}"), store, ledger)
    assert (larger.job, larger.state) == (job, JobState.ACTIVE)
    assert ledger.status(job).budget == Budget(images=5, hours=2.0)
    wiped = MemoryLedger()
    again(job, store, wiped)
    assert wiped.status(job).budget == Budget(images=5, hours=2.0)


def test_a_data_set_that_a_finished_job_is_asked_for_is_not_promised(tmp_path, store):
    text = TEXT.replace("output: {", "output: {dataset: webdataset, ")
    ledger = MemoryLedger()
    job = enter(load_manifest(write(tmp_path, TEXT)), store, ledger).job
    render(store, job, range(40))
    enter(load_manifest(write(tmp_path, TEXT)), store, ledger)
    ledger.set_state(job, JobState.DONE)
    asked = enter(load_manifest(write(tmp_path, text)), store, ledger)
    assert (asked.job, asked.state, asked.lacks_dataset) == (job, JobState.DONE, True)


def test_a_job_goes_to_the_store_the_ledger_and_the_queue(manifest, store):
    ledger, queue = MemoryLedger(), Messages()
    submitted = enter(manifest, store, ledger, queue, priority=50)
    assert (submitted.images, submitted.done, submitted.new) == (40, 0, True)
    status = ledger.status(submitted.job)
    assert (status.total, status.priority, status.quality) == (40, 50, 80)
    assert (status.store, status.model) == ("out", "demo")
    assert status.evaluations == 40 * 5  # PLMS asks once more than it steps
    assert len(list(read_plan(JobFolder(store, JobKeys(submitted.job))))) == 40
    assert [model for model, _ in queue.sent] == ["demo"] * LEAST_WINDOW


def test_a_record_of_no_image_of_the_job_is_named(manifest, store):
    first = enter(manifest, store, MemoryLedger())
    render(store, first.job, [0, 40])
    with pytest.raises(StoreError, match="line 2: index 40 of a job of 40 images"):
        enter(manifest, store, MemoryLedger())


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
    assert read_job_file(JobFolder(store, JobKeys("mine"))).plan == manifest.digest


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("old", "new"), [("version: 1", "version: 1\nmodel: other"), ("80", "70")])
def test_a_refused_job_leaves_the_folder_as_it_was(manifest, store, tmp_path, old, new):
    """Its plan is the same, to the letter; only model or quality differ."""
    enter(manifest, store, MemoryLedger(), job="mine")
    before = contents(store.root)
    other = load_manifest(write(tmp_path, TEXT.replace(old, new)))
    ledger = MemoryLedger()  # it was wiped: the folder alone says whose it is
    with pytest.raises(JobConflictError, match=r"mine holds another job, shapes of model demo"):
        enter(other, store, ledger, job="mine")
    assert contents(store.root) == before
    assert ledger.jobs() == []


def test_of_two_submitters_at_once_with_one_name_the_first_keeps_it(manifest, store, tmp_path):
    """The second has looked before the first wrote."""
    other = load_manifest(write(tmp_path, TEXT.replace("80", "70")))

    class Late(LocalStore):
        looked = False

        def head(self, key):
            found = super().head(key)
            if key == "mine/job.json" and not self.looked:
                self.looked = True
                enter(manifest, store, ledger, job="mine")
            return found

    ledger = MemoryLedger()
    with pytest.raises(JobConflictError, match="holds another job"):
        enter(other, Late(store.root), ledger, job="mine")
    assert read_job_file(JobFolder(store, JobKeys("mine"))).quality == 80
    assert store.get(JobKeys("mine").manifest) == manifest.source


def test_a_job_that_the_ledger_refuses_writes_nothing(manifest, store, tmp_path):
    ledger = MemoryLedger()
    enter(manifest, store, ledger, job="mine")
    elsewhere = LocalStore(tmp_path / "elsewhere")
    other = load_manifest(write(tmp_path, TEXT.replace("red", "blue")))
    with pytest.raises(JobConflictError, match="another plan"):
        enter(other, elsewhere, ledger, job="mine")
    with pytest.raises(JobConflictError, match="in the ledger with its folder in out, not in els"):
        enter(manifest, elsewhere, ledger, job="mine", address="elsewhere")
    assert contents(elsewhere.root) == {}


def test_the_same_place_written_otherwise_is_the_same(manifest, store, tmp_path):
    ledger = MemoryLedger()
    store.root.mkdir()
    (tmp_path / "link").symlink_to(store.root)
    first = enter(manifest, store, ledger, address=str(store.root))
    for address in (f"{store.root}/", f"file://{store.root}", str(tmp_path / "link")):
        again = enter(
            manifest, LocalStore(address.removeprefix("file://")), ledger, address=address
        )
        assert (again.job, again.new) == (first.job, False)
        assert ledger.status(first.job).store == str(store.root)


def test_submitting_again_takes_the_new_settings(manifest, store, tmp_path):
    ledger = MemoryLedger()
    job = enter(manifest, store, ledger, priority=10).job
    text = f"# in a hurry\n{TEXT}"
    hurried = load_manifest(write(tmp_path, text))
    hook = "https://example.com/x"
    enter(hurried, store, ledger, priority=90, webhook=hook, reproducible="fast")
    described = read_job_file(JobFolder(store, JobKeys(job)))
    assert (described.priority, described.webhook, described.reproducible) == (90, hook, "fast")
    assert store.get(JobKeys(job).manifest) == text.encode()
    status = ledger.status(job)
    assert (status.priority, status.webhook) == (90, hook)


@pytest.mark.parametrize("known", [True, False], ids=["in the ledger", "in the folder only"])
def test_submitting_again_without_a_priority_keeps_what_the_job_has(manifest, store, known):
    ledger = MemoryLedger()
    job = enter(manifest, store, ledger, priority=90).job
    if not known:
        ledger.forget(job)
    enter(manifest, store, ledger)
    assert ledger.status(job).priority == 90
    assert read_job_file(JobFolder(store, JobKeys(job))).priority == 90


def test_the_ledgers_priority_is_what_the_job_has(manifest, store):
    """The folder is of a job that was entered without it, such as by `sdbatch run`."""
    ledger = MemoryLedger()
    job = enter(manifest, store, ledger, priority=90).job
    prepare(manifest, JobFolder(store, JobKeys(job)), priority=10)
    enter(manifest, store, ledger)
    assert ledger.status(job).priority == 90


def test_running_in_a_jobs_folder_keeps_its_priority(manifest, store):
    keys = JobKeys("mine")
    prepare(manifest, JobFolder(store, keys), priority=90)
    prepare(manifest, JobFolder(store, keys))
    assert read_job_file(JobFolder(store, keys)).priority == 90


def test_force_replaces_the_job_of_another_quality(manifest, store, tmp_path):
    keys = JobKeys("mine")
    prepare(manifest, JobFolder(store, keys))
    other = load_manifest(write(tmp_path, TEXT.replace("80", "70")))
    prepare(other, JobFolder(store, keys), force=True)
    assert read_job_file(JobFolder(store, keys)).quality == 70


def test_images_deleted_from_the_folder_run_again(manifest, store):
    ledger = MemoryLedger()
    job = enter(manifest, store, ledger).job
    render(store, job, range(40))
    assert enter(manifest, store, ledger).done == 40
    ledger.set_state(job, JobState.DONE)
    (image,) = store.list(JobKeys(job).image("000007", f"{7:064x}", "jpeg"))
    store.delete(image.key)
    queue = Messages()
    submitted = enter(manifest, store, ledger, queue)
    assert (submitted.done, submitted.gone, submitted.new) == (39, 1, False)
    assert ledger.pending(job, 0, 40) == [7]
    assert [shard.start <= 7 < shard.stop for _, shard in queue.sent] == [True]


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

    def test_the_bucket_is_the_truth(self, manifest, store):
        """One image is gone, of another the record; others came without the ledger's knowing."""
        ledger, queue = MemoryLedger(), Messages()
        job = enter(manifest, store, ledger).job
        keys = JobKeys(job)
        render(store, job, range(10))
        again(job, store, ledger)
        store.delete(keys.image("000003", f"{3:064x}", "jpeg"))
        kept = [line for line in read_lines(store, keys.records(0)) if line["index"] != 5]
        store.put(keys.records(0), dump_lines(kept), overwrite=True)
        resumed = again(job, store, ledger, queue)
        assert (resumed.done, resumed.gone, resumed.new) == (8, 2, False)
        assert ledger.pending(job, 0, 12) == [3, 5, 10, 11]
        assert again(job, store, ledger).gone == 0

    @pytest.mark.parametrize("damage", [b"", b"longer than it was"])
    def test_images_of_another_size_than_recorded_run_again(self, manifest, store, damage):
        job = enter(manifest, store, MemoryLedger()).job
        render(store, job, range(3))
        key = JobKeys(job).image("000001", f"{1:064x}", "jpeg")
        store.put(key, damage, overwrite=True)
        ledger = MemoryLedger()
        assert again(job, store, ledger).done == 2
        assert list(ledger.pending(job, 0, 3)) == [1]

    def test_a_done_job_with_images_gone_runs_again(self, manifest, store):
        ledger, queue = MemoryLedger(), Messages()
        job = enter(manifest, store, ledger).job
        render(store, job, range(40))
        again(job, store, ledger)
        assert ledger.set_state(job, JobState.DONE) is JobState.DONE
        assert again(job, store, ledger, queue).gone == 0
        assert ledger.status(job).state is JobState.DONE
        assert queue.sent == []
        for info in list(store.list(JobKeys(job).images_prefix)):
            store.delete(info.key)
        assert again(job, store, ledger, queue).gone == 40
        assert ledger.status(job).state is JobState.ACTIVE
        assert len(queue.sent) == LEAST_WINDOW

    def test_what_workers_finish_meanwhile_counts(self, manifest, store):
        ledger = MemoryLedger()
        job = enter(manifest, store, ledger).job
        keys = JobKeys(job)

        class Looked(LocalStore):
            """A worker stores and settles an image just after the list was read."""

            def list(self, prefix):
                found = list(super().list(prefix))
                if prefix == keys.images_prefix and not ledger.status(job).done:
                    render(store, job, [0])
                    claim = ledger.claim(job, 0, "w1")
                    assert ledger.settle(claim.lease, [0])
                return iter(found)

        resumed = again(job, Looked(store.root), ledger)
        assert (resumed.done, resumed.gone) == (1, 0)

    def test_it_reads_lists_and_records_and_asks_for_no_single_image(self, manifest, store):
        ledger = MemoryLedger()
        job = enter(manifest, store, ledger).job
        render(store, job, range(40))
        asked = []

        class Counting(LocalStore):
            def head(self, key):
                asked.append(key)
                return super().head(key)

            def get(self, key, **limit):
                asked.append(key)
                return super().get(key, **limit)

        again(job, Counting(store.root), ledger)
        assert asked
        assert not [key for key in asked if "/images/" in key]

    def test_a_job_that_is_elsewhere(self, manifest, store, tmp_path):
        ledger = MemoryLedger()
        job = enter(manifest, store, ledger).job
        with pytest.raises(JobConflictError, match=f"in out, not in other.*sdbatch forget {job}"):
            again(job, store, ledger, address="other")
        ledger.forget(job)
        assert again(job, store, ledger, address="other").new is True

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
        prepare(manifest, JobFolder(store, keys))
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
