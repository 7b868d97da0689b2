"""The list of environment variables is what the code reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.local.address import default_folder
from jobs.settings import Settings, debugging
from jobs.variables import VARIABLES

ROOT = Path(__file__).parents[2]
DEFAULTS = {variable.name: variable.default for variable in VARIABLES}
ELSEWHERE = {"SDBATCH_LOCAL", "SDBATCH_DEBUG"}  # asked of other functions than `from_env`


def test_what_is_read_is_listed_and_what_is_listed_is_read():
    """Variables that stand in quotes in the packages, where code reads or sets them."""
    files = [path for room in ("jobs", "worker", "sd_core") for path in (ROOT / room).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files if path.name != "variables.py")
    assert set(re.findall(r'"(SDBATCH_[A-Z_]+)"', code)) == set(DEFAULTS)


def test_each_is_listed_once():
    assert len(DEFAULTS) == len(VARIABLES)


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - ELSEWHERE))
def test_defaults_are_those_of_the_code(name):
    assert Settings.from_env({name: DEFAULTS[name]}) == Settings.from_env({})


def test_so_are_those_that_are_asked_for_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"HOME": str(tmp_path)}
    assert default_folder(given) == default_folder(
        given | {"SDBATCH_LOCAL": DEFAULTS["SDBATCH_LOCAL"]}
    )
    assert debugging({}) is debugging({"SDBATCH_DEBUG": DEFAULTS["SDBATCH_DEBUG"]}) is False
