"""Plans: what a job costs, and its tasks in the store."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import JobConflictError, NotFoundError, StoreError
from jobs.plan import read_plan, summarize, write_plan
from jobs.storage import JobKeys, LocalStore
from jobs.task import Task
from sd_core.samplers import evaluations
from sd_core.spec import SAMPLERS, Sampling
from tests.jobs.manifests import load, picture

KEYS = JobKeys("job-1")
ROW = Task(0, "000000-s0", "a ring", "", Sampling(seed=0, width=128, height=128))


def row_of(count):
    for index in range(count):
        yield replace(ROW, index=index, sampling=replace(ROW.sampling, seed=index))


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def parts(store):
    return {info.key: store.get(info.key) for info in store.list(KEYS.plan_prefix)}


class TestSummary:
    def test_counts(self, tmp_path):
        picture(tmp_path / "a.png")
        body = """
defaults: {steps: 10}
prompts:
  - {prompt: a, seeds: [0, 1]}
  - {prompt: b, guidance: 1, sampler: ddim}
  - {prompt: c, init_image: a.png, mask: a.png, strength: 0.5, sampler: ddim, width: 256}
  - {prompt: d, init_image: a.png, strength: 0}
"""
        summary = summarize(load(tmp_path, body).tasks())
        assert summary.images == 5
        assert summary.evaluations == 11 + 11 + 10 + 5 + 0  # PLMS takes one more
        assert summary.rows == 22 + 22 + 10 + 10 + 0
        assert summary.shapes == {(128, 128): 4, (256, 128): 1}
        assert summary.samplers == {"plms": 3, "ddim": 2}
        assert summary.inputs == 1
        assert (summary.first.prompt, summary.last.prompt) == ("a", "d")

    def test_json(self):
        values = json.loads(json.dumps(summarize(row_of(2)).to_json()))
        assert values["shapes"] == [{"width": 128, "height": 128, "images": 2}]
        assert values["samplers"] == {"plms": 2}
        assert values["first"] == ROW.to_json()

    def test_nothing(self):
        values = summarize(()).to_json()
        assert values["images"] == values["output_bytes"] == 0
        assert values["first"] is None

    @pytest.mark.parametrize(("format", "low", "high"), [("png", 1, 3), ("jpeg", 0.2, 0.8)])
    def test_output_bytes_are_of_the_right_size(self, format, low, high):
        task = replace(ROW, format=format, sampling=Sampling())
        assert low < summarize([task]).output_bytes / 512**2 < high

    @given(st.lists(st.tuples(st.sampled_from(SAMPLERS), st.integers(1, 60)), max_size=20))
    def test_evaluations_add_up(self, kinds):
        tasks = [replace(ROW, sampling=Sampling(sampler=s, steps=n)) for s, n in kinds]
        assert summarize(tasks).evaluations == sum(evaluations(s, n) for s, n in kinds)

    def test_many_kinds_are_added_up_in_between(self, monkeypatch):
        """A .csv may have its own guidance in every row; memory stays the same."""
        tasks = [
            replace(ROW, sampling=replace(ROW.sampling, guidance=index / 7)) for index in range(50)
        ]
        expected = summarize(tasks).to_json()
        monkeypatch.setattr("jobs.plan._MAX_KINDS", 7)
        assert summarize(tasks).to_json() == expected


class TestParts:
    def test_round_trip(self, store):
        assert write_plan(store, KEYS, row_of(25), part_size=10) == 3
        assert list(parts(store)) == [KEYS.plan_part(n) for n in range(3)]
        assert list(read_plan(store, KEYS)) == list(row_of(25))

    def test_one_task_a_line_with_every_parameter(self, store):
        write_plan(store, KEYS, row_of(3))
        lines = gzip.decompress(store.get(KEYS.plan_part(0))).splitlines()
        assert [json.loads(line) for line in lines] == [task.to_json() for task in row_of(3)]

    def test_same_tasks_same_bytes(self, store, tmp_path):
        other = LocalStore(tmp_path / "other")
        write_plan(store, KEYS, row_of(25), part_size=10)
        write_plan(other, KEYS, row_of(25), part_size=10)
        assert parts(store) == parts(other)

    def test_writing_again_is_allowed(self, store):
        write_plan(store, KEYS, row_of(25), part_size=10)
        write_plan(store, KEYS, row_of(25), part_size=10)
        assert list(read_plan(store, KEYS)) == list(row_of(25))

    def test_writing_goes_on_after_a_crash(self, store):
        write_plan(store, KEYS, row_of(10), part_size=10)
        write_plan(store, KEYS, row_of(25), part_size=10)
        assert list(read_plan(store, KEYS)) == list(row_of(25))

    def test_same_lines_compressed_otherwise_are_the_same_plan(self, store):
        write_plan(store, KEYS, row_of(5))
        lines = gzip.decompress(store.get(KEYS.plan_part(0)))
        store.put(KEYS.plan_part(0), gzip.compress(lines, 1), overwrite=True)
        write_plan(store, KEYS, row_of(5))

    @pytest.mark.parametrize(
        "other", [[ROW, replace(ROW, index=1, prompt="a star")], list(row_of(5)), []]
    )
    def test_another_jobs_plan_is_left_alone(self, store, other):
        write_plan(store, KEYS, row_of(25), part_size=10)
        before = parts(store)
        with pytest.raises(JobConflictError, match="job-1 holds another job"):
            write_plan(store, KEYS, other, part_size=10)
        assert parts(store) == before

    def test_a_shorter_plan_is_another(self, store):
        write_plan(store, KEYS, row_of(25), part_size=10)
        with pytest.raises(JobConflictError):
            write_plan(store, KEYS, row_of(20), part_size=10)

    def test_no_plan(self, store):
        with pytest.raises(NotFoundError, match="job-1 has no plan"):
            list(read_plan(store, KEYS))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"not gzip",
            gzip.compress(b"{}\n", mtime=0),
            gzip.compress(b"[1]\n", mtime=0),
            gzip.compress(b"{\n", mtime=0),
            gzip.compress(b"x" * 1000, mtime=0)[:-10],
            gzip.compress(json.dumps(ROW.to_json() | {"steps": 0}).encode(), mtime=0),
        ],
    )
    def test_damaged_plan(self, store, data):
        store.put(KEYS.plan_part(0), data)
        with pytest.raises(StoreError, match=r"part-00000.jsonl.gz is damaged"):
            list(read_plan(store, KEYS))
