"""The world that tests of the page's server begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.dashboard.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
