"""Speed by the records of earlier jobs."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.plan.cost import CostFold, PlanSummary
from jobs.plan.observed import (
    EMPTY_SHARE,
    ERROR_OF_ONE_JOB,
    LEAST_ERROR,
    MOST_KINDS,
    ObservedSpeed,
    SpeedFold,
    observed,
    seconds_by,
)
from tests.worker.samples import a_task

RECORD = {
    "model": {"name": "sd", "digest": "d" * 64},
    "device": "cuda",
    "dtype": "float16",
    "execution": "fused",
    "width": 512,
    "height": 512,
    "batch_rows": 16,
    "evaluations": 50,
    "timings_s": {"render": 5.0},
}


def a_speed(evaluation_s: float = 0.1, **changes: Any) -> ObservedSpeed:
    named = {name: RECORD[name] for name in ("device", "dtype", "execution", "width", "height")}
    values = {**named, "model": "sd", "rows": 16, "images": 10, "evaluation_s": evaluation_s}
    return ObservedSpeed(**{**values, **changes})


def cost(images: int, **changes: Any) -> PlanSummary:
    fold = CostFold()
    for index in range(images):
        wanted = {"width": 512, "height": 512, "sampler": "ddim", "steps": 50, **changes}
        fold.add(a_task(index, **wanted))
    return fold.summary()


def speeds_of(*records: dict[str, Any]) -> list[ObservedSpeed]:
    fold = SpeedFold()
    for record in records:
        fold.add(record)
    return fold.speeds()


def test_the_median_of_a_jobs_images():
    times = (4.0, 5.0, 60.0)
    (speed,) = speeds_of(*(RECORD | {"timings_s": {"render": seconds}} for seconds in times))
    assert (speed.images, speed.evaluation_s, speed.rows) == (3, 0.1, 16)


def test_sizes_and_devices_are_told_apart():
    found = speeds_of(RECORD, RECORD | {"width": 768}, RECORD | {"device": "cpu"})
    assert [(s.device, s.width) for s in found] == [("cuda", 512), ("cuda", 768), ("cpu", 512)]


@pytest.mark.parametrize(
    "change",
    [
        {"timings_s": None},
        {"timings_s": {"render": "5"}},
        {"timings_s": {"render": -5.0}},
        {"timings_s": {"render": float("nan")}},
        {"timings_s": {}},
        {"evaluations": 0},
        {"evaluations": None},
        {"batch_rows": None},
        {"batch_rows": 10**9},
        {"width": 1},
        {"device": 5},
        {"device": "x" * 2000},
        {"model": "sd"},
        {"model": {}},
    ],
)
def test_what_says_nothing_of_speed(change: dict[str, Any]):
    assert speeds_of(RECORD | change) == []
    assert speeds_of({name: RECORD[name] for name in RECORD if name not in change}) == []


def test_kinds_are_bounded():
    found = speeds_of(*(RECORD | {"width": 64 + 8 * number} for number in range(MOST_KINDS + 9)))
    assert len(found) == MOST_KINDS


def test_the_device_that_made_most_counts():
    few, many = a_speed(9.0, device="cpu", images=3), a_speed(0.1, images=100)
    found = observed("sd", [[few], [many], [a_speed(model="other")]])
    assert found is not None
    assert (found.device, found.jobs) == ("cuda", 1)
    assert found.sizes == {(512, 512): (16, 0.1)}
    assert observed("none", [[few]]) is None
    assert observed("sd", []) is None


def test_the_error_is_what_jobs_differ_by():
    assert observed("sd", [[a_speed()]]).error == ERROR_OF_ONE_JOB
    assert observed("sd", [[a_speed()], [a_speed()]]).error == LEAST_ERROR
    apart = observed("sd", [[a_speed(0.1)], [a_speed(0.2)], [a_speed(0.3)]])
    assert apart.error == pytest.approx(0.25)
    assert apart.sizes[512, 512] == (16, 0.2)


def test_seconds_of_full_batches():
    speed = observed("sd", [[a_speed(0.1)]])
    assert seconds_by(cost(64), speed, workers=1, shards=16) == pytest.approx(
        64 * 2 / 16 * 50 * 0.1
    )
    assert seconds_by(cost(64), speed, workers=4, shards=16) == pytest.approx(2 * 50 * 0.1)


def test_one_image_takes_all_of_its_steps_and_few_rows_some_less_time():
    speed = observed("sd", [[a_speed(0.1)]])
    for images, workers in ((1, 1), (3, 9)):
        share = EMPTY_SHARE + (1 - EMPTY_SHARE) * images * 2 / 16
        found = seconds_by(cost(images), speed, workers=workers, shards=1)
        assert found == pytest.approx(50 * 0.1 * share)
    assert seconds_by(cost(8), speed, workers=1, shards=1) == pytest.approx(50 * 0.1)


def test_another_size_goes_by_its_area():
    speed = observed("sd", [[a_speed(0.1), a_speed(0.001, width=64, height=64)]])
    twice = seconds_by(cost(64, width=1024), speed, workers=1, shards=1)
    assert twice == pytest.approx(2 * seconds_by(cost(64), speed, workers=1, shards=1))
    huge = seconds_by(cost(1, width=4096, height=4096), speed, workers=1, shards=1)
    assert huge == pytest.approx(50 * 2 * 64 / 16 * 0.1)
