"""`sdbatch plan` with time and money."""

from __future__ import annotations

import json

import pytest

from jobs.errors import ExitCode
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import dump_lines
from jobs.plan.calibration import keep_speed
from jobs.reuse.index import write_index
from jobs.storage import LocalStore
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
    assert (found["by"][0]["device"], found["by"][0]["from"]) == ("cpu", "bench")
    ask = ["plan", "job.yaml", "--workers", "4", "--price", "1.10"]
    found = json.loads(run_command([*ask, "--json"], environ, folder).stdout)["estimate"]
    assert found["seconds"] == pytest.approx(whole / 4, rel=0.1)
    assert found["cost"] == pytest.approx(found["seconds"] * 4 / 3600 * 1.1, abs=1e-4)
    lines = dict(
        line.split(maxsplit=1) for line in run_command(ask, environ, folder).stdout.splitlines()
    )
    assert lines["time"].startswith("about 1:")
    assert lines["time"].endswith(
        "± 25% on 4 workers (like this machine: cpu, float32, measured 2026-01-02)"
    )
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
        (["--price", "1"], "the speed of model demo is not known"),
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


def made_before(folder, model: str, render_s: float, images: int = 8) -> None:
    """An earlier job of the store, indexed."""
    job = JobFolder(LocalStore(folder / "out"), JobKeys(f"{model}-before"))
    record = {
        "spec": "5" * 64,
        "model": {"name": model, "digest": "d" * 64},
        "device": "cuda",
        "dtype": "float16",
        "execution": "fused",
        "width": 512,
        "height": 512,
        "batch_rows": 16,
        "evaluations": 10,
        "timings_s": {"render": render_s},
    }
    rows = [record | {"index": index, "path": f"images/{index}.png"} for index in range(images)]
    job.put(job.keys.records(0), dump_lines(rows))
    write_index(job)


def test_time_by_earlier_jobs_of_the_store(folder, environ):
    keep_speed(folder / "cache", speed(size(), model="demo"))
    made_before(folder, "demo", 5.0)
    found = json.loads(run_command(["plan", "job.yaml", "--json"], environ, folder).stdout)
    assert found["estimate"]["seconds"] == pytest.approx(640 * 2 / 16 * 10 * 0.5)
    by = {"model": "demo", "device": "cuda", "dtype": "float16", "execution": "fused"}
    assert found["estimate"]["by"] == [{**by, "from": "records", "jobs": 1}]
    said = run_command(["plan", "job.yaml"], environ, folder).stdout
    assert "about 6:40 ± 25% on one worker (cuda, float16, as 1 earlier job had)" in said


def test_a_job_of_several_models(folder, environ):
    (folder / "two.yaml").write_text(MANIFEST + "matrix: {model: [demo, sd]}\n")
    asked = ["plan", "two.yaml", "--workers", "1", "--json"]
    keep_speed(folder / "cache", speed(size(), model="demo"))
    unknown = run_command(asked, environ, folder)
    assert unknown.returncode == ExitCode.BAD_INPUT
    assert "the speed of model sd is not known" in unknown.stdout
    made_before(folder, "sd", 5.0)
    found = json.loads(run_command(asked, environ, folder).stdout)["estimate"]
    of_demo = 10 * 80 * 0.5 + 640 * 0.1
    assert found["seconds"] == pytest.approx(of_demo + 640 * 2 / 16 * 10 * 0.5)
    assert [one["from"] for one in found["by"]] == ["bench", "records"]
