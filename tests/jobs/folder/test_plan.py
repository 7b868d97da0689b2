"""Plans: the tasks of a job in the store."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from hashlib import sha256

import pytest

from jobs.errors import DamagedError, InputError, JobConflictError, NotFoundError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import PlanReader, read_plan, write_plan
from jobs.folder.prepare import prepare
from jobs.plan.part import PART_SIZE, dump, pack
from jobs.storage import LocalStore
from jobs.task import Task
from sd_core.spec import Sampling
from tests.jobs.manifests import load

KEYS = JobKeys("job-1")
ROW = Task(0, "000000-s0", "a ring", "", Sampling(seed=0, width=128, height=128))
LINE = f"{json.dumps(ROW.to_json())}\n".encode()


def row_of(count):
    for index in range(count):
        yield replace(ROW, index=index, sampling=replace(ROW.sampling, seed=index))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def parts_of(tasks, size=PART_SIZE):
    """Parts of a plan as they are stored, of `size` tasks each."""
    tasks = list(tasks)
    chunks = (tasks[start : start + size] for start in range(0, len(tasks), size))
    return [pack(dump(chunk), number) for number, chunk in enumerate(chunks)]


def parts(store):
    return {info.key: store.get(info.key) for info in store.list(f"{KEYS.prefix}plan/")}


class TestParts:
    def test_round_trip(self, store):
        digests = write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        assert {KEYS.plan_part(n): digest for n, digest in enumerate(digests)} == {
            key: sha256(data).hexdigest() for key, data in parts(store).items()
        }
        assert list(read_plan(JobFolder(store, KEYS))) == list(row_of(25))

    def test_one_task_a_line_with_every_parameter(self, store):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(3)))
        lines = gzip.decompress(store.get(KEYS.plan_part(0))).splitlines()
        assert [json.loads(line) for line in lines] == [task.to_json() for task in row_of(3)]

    def test_same_tasks_same_bytes(self, store, tmp_path):
        other = LocalStore(tmp_path / "other")
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        write_plan(JobFolder(other, KEYS), parts_of(row_of(25), 10))
        assert parts(store) == parts(other)

    def test_writing_again_is_allowed(self, store):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        assert list(read_plan(JobFolder(store, KEYS))) == list(row_of(25))

    def test_writing_goes_on_after_a_crash(self, store):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(10), 10))
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        assert list(read_plan(JobFolder(store, KEYS))) == list(row_of(25))

    def test_same_lines_compressed_otherwise_are_the_same_plan(self, store):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(5)))
        lines = gzip.decompress(store.get(KEYS.plan_part(0)))
        store.put(KEYS.plan_part(0), gzip.compress(lines, 1), overwrite=True)
        (digest,) = write_plan(JobFolder(store, KEYS), parts_of(row_of(5)))
        assert digest == sha256(store.get(KEYS.plan_part(0))).hexdigest()

    @pytest.mark.parametrize("damage", [b"", b"not gzip", gzip.compress(b"{}\n", mtime=0)[:-3]])
    def test_a_damaged_part_is_no_other_jobs(self, store, damage):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(5)))
        store.put(KEYS.plan_part(0), damage, overwrite=True)
        with pytest.raises(DamagedError, match=r"part-00000.jsonl.gz is damaged: .*; delete it"):
            write_plan(JobFolder(store, KEYS), parts_of(row_of(5)))
        assert store.get(KEYS.plan_part(0)) == damage

    @pytest.mark.parametrize("damage", [b"", b"not gzip", gzip.compress(b"{}\n", mtime=0)])
    def test_in_a_folder_of_the_same_job_a_damaged_part_is_written_anew(self, store, damage):
        digests = write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        before = parts(store)
        store.put(KEYS.plan_part(1), damage, overwrite=True)
        assert write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10), replace=True) == digests
        assert parts(store) == before

    def test_prompts_that_nobody_would_read_back_are_not_written(self, store, monkeypatch):
        monkeypatch.setattr("jobs.plan.part.MAX_PART_TEXT_BYTES", 1000)
        with pytest.raises(InputError, match=r"from image 0 on, are too long together"):
            write_plan(JobFolder(store, KEYS), parts_of(row_of(25)))
        assert parts(store) == {}

    @pytest.mark.parametrize(
        "other", [[ROW, replace(ROW, index=1, prompt="a star")], list(row_of(5)), []]
    )
    def test_another_jobs_plan_is_left_alone(self, store, other):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        before = parts(store)
        with pytest.raises(JobConflictError, match="job-1 holds another job"):
            write_plan(JobFolder(store, KEYS), parts_of(other, 10))
        assert parts(store) == before

    def test_a_shorter_plan_is_another(self, store):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        with pytest.raises(JobConflictError):
            write_plan(JobFolder(store, KEYS), parts_of(row_of(20), 10))

    def test_no_plan(self, store):
        with pytest.raises(NotFoundError, match="job-1 has no plan"):
            list(read_plan(JobFolder(store, KEYS)))

    @pytest.mark.parametrize(
        ("data", "flaw"),
        [
            (b"", "it is empty"),
            (b"not gzip", "Not a gzipped file"),
            (gzip.compress(b"{}\n", mtime=0), "image 0: index: Field required"),
            (gzip.compress(LINE, mtime=0)[:-10], "ended before"),
            (gzip.compress(LINE, mtime=0)[:-8] + bytes(8), "CRC"),
            (gzip.compress(LINE * 2, mtime=0), "image 1: its index is that of another place"),
            (gzip.compress(bytes(2**24), mtime=0), "line 1 is longer than"),
            (gzip.compress(b"\n" * 10_001, mtime=0), "image 0: "),
        ],
    )
    def test_damaged_plan(self, store, data, flaw):
        store.put(KEYS.plan_part(0), data)
        for read in (read_plan, lambda job: PlanReader(job).tasks([0, 1])):
            with pytest.raises(DamagedError, match=r"part-00000.jsonl.gz is damaged: ") as caught:
                list(read(JobFolder(store, KEYS)))
            assert flaw in str(caught.value) or "more than 10,000 lines" in str(caught.value)

    def test_single_tasks(self, store):
        write_plan(JobFolder(store, KEYS), parts_of(row_of(25), 10))
        reader = PlanReader(JobFolder(store, KEYS), part_size=10)
        rows = list(row_of(25))
        for indices in ([0], [24], [3, 4, 9, 10, 19, 20], range(25), []):
            assert list(reader.tasks(indices)) == [rows[index] for index in indices]
        for beyond in (25, 29, 30, 10**9):
            with pytest.raises(NotFoundError):
                list(reader.tasks([1, beyond]))


class TestDigests:
    """A job's `job.json` says what its plan is."""

    @pytest.fixture
    def job(self, tmp_path, store):
        manifest = load(tmp_path, "prompts: [{prompt: a ring, seeds: [0, 1, 2]}]")
        prepare(manifest, JobFolder(store, KEYS))
        return manifest

    def change(self, store, prompt):
        """Valid lines, but others than were submitted."""
        lines = gzip.decompress(store.get(KEYS.plan_part(0)))
        data = gzip.compress(lines.replace(b"a ring", prompt), mtime=0)
        store.put(KEYS.plan_part(0), data, overwrite=True)

    def test_another_plan_under_its_name_is_not_rendered(self, job, store):
        self.change(store, b"a star")
        for read in (read_plan, lambda *job: PlanReader(*job).tasks([0])):
            with pytest.raises(DamagedError, match=r"gz is damaged: its sha256 is .*submit or run"):
                list(read(JobFolder(store, KEYS)))

    def test_a_bit_that_flips_on_the_way_is_read_again(self, job, store, monkeypatch):
        whole, get = store.get(KEYS.plan_part(0)), store.get
        flipped = [whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]]

        def flipping(key, **limit):
            return flipped.pop() if "/plan/" in key and flipped else get(key, **limit)

        monkeypatch.setattr(store, "get", flipping)
        assert [task.prompt for task in read_plan(JobFolder(store, KEYS))] == ["a ring"] * 3
        assert flipped == []

    def test_preparing_the_job_again_mends_it(self, job, store):
        self.change(store, b"a star")
        prepare(job, JobFolder(store, KEYS))
        assert [task.prompt for task in read_plan(JobFolder(store, KEYS))] == ["a ring"] * 3

    def test_a_job_of_before_runs_without_them(self, job, store):
        values = json.loads(store.get(KEYS.job))
        assert values.pop("parts") == [sha256(store.get(KEYS.plan_part(0))).hexdigest()]
        store.put(KEYS.job, json.dumps(values).encode(), overwrite=True)
        assert len(list(read_plan(JobFolder(store, KEYS)))) == 3
        assert len(list(PlanReader(JobFolder(store, KEYS)).tasks([0, 2]))) == 2

    def test_a_plan_that_is_shorter_than_its_job(self, job, store):
        values = json.loads(store.get(KEYS.job)) | {"parts": None, "images": 4}
        store.put(KEYS.job, json.dumps(values).encode(), overwrite=True)
        with pytest.raises(DamagedError, match="3 of 4 images"):
            list(read_plan(JobFolder(store, KEYS)))
