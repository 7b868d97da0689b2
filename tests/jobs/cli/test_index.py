"""`sdbatch index`, and plans that know what earlier jobs have made."""

from __future__ import annotations

import json

import pytest

from jobs.errors import ExitCode
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.prepare import prepare
from jobs.folder.records import dump_lines
from jobs.manifest.load import load_manifest
from jobs.plan.calibration import keep_speed
from jobs.reuse.index import index_key
from jobs.storage import LocalStore
from jobs.task import spec_digest
from tests.commands import run_command
from tests.jobs.plan.test_calibration import size, speed

MANIFEST = """\
version: 1
name: rings
model: demo
defaults: {sampler: ddim, steps: 10, guidance: 5, width: 512, height: 512}
prompts: [{prompt: a ring, seeds: {start: 0, count: 64}}]
"""
MODEL = {"name": "demo", "digest": "d" * 64}


@pytest.fixture
def environ(tmp_path):
    return {"SDBATCH_CACHE": str(tmp_path / "cache"), "SDBATCH_STORE": str(tmp_path / "out")}


@pytest.fixture
def made(tmp_path) -> JobFolder:
    """A job whose first 48 images have records."""
    path = tmp_path / "job.yaml"
    path.write_text(MANIFEST)
    manifest = load_manifest(path)
    folder = JobFolder(LocalStore(tmp_path / "out"), JobKeys(manifest.job_id()))
    prepare(manifest, folder)
    rows = [
        {
            "index": task.index,
            "path": f"images/{task.name}.png",
            "spec": spec_digest(task, MODEL["digest"]),
            "model": MODEL,
        }
        for task in list(manifest.tasks())[:48]
    ]
    folder.put(folder.keys.records(0), dump_lines(rows))
    return folder


def plan(environ, folder, text: str) -> dict:
    (folder / "plan.yaml").write_text(text)
    planned = run_command(["plan", "plan.yaml", "--json"], environ, folder)
    assert planned.returncode == ExitCode.DONE
    return json.loads(planned.stdout)


def test_a_plan_says_what_is_there_and_takes_its_time_off(made, environ, tmp_path):
    keep_speed(tmp_path / "cache", speed(size(), model="demo"))
    grown = MANIFEST.replace("count: 64", "count: 100").replace("rings", "more")
    before = plan(environ, tmp_path, grown)
    assert before["reused"] == 0
    indexed = run_command(["index"], environ, tmp_path)
    assert indexed.stdout == "48 pictures of 1 job indexed\n"
    after = plan(environ, tmp_path, grown)
    assert after["reused"] == 48
    assert after["images"] == before["images"] == 100
    assert after["estimate"]["seconds"] < 0.7 * before["estimate"]["seconds"]
    assert "up to 48 images" in run_command(["plan", "plan.yaml"], environ, tmp_path).stdout
    assert plan(environ, tmp_path, grown.replace("a ring", "a star"))["reused"] == 0


def test_the_index_of_a_job_that_is_gone_goes(made, environ, tmp_path):
    run_command(["index"], environ, tmp_path)
    made.delete(made.keys.job)
    done = run_command(["index", "--json"], environ, tmp_path)
    assert json.loads(done.stdout) == {"jobs": {}, "removed": [made.keys.job_id]}
    assert made.head(index_key(made.keys.job_id)) is None


def test_one_job_is_indexed_by_its_name(made, environ, tmp_path):
    job = made.keys.job_id
    done = run_command(["index", job, "--json"], environ, tmp_path)
    assert json.loads(done.stdout) == {"jobs": {job: 48}, "removed": []}
    none = run_command(["index", "nothing"], environ, tmp_path)
    assert none.returncode == ExitCode.NOT_FOUND
    assert "there is no such job" in none.stderr
    bad = run_command(["index", "a/b"], environ, tmp_path)
    assert bad.returncode == ExitCode.BAD_INPUT
