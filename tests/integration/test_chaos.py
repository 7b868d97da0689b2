"""Two runs of the chaos; `python -m tests.integration.chaos` makes as many as one likes."""

from __future__ import annotations

import pytest

from tests.integration.chaos import run
from tests.integration.cluster import make_model, undisturbed
from tests.integration.disorder import write_manifest

SEEDS = (1000, 1001)  # one with each way of writing Valkey's append-only file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("calm")
    return undisturbed(write_manifest(folder), model, folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_dies_nothing_is_lost_or_made_twice(tmp_path, aws, model, calm, seed):
    figures = run(seed, tmp_path / "run", model, calm)
    assert figures["problems"] == [], figures
    # It was a chaos.
    assert len(figures["events"]) >= 8
    assert figures["leases_expired"] > 0
