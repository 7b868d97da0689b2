"""`sdbatch bench`: what is measured, said and kept; speed itself is in tests/bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs.cli.root import main
from jobs.errors import ExitCode
from jobs.plan.calibration import FILE, read_calibration
from sd_core.engine.engine import Batch, Engine
from sd_core.spec import ModelSpec
from tests.sd_core.small import ODD, small_model
from worker.measure.command import common_sizes
from worker.measure.limit import product_rate, row_operations
from worker.measure.speed import LEAST_EVALUATIONS, SpeedMeasurement


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SDBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("worker.measure.speed.ABOUT_S", 0.0)  # the least evaluations
    return tmp_path / "cache"


def bench(capsys, *options: str, code: int = ExitCode.DONE) -> dict:
    assert main(["bench", "--device", "cpu", *options, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_what_is_measured_is_said_and_kept(cache: Path, capsys):
    found = bench(capsys, "--size", "64x64", "--size", "64x96", "--steps", "7", "--steps", "7")
    assert (found["model"], found["device"], found["failed"]) == ("demo", "cpu", [])
    assert found["kept"] == str(cache / FILE)
    assert min(found["load_s"], found["first_images_s"], found["product_tflops"]) > 0
    assert found["memory_bytes"] > 100e6
    assert [(one["width"], one["height"]) for one in found["sizes"]] == [(64, 64), (64, 96)]
    (kept,) = read_calibration(cache).speeds
    for said, one in zip(found["sizes"], kept.sizes, strict=True):
        images = one.rows // 2
        batch_s = 7 * one.evaluation_s + images * one.decode_s
        assert said["images_per_s"] == {"7": pytest.approx(images / batch_s, rel=1e-3)}
        alone_s = 7 * one.alone_evaluation_s + one.alone_decode_s + one.encode_s
        assert said["image_s"] == {"7": pytest.approx(alone_s, rel=0.01, abs=1e-3)}
        assert 0 < said["of_limit"] < 2
        assert said["evaluations_measured"] >= LEAST_EVALUATIONS


def test_people_get_a_table(cache: Path, capsys):
    assert main(["bench", "--device", "cpu", "--size", "64x64"]) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "model",
        "device",
        "start",
        "memory",
        "limit",
    ]
    assert lines[6].split()[:2] == ["size", "rows"]
    assert lines[7].split()[:2] == ["64x64", "16"]
    assert lines[-1] == f"kept in {cache / FILE}"
    assert all(len(line) <= 80 for line in lines[:-1])


def test_a_size_without_room_is_said_and_the_others_are_measured(cache, capsys, monkeypatch):
    monkeypatch.setattr("sd_core.engine.engine.own_memory", lambda device: 400 * 2**20)
    sizes = ("--size", "4096x4096", "--size", "64x64")
    found = bench(capsys, *sizes, code=ExitCode.SOME_FAILED)
    assert [(one["width"], one["height"]) for one in found["failed"]] == [(4096, 4096)]
    assert "4096x4096 pixels needs about" in found["failed"][0]["error"]
    assert [one["width"] for one in found["sizes"]] == [64]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "64"], "--size: found '64', expected WIDTHxHEIGHT, as in 512x768"),
        (["--size", "65x64"], "--size 65x64: width 65 is not a multiple of 8"),
        (["--size", "64x99999"], "--size 64x99999: height 99999 is not a multiple of 8"),
        (["--device", "tpu"], "--device: found 'tpu', expected auto, cpu, cuda"),
        (["--model", "nothing/here.ckpt"], "nothing/here.ckpt"),
        (["--model", "nobody"], "is not in the model list"),
    ],
)
def test_what_cannot_be_measured_is_said(cache: Path, capsys, options, said):
    assert main(["bench", *options]) in (ExitCode.BAD_INPUT, ExitCode.MODEL)
    assert said in capsys.readouterr().err
    assert not cache.exists()


def test_full_batches_count_and_what_is_made_first_does_not(monkeypatch):
    """The model's speed is that of its later evaluations, whatever the first ones take."""
    monkeypatch.setattr("worker.measure.speed.ABOUT_S", 0.0)
    model = small_model(ODD)
    batches: list[Batch] = []
    init = Engine.__init__

    def watched(engine, model, *, rows=None, on_batch=None):
        def seen(batch: Batch) -> None:
            batches.append(batch)
            slow = len(batches) <= 2
            on_batch(Batch(batch.rows_used, batch.rows, 1000.0 if slow else batch.seconds))

        init(engine, model, rows=rows, on_batch=seen)

    monkeypatch.setattr(Engine, "__init__", watched)
    with SpeedMeasurement(model) as measurement:
        found = measurement.at(64, 64)
    assert found.speed.rows == 16
    assert found.speed.evaluation_s < 100
    assert found.evaluations >= LEAST_EVALUATIONS
    assert {batch.rows_used for batch in batches} >= {16, 2}


def test_the_limit_counts_what_a_row_of_the_model_multiplies():
    """For v1 at 512×512 some 0.7 TFLOP are published, and attention's products come on top."""
    operations = row_operations(ModelSpec(), (64, 64))
    assert 0.6e12 < operations < 0.9e12
    assert row_operations(ModelSpec(), (96, 64)) > 1.4 * operations
    assert product_rate(torch.device("cpu"), torch.float32) > 1e9


def test_common_sizes_are_ones_that_can_be_rendered():
    assert common_sizes(512) == [(512, 512), (512, 768), (768, 768)]
    assert common_sizes(128)[1] == (128, 192)
