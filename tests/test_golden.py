"""What an older version made keeps its name: plans, digests, keys, messages and records.

`golden.json` was written by the code of the day when this test was made, for manifests that use
every field. It is only ever added to: a line of it that changes renames somebody's pictures, or
breaks a queue that workers of several versions share.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.folder.layout import JobKeys
from jobs.ledger.types import Shard
from jobs.manifest.load import load_manifest
from jobs.plan.task_line import read_task
from jobs.queue.messages import from_message, to_message
from jobs.task import Task, spec_digest
from tests.worker.samples import MODEL, RENDER
from worker.output.record import image_record, record_line

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
EXAMPLES = Path(__file__).parents[1] / "jobs/examples"

EVERY_FIELD = """\
version: 1
name: every-field
model: demo
defaults: {negative: grey, sampler: ddim, eta: 0.5, steps: 20, width: 96, height: 64}
prompts:
  - a plain text with ünïcode and "quotes"
  - prompt: a list of seeds
    seeds: [0, 1, 18446744073709551615]
    guidance: 1
    negative: ""
  - prompt: a range of seeds
    seeds: {start: 7, count: 2}
    sampler: dpmpp_2m
    eta: 0
    karras: true
    guidance: 0
  - prompt: from a picture
    init_image: picture.png
    mask: mask.png
    strength: 0.3
    name: "{prompt}/{index}-{sampler}-{steps}"
output: {format: webp, quality: 80, name: "{index:03d}-{prompt}-s{seed}"}
"""


def manifests(folder: Path) -> dict[str, Path]:
    """A manifest with every field, the examples, and the first quickstart, without a LoRA."""
    (folder / "every.yaml").write_text(EVERY_FIELD)
    for name in ("picture", "mask"):
        photo = EXAMPLES / "photos/red-circle-on-blue.png"
        (folder / f"{name}.png").write_bytes(photo.read_bytes())
    examples = {path.stem: path for path in sorted(EXAMPLES.glob("*.yaml"))}
    examples["quickstart-hollow"] = examples.pop("quickstart")
    shutil.copytree(EXAMPLES / "photos", folder / "photos")
    first = shutil.copy(Path(__file__).with_name("golden_quickstart.yaml"), folder)
    examples["quickstart"] = Path(first)
    csv = {path.stem: path for path in sorted(EXAMPLES.glob("*/*.yaml"))}
    return {"every": folder / "every.yaml", **examples, **csv}


def digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def of_manifest(path: Path) -> dict[str, Any]:
    """A manifest's digest; of its tasks the plan lines, and the first and last key."""
    manifest = load_manifest(path, allow_outside=True)
    tasks = list(manifest.tasks())
    job = JobKeys("a-job")
    named = [job.image(task.name, spec_digest(task, MODEL.digest), task.format) for task in tasks]
    return {
        "job": manifest.job_id(),
        "plan": manifest.digest,
        "images": len(tasks),
        "lines": digest([task.to_json() for task in tasks]),
        "keys": digest(named),
        "first": named[0],
        "last": named[-1],
    }


def of_task(task: Task) -> dict[str, Any]:
    """A task's plan line, canonical text and record; software's versions are not ours."""
    record = image_record(task, MODEL, RENDER)
    line = record_line(record, "images/x.png", b"data", timings_s={}, finished="2026-01-01")
    return {
        "line": task.to_json(),
        "canonical": task.canonical_json(),
        "record": {**line, "software": sorted(line["software"])},
    }


def golden(folder: Path) -> dict[str, Any]:
    paths = manifests(folder)
    tasks = load_manifest(paths["every"]).tasks()
    return {
        "manifests": {name: of_manifest(path) for name, path in paths.items()},
        "tasks": [of_task(task) for task in tasks],
        "message": to_message(Shard("a-job", 3, 30, 40)),
        "keys": keys(),
    }


def keys() -> list[str]:
    """A key of each kind that a job's folder has."""
    job, digest = JobKeys("a-job"), "5a" * 32
    return [
        *(job.manifest, job.job, job.model(), job.failures, job.index, job.done),
        *(job.images_prefix, job.records_prefix, job.saved_prefix),
        *(job.plan_part(3), job.input("x.png"), job.records(12), job.sheet(1)),
        *(job.image("a/b", digest, "jpeg"), job.saved(5, digest)),
    ]


@pytest.fixture
def now(tmp_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(golden(tmp_path)))


@pytest.mark.parametrize("name", GOLDEN["manifests"])
def test_plans_and_names_of_images(now, name):
    assert now["manifests"][name] == GOLDEN["manifests"][name]


def test_tasks_canonical_texts_and_records(now):
    for ours, wanted in zip(now["tasks"], GOLDEN["tasks"], strict=True):
        assert ours["canonical"] == wanted["canonical"]
        for part in ("line", "record"):
            assert {key: ours[part].get(key) for key in wanted[part]} == wanted[part]


def test_a_plan_line_and_a_message_of_before_are_read():
    for of_before in GOLDEN["tasks"]:
        line = json.dumps(of_before["line"]).encode()
        task = read_task(line, of_before["line"]["index"])
        assert task.canonical_json() == of_before["canonical"]
    assert from_message(GOLDEN["message"]) == Shard("a-job", 3, 30, 40)


def test_messages_and_keys(now):
    assert {key: now["message"][key] for key in GOLDEN["message"]} == GOLDEN["message"]
    assert now["keys"] == GOLDEN["keys"]
