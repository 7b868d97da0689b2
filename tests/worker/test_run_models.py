"""A job of several models in one process: model by model, each loaded only where it is needed."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import worker.run_parts
from jobs.cli import main
from jobs.errors import ExitCode, Interrupted, JobConflictError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import read_records
from jobs.manifest.load import load_manifest
from jobs.storage import LocalStore
from sd_core.engine.request import sha256_of
from sd_core.weights.export import save_single_file
from tests.sd_core.small import ODD, small_model
from tests.worker.test_run import Recorder, digests
from worker.checkpoint.load import ModelChoice
from worker.run import run_job

MANIFEST = """\
version: 1
name: both
model: odd
defaults: {width: 64, height: 64, steps: 2}
prompts: [a ring, {prompt: a star, model: even, seeds: [1, 2, 3]}, a cross]
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("odd", "even")):
        save_single_file(small_model(ODD, seed), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("odd", "even")}


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the models that are loaded from now on."""
    names: list[str] = []
    load = worker.run_parts.load

    def counting(choice):
        names.append(choice.name)
        return load(choice)

    monkeypatch.setattr(worker.run_parts, "load", counting)
    return names


@pytest.fixture
def run(tmp_path, checkpoints, loaded):
    (tmp_path / "both.yaml").write_text(MANIFEST)

    def run(text=MANIFEST, recorder=None, stop=None, **options):
        (tmp_path / "both.yaml").write_text(text)
        manifest = load_manifest(tmp_path / "both.yaml")
        settings = {"device": "cpu", "dtype": "float32", "cache": Path(os.environ["SDBATCH_CACHE"])}
        loaded.clear()
        return run_job(
            manifest,
            [ModelChoice(p.name, str(checkpoints[p.name]), **settings) for p in manifest.models],
            LocalStore(tmp_path / "out"),
            observe=lambda cost: contextlib.nullcontext(recorder or Recorder()),
            status=lambda text: contextlib.nullcontext(),
            stop=stop or threading.Event(),
            **options,
        )

    return run


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "out")


def pictures(store: LocalStore, job: str) -> dict[str, bytes]:
    """Pixels of a job's images, by their names without the index."""
    return {
        path.partition("-s")[2]: Image.open(Path(store.root) / job / path).tobytes()
        for path in digests(store, job)
    }


def test_each_image_is_by_its_model(run, store, loaded, checkpoints):
    summary = run()
    assert (summary.images, summary.rendered) == (5, 5)
    assert loaded == ["odd", "even"]
    records = list(read_records(JobFolder(store, JobKeys(summary.job))))
    assert [r["model"]["name"] for r in records] == ["odd", "odd", "even", "even", "even"]
    assert [r["prompt"] for r in records] == ["a ring", "a cross", *["a star"] * 3]
    done = json.loads(store.get(JobKeys(summary.job).done))
    assert [model["name"] for model in done["models"]] == ["odd", "even"]
    # An image has the name and the pixels that it has in a job of one model.
    alone = run(MANIFEST.replace("model: odd", "model: even").replace("a ring, ", ""))
    mine, both = (pictures(store, job) for job in (alone.job, summary.job))
    same = mine.keys() & both.keys()
    assert len(same) == 3
    assert all(mine[name] == both[name] for name in same)


def test_again_there_is_nothing_to_load(run, store, loaded):
    first = run()
    assert run().reused == 5
    assert loaded == []
    # One image is gone: the other model stays where it is.
    folder = JobFolder(store, JobKeys(first.job))
    last = list(read_records(folder))[-1]
    store.delete(folder.keys(last["path"]))
    before = digests(store, first.job)
    again = run()
    assert (again.rendered, again.reused, loaded) == (1, 4, ["even"])
    assert digests(store, first.job).items() > before.items()


def test_it_goes_on_where_it_was_stopped(run, store, loaded):
    stop = threading.Event()
    with pytest.raises(Interrupted):
        run(recorder=Recorder(lambda count: stop.set() if count == 2 else None), stop=stop)
    assert loaded == ["odd"]
    assert run().rendered <= 3 + 1
    assert "even" in loaded
    expected = run(job="whole").job
    job = next(Path(store.root).glob("both-*")).name
    assert digests(store, job) == digests(store, expected)


def test_a_name_that_stands_for_other_weights_now(run, store, checkpoints, tmp_path):
    run()
    other = tmp_path / "other.safetensors"
    save_single_file(small_model(ODD, 5), other)
    checkpoints_before, checkpoints["even"] = checkpoints["even"], other
    try:
        with pytest.raises(JobConflictError, match=r"rendered with another model \(even, digest"):
            run(MANIFEST)
    finally:
        checkpoints["even"] = checkpoints_before


def test_a_model_with_a_file_merged_into_it(tmp_path, checkpoints, capsys, monkeypatch):
    """From the model list to the record; another weight is another model, with names of its own."""
    torch.manual_seed(1)
    half = {"hada_w1_a": (4, 2), "hada_w1_b": (2, 216), "hada_w2_a": (4, 2), "hada_w2_b": (2, 216)}
    save_file(
        {f"lora_unet_out_2.{leaf}": torch.randn(shape) for leaf, shape in half.items()},
        tmp_path / "loha.safetensors",
    )
    source = checkpoints["odd"]
    (tmp_path / "list.yaml").write_text(
        f"plain: {source}\n"
        f"half: {{source: {source}, loras: [{{source: loha.safetensors, weight: 0.5}}]}}\n"
        f"whole: {{source: {source}, loras: [loha.safetensors]}}\n"
    )
    (tmp_path / "job.yaml").write_text(
        "version: 1\ndefaults: {width: 64, height: 64, steps: 2}\n"
        "matrix: {model: [plain, half, whole]}\nprompts: [a ring]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDBATCH_MODELS", str(tmp_path / "list.yaml"))
    monkeypatch.setenv("SDBATCH_DTYPE", "float32")
    assert main(["run", "job.yaml", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)["job"]
    records = list(read_records(JobFolder(LocalStore(tmp_path / "out"), JobKeys(job))))
    merged = {"name": "loha.safetensors", "sha256": sha256_of(tmp_path / "loha.safetensors")}
    assert [record["model"].get("loras") for record in records] == [
        None,
        [{**merged, "weight": 0.5, "text_weight": 0.5}],
        [{**merged, "weight": 1.0, "text_weight": 1.0}],
    ]
    assert len({record["model"]["digest"] for record in records}) == 3
    assert len(set(pictures(LocalStore(tmp_path / "out"), job).values())) == 3
    assert main(["run", "job.yaml", "--json"]) == 0  # known again without loading
    assert json.loads(capsys.readouterr().out)["load_s"] == 0
    (tmp_path / "gone.yaml").write_text("x: {source: demo, loras: [gone.safetensors]}\n")
    monkeypatch.setenv("SDBATCH_MODELS", str(tmp_path / "gone.yaml"))
    (tmp_path / "job.yaml").write_text("version: 1\nmodel: x\nprompts: [a]\n")
    assert main(["run", "job.yaml"]) == ExitCode.MODEL
    assert "gone.safetensors" in capsys.readouterr().err
