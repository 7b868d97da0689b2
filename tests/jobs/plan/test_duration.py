"""Time of a job, from what was measured: by rows, sizes, workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.plan.cost import PlanSummary
from jobs.plan.duration import seconds_of
from sd_core.spec import Sampling
from tests.jobs.plan.test_calibration import size, speed
from tests.jobs.plan.test_cost import ROW, cost_of

# 16 rows of 512x512 in 0.5 s, two alone in 0.2 s; a decode in 0.1 s.
SPEED = speed(size(512))


def job(images: int, **settings) -> PlanSummary:
    values = {"sampler": "ddim", "steps": 10, "guidance": 5.0, "width": 512, "height": 512}
    sampling = Sampling(**(values | settings))
    return cost_of(replace(ROW, index=n, sampling=sampling) for n in range(images))


def seconds(summary: PlanSummary, workers: int = 1, shards: int = 1) -> float:
    return seconds_of(summary, SPEED, workers=workers, shards=shards)


def test_full_batches_take_what_they_were_measured_at():
    assert seconds(job(80)) == pytest.approx(10 * 10 * 0.5 + 80 * 0.1)
    assert seconds(job(80, guidance=1.0)) == pytest.approx(10 * 5 * 0.5 + 80 * 0.1)
    assert seconds(job(80, pag_scale=3.0)) == pytest.approx(10 * 15 * 0.5 + 80 * 0.1)


def test_a_job_that_fills_no_batch_has_dearer_rows():
    assert seconds(job(1)) == pytest.approx(10 * 0.2 + 0.1)
    half = seconds(job(4))
    assert 10 * 4 * 0.5 / 8 + 0.4 < half < 10 * 4 * 0.2 + 0.4


def test_other_sizes_go_by_area():
    assert seconds(job(80, width=1024)) == pytest.approx(2 * seconds(job(80)))
    both = speed(size(512), size(1024, evaluation_s=1.5))
    found = seconds_of(job(80, width=1024), both, workers=1, shards=1)
    assert found == pytest.approx(10 * 10 * 1.5 + 80 * 0.1)


def test_workers_take_shards_one_at_a_time():
    whole = seconds(job(640))
    for workers, shards, part in ((4, 64, 16 / 64), (3, 64, 22 / 64), (100, 64, 1 / 64)):
        assert seconds(job(640), workers, shards) == pytest.approx(whole * part)


def test_nothing_takes_no_time():
    assert seconds(PlanSummary()) == 0
    assert seconds(job(3, sampler="ddim", steps=1), workers=2, shards=0) == 0
