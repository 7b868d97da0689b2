"""Predictions of UNets: told by files or by who loads them, and by neither against the other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from sd_core.loading import load_model
from sd_core.spec import ModelSpec
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers, save_single_file, single_file_weights
from tests.sd_core.small import SMALL, small_model
from tests.sd_core.weights.test_single_file import original_config

VELOCITY = dataclasses.replace(SMALL, prediction="v", zero_snr=True)


def predicts(spec: ModelSpec) -> tuple[str, bool]:
    return spec.prediction, spec.zero_snr


@pytest.fixture(scope="module")
def model():
    return small_model(SMALL)


@pytest.fixture
def bare(model, tmp_path):
    """A file of weights that says nothing."""
    path = tmp_path / "bare.safetensors"
    save_file(single_file_weights(model), path)
    return path


@pytest.mark.parametrize(("prediction", "zero_snr"), [("v", True), ("v", False)])
def test_our_files_and_diffusers_say_it(tmp_path, prediction, zero_snr):
    spec = dataclasses.replace(SMALL, prediction=prediction, zero_snr=zero_snr)
    save_single_file(small_model(spec), tmp_path / "model.safetensors")
    save_single_file(small_model(spec), tmp_path / "model.ckpt")
    save_diffusers(small_model(spec), tmp_path / "folder")
    loaded = [load_model(path) for path in sorted(tmp_path.iterdir())]
    assert [predicts(one.spec) for one in loaded] == [(prediction, zero_snr)] * 3
    assert len({one.digest for one in loaded}) == 1


@pytest.mark.parametrize(
    ("marks", "wanted"),
    [(("v_pred",), ("v", False)), (("v_pred", "ztsnr"), ("v", True)), ((), ("epsilon", False))],
)
def test_marks_in_files_of_other_programs(model, tmp_path, marks, wanted, caplog):
    """Empty tensors, by which ComfyUI and the web UI know such models."""
    path = tmp_path / "marked.safetensors"
    save_file(single_file_weights(model) | {mark: torch.zeros(0) for mark in marks}, path)
    assert predicts(load_model(path).spec) == wanted


def test_an_original_configuration_says_it(bare, tmp_path):
    (tmp_path / "v.yaml").write_text(original_config(SMALL, parameterization="v"))
    loaded = load_model(bare, config=tmp_path / "v.yaml")
    assert predicts(loaded.spec) == ("v", False)


def test_what_a_file_does_not_say_may_be_given(bare, model):
    plain = load_model(bare)
    given = load_model(bare, prediction="v", zero_snr=True)
    assert predicts(plain.spec) == ("epsilon", False)
    assert predicts(given.spec) == ("v", True)
    assert plain.digest != given.digest  # other pictures


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prediction": "epsilon"}, "folder: its files say prediction v; epsilon was asked for"),
        ({"zero_snr": False}, "folder: its files say zero_snr True; False was asked for"),
    ],
)
def test_what_contradicts_the_files_is_refused(tmp_path, given, said):
    save_diffusers(small_model(VELOCITY), tmp_path / "folder")
    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path / "folder", **given)
    assert predicts(load_model(tmp_path / "folder", prediction="v").spec) == ("v", True)


def test_what_a_file_leaves_open_may_be_said(model, bare, tmp_path):
    """A mark, an original configuration and an old scheduler tell of the prediction alone."""
    save_file(single_file_weights(model) | {"v_pred": torch.zeros(0)}, tmp_path / "m.safetensors")
    (tmp_path / "v.yaml").write_text(original_config(SMALL, parameterization="v"))
    loaded = [
        load_model(tmp_path / "m.safetensors", zero_snr=True),
        load_model(bare, config=tmp_path / "v.yaml", zero_snr=True),
    ]
    assert [predicts(one.spec) for one in loaded] == [("v", True)] * 2
    with pytest.raises(CheckpointError, match="zero_snr goes with prediction v only"):
        load_model(bare, zero_snr=True)


def test_other_predictions_are_named(bare):
    with pytest.raises(ValueError, match="prediction 'x0'; expected one of auto, epsilon, v"):
        load_model(bare, prediction="x0")
