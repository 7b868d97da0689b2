"""Where the shards of a job end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan.shards import LEAST_IMAGES, MOST_IMAGES, MOST_WORK, ShardTable
from jobs.task import Task
from sd_core.sampling.samplers import evaluations
from sd_core.spec import Sampling

TASK = Task(0, "000000-s0", "a ring", "", Sampling(seed=0, width=128, height=128))


def row_of(count, **sampling):
    return [
        replace(TASK, index=index, sampling=replace(TASK.sampling, seed=index, **sampling))
        for index in range(count)
    ]


def table_of(tasks):
    return ShardTable.of(tasks, len(tasks))


@pytest.mark.parametrize(
    ("count", "ends"),
    [
        (0, []),
        (1, [1]),
        (7, [4, 7]),
        (64 * MOST_IMAGES + 1, [*range(64, 64 * 64 + 1, 64), 64 * 64 + 1]),
    ],
)
def test_small_jobs_have_small_shards(count, ends):
    assert list(table_of(row_of(count)).ends) == ends


def test_heavy_images_make_short_shards():
    tasks = row_of(8, steps=1000, width=2048, height=2048)
    assert list(table_of(tasks).ends) == list(range(1, 9))


def test_evaluations_are_those_of_the_plan():
    tasks = [*row_of(3, steps=20), *row_of(2, sampler="heun", steps=7, guidance=1.0)]
    expected = 3 * evaluations("plms", 20, None) + 2 * evaluations("heun", 7, None)
    assert table_of(tasks).evaluations == expected


@given(
    st.lists(
        st.builds(
            lambda steps, side, guidance: replace(
                TASK,
                sampling=Sampling(steps=steps, width=side, height=side, guidance=guidance),
            ),
            st.integers(1, 1000),
            st.sampled_from([64, 512, 2048]),
            st.sampled_from([1.0, 7.5]),
        ),
        max_size=300,
    )
)
def test_shards_cover_the_job_and_keep_their_limits(tasks):
    table = table_of(tasks)
    starts = [0, *table.ends[:-1]] if tasks else []
    assert (table.ends[-1] if tasks else 0) == len(tasks)
    for number, (start, stop) in enumerate(zip(starts, table.ends, strict=True)):
        assert {table.shard_of(index) for index in range(start, stop)} == {number}
        shard = tasks[start:stop]
        assert 1 <= len(shard) <= max(LEAST_IMAGES, -(-len(tasks) // 64))
        work = sum(
            evaluations("plms", s.steps, None)
            * (1 if s.guidance == 1.0 else 2)
            * s.width
            * s.height
            for s in (task.sampling for task in shard)
        )
        assert len(shard) == 1 or work <= MOST_WORK
