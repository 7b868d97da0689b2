"""Embedded timesteps of tables: found again, bounded, and never lost under an image."""

from __future__ import annotations

import pytest
import torch

from sd_core.engine import timesteps
from sd_core.engine.timesteps import EmbeddedTimesteps, Times
from sd_core.sampling.samplers import step_table
from tests.sd_core.small import small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def embedded(model, table) -> torch.Tensor:
    return model.embed_timesteps(torch.tensor(table.t, dtype=torch.float32))


def found(kept: EmbeddedTimesteps, table) -> torch.Tensor:
    begin = kept.begin(Times(table))
    return kept.rows[begin : begin + len(table)]


def test_rows_are_those_of_the_table_embedded_alone(model, monkeypatch):
    monkeypatch.setattr(timesteps, "LEAST", 8)
    kept = EmbeddedTimesteps(model)
    tables = [step_table("ddim", steps) for steps in (3, 4, 5, 9, 20)]
    for table in tables:
        kept.add([Times(table)])
    for table in tables:
        assert torch.equal(found(kept, table), embedded(model, table))


def test_what_is_in_use_stays_and_the_longest_unused_goes(model, monkeypatch):
    monkeypatch.setattr(timesteps, "LEAST", 8)
    monkeypatch.setattr(timesteps, "KEPT", 12)
    kept = EmbeddedTimesteps(model)
    used = step_table("euler", 30)  # alone more than is kept of others
    others = [step_table("ddim", steps) for steps in range(3, 20)]
    sizes = []
    for table in others:
        kept.add([Times(used), Times(table)])
        assert torch.equal(found(kept, used), embedded(model, used))
        assert torch.equal(found(kept, table), embedded(model, table))
        sizes.append(len(kept.rows))
    assert max(sizes) <= 2 * (30 + 12 + 20)
    with pytest.raises(KeyError):
        kept.begin(Times(others[0]))


def test_an_empty_table_needs_no_rows(model):
    kept = EmbeddedTimesteps(model)
    kept.add([])
    assert len(kept.rows) == 0
