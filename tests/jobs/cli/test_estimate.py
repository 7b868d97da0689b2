"""`sdbatch plan` with time and money."""

from __future__ import annotations

import json

import pytest

from jobs.plan.calibration import keep_speed
from tests.commands import run_command
from tests.jobs.plan.test_calibration import size, speed

MANIFEST = """\
version: 1
model: demo
defaults: {sampler: ddim, steps: 10, guidance: 5, width: 512, height: 512}
prompts: [{prompt: a ring, seeds: {start: 0, count: 640}}]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.yaml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def environ(tmp_path):
    return {"SDBATCH_CACHE": str(tmp_path / "cache"), "SDBATCH_STORE": str(tmp_path / "out")}


def test_time_and_money_by_what_was_measured(folder, environ):
    keep_speed(folder / "cache", speed(size(), model="demo"))
    planned = run_command(["plan", "job.yaml", "--json"], environ, folder)
    found = json.loads(planned.stdout)["estimate"]
    whole = 10 * 80 * 0.5 + 640 * 0.1
    assert found["seconds"] == pytest.approx(whole)
    assert (found["workers"], found["cost"]) == (1, None)
    assert found["measured"]["device"] == "cpu"
    ask = ["plan", "job.yaml", "--workers", "4", "--price", "1.10"]
    found = json.loads(run_command([*ask, "--json"], environ, folder).stdout)["estimate"]
    assert found["seconds"] == pytest.approx(whole / 4, rel=0.1)
    assert found["cost"] == pytest.approx(found["seconds"] * 4 / 3600 * 1.1, abs=1e-4)
    lines = dict(
        line.split(maxsplit=1) for line in run_command(ask, environ, folder).stdout.splitlines()
    )
    assert lines["time"].startswith("about 1:")
    assert "on 4 workers like this machine (cpu, float32, measured 2026-01-02)" in lines["time"]
    assert lines["money"].endswith("at 1.1 an hour for each")


def test_without_a_measurement_a_plan_is_what_it_was(folder, environ):
    keep_speed(folder / "cache", speed(size(), model="another"))
    planned = run_command(["plan", "job.yaml", "--json"], environ, folder)
    assert json.loads(planned.stdout)["estimate"] is None
    assert "time" not in run_command(["plan", "job.yaml"], environ, folder).stdout
    environ["SDBATCH_DTYPE"] = "float8"  # which says nothing of a plan
    assert run_command(["plan", "job.yaml"], environ, folder).returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--price", "1"], "model demo was not measured here"),
        (["--workers", "2"], "sdbatch bench --model demo"),
        (["--price", "nan"], "--price: found nan, expected a number of at least 0"),
        (["--price", "-1"], "--price: found -1, expected a number of at least 0"),
        (["--price", "cheap"], "'cheap' is not a valid float"),
        (["--workers", "0"], "0 is not in the range"),
    ],
)
def test_what_cannot_be_estimated_is_said(folder, environ, options, said):
    done = run_command(["plan", "job.yaml", *options], environ, folder)
    assert done.returncode == 2
    assert said in done.stderr


def test_several_models_have_no_estimate(folder, environ):
    (folder / "job.yaml").write_text(MANIFEST + "matrix: {model: [demo, other]}\n")
    assert run_command(["plan", "job.yaml"], environ, folder).returncode == 0
    done = run_command(["plan", "job.yaml", "--workers", "2"], environ, folder)
    assert (done.returncode, "of one model only" in done.stderr) == (2, True)
