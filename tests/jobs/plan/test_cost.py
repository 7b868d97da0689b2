"""The cost of a job."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan.cost import CostFold, PlanSummary, rows_of
from jobs.task import Task
from sd_core.sampler_table import SAMPLERS
from sd_core.sampling.samplers import evaluations
from sd_core.spec import Sampling
from tests.jobs.manifests import load, picture

ROW = Task(0, "000000-s0", "a ring", "", Sampling(seed=0, width=128, height=128))


def row_of(count):
    for index in range(count):
        yield replace(ROW, index=index, sampling=replace(ROW.sampling, seed=index))


def cost_of(tasks) -> PlanSummary:
    fold = CostFold()
    for task in tasks:
        fold.add(task)
    return fold.summary()


def test_counts(tmp_path):
    picture(tmp_path / "a.png")
    body = """
defaults: {steps: 10}
prompts:
  - {prompt: a, seeds: [0, 1]}
  - {prompt: b, guidance: 1, sampler: ddim}
  - {prompt: c, init_image: a.png, mask: a.png, strength: 0.5, sampler: ddim, width: 256}
  - {prompt: d, init_image: a.png, strength: 0}
"""
    summary = cost_of(load(tmp_path, body).tasks())
    assert summary.images == 5
    assert summary.evaluations == 11 + 11 + 10 + 5 + 0  # PLMS takes one more
    assert summary.rows == 22 + 22 + 10 + 10 + 0
    assert summary.shapes == {(128, 128): 4, (256, 128): 1}
    assert summary.samplers == {"plms": 3, "ddim": 2}
    assert summary.inputs == 1
    assert (summary.first.prompt, summary.last.prompt) == ("a", "d")


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, 20),
        ({"pag_scale": 3.0}, 30),
        ({"pag_scale": 3.0, "guidance": 1.0}, 20),
        ({"pag_scale": 3.0, "guidance_to": 0.5}, 20),
        ({"pag_scale": 3.0, "guidance": 1.0, "guidance_from": 0.8}, 12),
        ({"guidance": 1.0, "guidance_to": 0.5}, 10),
    ],
    ids=str,
)
def test_rows_are_by_kinds_of_guidance(settings, rows):
    sampling = replace(ROW.sampling, sampler="ddim", steps=10, guidance=5.0)
    task = replace(ROW, sampling=replace(sampling, **settings))
    assert rows_of(task) == cost_of([task]).rows == rows


def test_json():
    values = json.loads(json.dumps(cost_of(row_of(2)).to_json()))
    assert values["shapes"] == [{"width": 128, "height": 128, "images": 2}]
    assert values["samplers"] == {"plms": 2}
    assert values["first"] == ROW.to_json()


def test_nothing():
    values = cost_of(()).to_json()
    assert values["images"] == values["output_bytes"] == 0
    assert values["first"] is None


@pytest.mark.parametrize(("format", "low", "high"), [("png", 1, 3), ("jpeg", 0.2, 0.8)])
def test_output_bytes_are_of_the_right_size(format, low, high):
    task = replace(ROW, format=format, sampling=Sampling())
    assert low < cost_of([task]).output_bytes / 512**2 < high


@given(st.lists(st.tuples(st.sampled_from(SAMPLERS), st.integers(1, 50)), max_size=20))
def test_evaluations_add_up(kinds):
    tasks = [replace(ROW, sampling=Sampling(sampler=s, steps=n)) for s, n in kinds]
    assert cost_of(tasks).evaluations == sum(evaluations(s, n) for s, n in kinds)


def test_many_kinds_are_added_up_in_between(monkeypatch):
    """A .csv may have its own guidance in every row; memory stays the same."""
    tasks = [
        replace(ROW, sampling=replace(ROW.sampling, guidance=index / 7)) for index in range(50)
    ]
    expected = cost_of(tasks).to_json()
    monkeypatch.setattr("jobs.plan.cost._MAX_KINDS", 7)
    assert cost_of(tasks).to_json() == expected
