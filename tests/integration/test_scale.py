"""Large jobs and many workers, with an engine that only waits. How fast they are is not asked here:
`python -m tests.bench.control_plane --check` is.
"""

from __future__ import annotations

import pytest

from tests.bench import control_plane

MOST_SUBMITTING_MIB = 400
MOST_REDIS_MIB = 16


def check(figures: dict, images: int) -> None:
    new, again, wiped = figures["new"], figures["again"], figures["into_a_wiped_ledger"]
    assert (new["images"], new["new"]) == (images, True)
    assert (again["job"], again["new"]) == (new["job"], False)
    assert (wiped["job"], wiped["new"], wiped["images"]) == (new["job"], True, images)
    # A status costs the same for any job.
    assert figures["status_commands"]["new"] == figures["status_commands"]["small"] > 0


def test_a_job_of_some_size_is_submitted_and_resumed(tmp_path, aws):
    check(control_plane.million(tmp_path, images=2000), 2000)


@pytest.mark.slow
def test_a_million_images(tmp_path, aws):
    figures = control_plane.million(tmp_path)
    check(figures, control_plane.MILLION)
    assert figures["redis_mib"] < MOST_REDIS_MIB
    for part in ("new", "again", "into_a_wiped_ledger"):
        assert figures[part]["peak_memory_mib"] < MOST_SUBMITTING_MIB


@pytest.mark.slow
def test_thirty_two_workers_render_a_job_together(tmp_path):
    images = 2048
    figures = control_plane.waiting(tmp_path, images=images, image_s=0.5)
    assert (figures["in_store"], figures["state"]) == (images, "done")
