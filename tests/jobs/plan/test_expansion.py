"""One pass over a job's tasks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from jobs.errors import InputError
from jobs.plan.expansion import Expansion
from jobs.plan.part import dump, unpacked
from jobs.plan.shards import ShardTable
from jobs.task import Task
from sd_core.spec import Sampling

HEAD = {"name": "job", "model": "demo", "quality": 95}
ROW = Task(0, "000000-s0", "a ring", "", Sampling(seed=0, width=128, height=128))


def row_of(count):
    return [
        replace(ROW, index=index, sampling=replace(ROW.sampling, seed=index))
        for index in range(count)
    ]


def test_everything_is_known_after_one_pass():
    rows = row_of(25)
    once = iter(rows)
    expansion = Expansion(once, 25, HEAD, part_size=10)
    assert next(once, None) is None
    assert expansion.cost.images == 25
    assert expansion.shards.ends == ShardTable.of(rows, 25).ends
    assert list(expansion.tasks()) == rows
    parts = list(expansion.parts())
    assert [len(list(unpacked(part, 10))) for part in parts] == [10, 10, 5]
    assert b"".join(line for part in parts for line in unpacked(part, 10)) == dump(rows)


def test_the_digest_is_of_head_names_and_pictures():
    text = json.dumps(HEAD, sort_keys=True)
    text += "".join(f"\n{task.name}\n{task.canonical_json()}" for task in row_of(3))
    assert Expansion(row_of(3), 3, HEAD).digest == hashlib.sha256(text.encode()).hexdigest()


def test_two_readers_may_be_at_different_places():
    expansion = Expansion(row_of(40), 40, HEAD, part_size=10)
    ahead = expansion.tasks()
    for _ in range(25):
        next(ahead)
    assert [task.index for task in expansion.tasks()] == list(range(40))
    assert [task.index for task in ahead] == list(range(25, 40))


def test_an_estimate_keeps_no_parts():
    expansion = Expansion(row_of(25), 25, HEAD, keep_parts=False)
    assert expansion.digest == Expansion(row_of(25), 25, HEAD).digest
    assert list(expansion.parts()) == []


def test_many_parts_go_to_a_file(monkeypatch):
    monkeypatch.setattr("jobs.plan.expansion.IN_MEMORY_BYTES", 100)
    expansion = Expansion(row_of(40), 40, HEAD, part_size=10)
    assert list(expansion.tasks()) == row_of(40)


def test_a_temporary_folder_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("jobs.plan.expansion.IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"no such file or directory; TMPDIR names the folder"):
        Expansion(row_of(40), 40, HEAD, part_size=10)


def test_prompts_that_are_too_long_together(monkeypatch):
    monkeypatch.setattr("jobs.plan.part.MAX_PART_TEXT_BYTES", 1000)
    with pytest.raises(InputError, match="from image 0 on, are too long together"):
        Expansion(row_of(25), 25, HEAD)
