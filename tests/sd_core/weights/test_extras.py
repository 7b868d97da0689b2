"""Weights that a checkpoint has and no picture depends on are left out and named."""

from __future__ import annotations

import argparse
import collections
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModelWithProjection

from sd_core.loading import load_model
from sd_core.model.text import clip_config
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers, single_file_weights
from sd_core.weights.stored import MappedFile
from sd_core.weights.torch_legacy import read_torch_legacy
from tests.sd_core.small import SMALL, small_model
from tests.sd_core.weights.test_pickle import storage

TEXT = "cond_stage_model."
WIDTH = SMALL.text.width


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def weights(model):
    return single_file_weights(model)


@pytest.fixture(scope="module")
def digest(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_file(weights, path)
    return load_model(path).digest


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers") / "small"
    save_diffusers(model, path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


@pytest.fixture
def lines(caplog):
    """The log's lines about a checkpoint."""
    caplog.set_level(logging.INFO, "sd_core")
    return lambda: [record.getMessage() for record in caplog.records]


EXTRAS = {
    "of ComfyUI": (
        {
            TEXT + "logit_scale": torch.tensor(4.6),
            TEXT + "text_projection": torch.zeros(WIDTH, WIDTH),
            TEXT + "transformer.text_projection.weight": torch.zeros(WIDTH, WIDTH),
        },
        "CLIP's projections (3)",
    ),
    "of a whole CLIP": (
        {
            TEXT + "transformer.vision_model.embeddings.class_embedding": torch.zeros(8),
            TEXT + "transformer.vision_model.post_layernorm.bias": torch.zeros(8),
            TEXT + "transformer.visual_projection.weight": torch.zeros(8, 8),
        },
        "CLIP's vision tower (2), CLIP's projections (1)",
    ),
    "of textual inversion": (
        {
            "embedding_manager.string_to_param_dict.*": torch.zeros(1, WIDTH),
            "embedding_manager.initial_embeddings.*": torch.zeros(1, WIDTH),
        },
        "embedding_manager (2)",
    ),
    "of newer training code": ({"denoiser.sigmas": torch.zeros(1000)}, "denoiser.sigmas (1)"),
    "a scale": ({"scale_factor": torch.tensor(0.18215)}, "scale_factor (1)"),
    "a rounded scale": (
        {"scale_factor": torch.tensor(0.18215, dtype=torch.bfloat16)},
        "scale_factor (1)",
    ),
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_extras_are_left_out_and_named(tmp_path, weights, digest, lines, name, ending):
    extras, named = EXTRAS[name]
    path = tmp_path / f"model.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": weights | extras}, path)
    else:
        save_file(weights | extras, path)
    assert load_model(path).digest == digest
    assert lines() == [f"{path}: left out, as no picture depends on it: {named}"]


def test_a_plain_model_needs_no_line(tmp_path, weights, lines):
    save_file(weights | {"model_ema.decay": torch.zeros(1)}, tmp_path / "a.safetensors")
    load_model(tmp_path / "a.safetensors")
    assert lines() == []


@pytest.mark.parametrize(
    "extra",
    [
        "model.diffusion_model.vision_model.a",
        "first_stage_model.text_projection",
        "cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc1.bias",
        "cond_stage_model.embedding_manager.a",
        "denoiser.weighting.a",
    ],
)
def test_all_else_is_refused(tmp_path, weights, extra):
    save_file(weights | {extra: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"1 unexpected: {extra}"):
        load_model(tmp_path / "a.safetensors")


def test_a_scale_factor_that_is_not_the_assumed_one(tmp_path, weights):
    path = tmp_path / "a.safetensors"
    save_file(weights | {"scale_factor": torch.tensor(0.2)}, path)
    with pytest.raises(CheckpointError, match=r"its scale_factor is 0\.2, and 0\.18215 would be"):
        load_model(path)


def clip(config):
    """CLIP with both towers, its text tower of the small model's size."""
    text, vision = clip_config(SMALL.text).to_dict(), {"hidden_size": 32, "num_hidden_layers": 1}
    vision |= {"intermediate_size": 32, "num_attention_heads": 2}
    return config(text_config=text, vision_config=vision)


def test_folder_whose_text_encoder_has_a_projection(copied, digest, lines):
    peer = CLIPTextModelWithProjection.from_pretrained(copied / "text_encoder")
    peer.save_pretrained(copied / "text_encoder")
    saved = load_file(copied / "text_encoder" / "model.safetensors")
    assert "text_projection.weight" in saved
    lines_before = len(lines())
    assert load_model(copied).digest == digest
    assert lines()[lines_before:] == [
        f"{copied}: left out, as no picture depends on it: CLIP's projections (1)"
    ]


def test_folder_whose_text_encoder_is_a_whole_clip(copied, digest):
    place = copied / "text_encoder"
    peer = CLIPModel(clip(CLIPModel.config_class))
    text = load_file(place / "model.safetensors")
    peer.save_pretrained(place)
    whole = load_file(place / "model.safetensors")
    assert text.keys() <= whole.keys()
    save_file(whole | text, place / "model.safetensors")
    assert "text_config" in json.loads((place / "config.json").read_text())
    assert load_model(copied).digest == digest


def test_missing_and_misshapen_weights_are_refused_beside_extras(tmp_path, weights):
    wrong = (
        weights | EXTRAS["of ComfyUI"][0] | {"first_stage_model.quant_conv.bias": torch.zeros(7)}
    )
    del wrong["model.diffusion_model.out.0.bias"]
    save_file(wrong, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: .*; 1 misshapen: ") as caught:
        load_model(tmp_path / "a.safetensors")
    assert "unexpected" not in str(caught.value)


def with_attribute(tensor):
    tensor.note = "from a trainer"
    return tensor


BESIDE = {
    "a set": {"a cat", "a dog"},
    "a frozenset": frozenset({1}),
    "an array": np.arange(6.0).reshape(2, 3),
    "an array of texts": np.array(["a", "b"]),
    "numpy's random state": np.random.RandomState(0).get_state(),
    "a defaultdict": collections.defaultdict(list, {"a": [1]}),
    "a shape, a device and a type": [torch.Size([1]), torch.device("cpu"), torch.float16],
    "a parameter with an attribute": with_attribute(torch.nn.Parameter(torch.zeros(2))),
    "a tensor with an attribute": with_attribute(torch.zeros(2)),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_trainers_pickle_beside_the_weights(tmp_path, weights, digest, name, protocol):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": weights, "beside": BESIDE[name]}, path, pickle_protocol=protocol)
    assert load_model(path).digest == digest


def test_weights_that_are_parameters_with_attributes(tmp_path, weights, digest):
    kinds = (torch.nn.Parameter, torch.Tensor.clone)
    kept = {
        name: with_attribute(kinds[n % 2](weight))
        for n, (name, weight) in enumerate(weights.items())
    }
    torch.save(kept, tmp_path / "a.ckpt")
    assert load_model(tmp_path / "a.ckpt").digest == digest


def test_other_objects_are_still_refused(tmp_path, weights):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": weights, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(CheckpointError, match=r"asks for argparse\.Namespace"):
        load_model(path)


def as_torch_did(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def test_format_of_torch_before_1_6(tmp_path, weights, digest):
    """Weights of several types, of odd places, that share a storage, and with training state."""
    conv = "model.diffusion_model.out.2.weight"
    changed = {**weights, conv: weights[conv].to(memory_format=torch.channels_last)}
    whole = torch.cat([torch.zeros(5), weights["model.diffusion_model.out.2.bias"], torch.zeros(5)])
    changed["model.diffusion_model.out.2.bias"] = whole[5:-5]
    state = {
        "state_dict": changed,
        "odd": torch.zeros(3, dtype=torch.uint8),
        "whole": whole,
        "beside": [np.float64(0.5), {"a"}],
        "empty": torch.zeros(0),
    }
    loaded = load_model(as_torch_did(state, tmp_path / "old.ckpt"))
    assert loaded.digest == digest
    assert loaded.provenance.format == "ckpt"


def test_old_format_of_every_type(tmp_path):
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(t): torch.tensor([[0, 1], [1, 0]], dtype=t) for t in types}
    read = read_torch_legacy(MappedFile(as_torch_did(tensors, tmp_path / "old.pt")))
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert torch.equal(read[name].view(), expected)


class Touches:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_old_format_runs_nothing(tmp_path):
    path = as_torch_did({"a": Touches(tmp_path / "it-ran")}, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=r"asks for io\.open"):
        load_model(path)
    assert not (tmp_path / "it-ran").exists()


MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
MACHINE = b"\x80\x02}X\x0d\0\0\0little_endian\x88s."
KEYS = b"\x80\x02]X\x01\0\0\0" + b"0a."
FOUR = (4).to_bytes(8, "little") + bytes(16)


def content(of=None, view=b""):
    """A dict of one tensor; of: its storage. view: the part of it that is meant."""
    said = storage() if of is None else of
    if view:
        said = said.removesuffix(b"tQ") + view + b"tQ"
    return (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + said
        + b"K\x00K\x02\x85K\x01\x85\x89}tRs."
    )  # fmt: skip


VIEW = b"(X\x01\0\0\0vK\x01K\x02t"


def test_old_format_with_a_part_of_a_storage(tmp_path):
    path = tmp_path / "old.ckpt"
    data = FOUR[:12] + bytes([1, 2, 3, 4, 5, 6, 7, 8]) + bytes(4)
    path.write_bytes(MAGIC + VERSION + MACHINE + content(view=VIEW) + KEYS + data)
    read = read_torch_legacy(MappedFile(path))["a"]
    assert bytes(read.view().view(torch.uint8).tolist()) == bytes([1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (MAGIC, "its pickle is damaged"),
        (MAGIC + VERSION, "its pickle is damaged"),
        (MAGIC + b"N." + MACHINE, "a version other than 1001"),
        (MAGIC + VERSION + b"}.", "big-endian"),
        (MAGIC + VERSION + MACHINE + b"].N.", "it holds a list; expected a dict"),
        (MAGIC + VERSION + storage() + b".", "a storage that is not there"),
        (MAGIC + VERSION + MACHINE + content() + b"N." + FOUR, "storage that is not there: '0'"),
        (MAGIC + VERSION + MACHINE + content() + b"]Na." + FOUR, "storage that is not there: None"),
        (MAGIC + VERSION + MACHINE + content() + KEYS + FOUR[:-1], "the file is cut short"),
        (MAGIC + VERSION + MACHINE + content() + KEYS + FOUR[:4], "the file is cut short"),
        (MAGIC + VERSION + MACHINE + content() + KEYS + bytes(24), "has 0 elements, expected 4"),
        (
            MAGIC
            + VERSION
            + MACHINE
            + content(storage(numel="\x8a\x08" + "\x7f" * 8))
            + KEYS
            + FOUR,
            "the file is cut short",
        ),
        (
            MAGIC
            + VERSION
            + MACHINE
            + b"("
            + storage()
            + storage(kind="HalfStorage")
            + b"t."
            + KEYS,
            "describes the storage 0 in two ways",
        ),
        (
            MAGIC + VERSION + MACHINE + content(view=b"(NK\x03K\x02t") + KEYS + FOUR,
            "describes a part of a storage wrongly",
        ),
        (
            MAGIC + VERSION + MACHINE + content(view=b"K\x03") + KEYS + FOUR,
            "describes a part of a storage wrongly",
        ),
    ],
)
def test_damaged_files_of_the_old_format(tmp_path, data, message):
    (tmp_path / "old.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "old.ckpt")


TAESD_DECODER = {"1.weight": torch.zeros(64, 4, 3, 3), "3.conv.0.weight": torch.zeros(64, 64, 3, 3)}
TAESD_ENCODER = {"0.weight": torch.zeros(64, 3, 3, 3), "1.conv.0.weight": torch.zeros(64, 64, 3, 3)}
TINY = {"decoder.layers.0.weight": torch.zeros(64, 4, 3, 3)}


@pytest.mark.parametrize("tensors", [TAESD_DECODER, TAESD_ENCODER, TINY])
def test_taesd_is_told_from_an_autoencoder(tmp_path, folder, tensors):
    torch.save(tensors, tmp_path / "taesd_decoder.pth")
    with pytest.raises(CheckpointError, match="seems to be TAESD, a tiny stand-in for the auto"):
        load_model(folder, vae=tmp_path / "taesd_decoder.pth")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("AutoencoderTiny", "seems to be TAESD, a tiny stand-in for the autoencoder"),
        (
            "ConsistencyDecoderVAE",
            "seems to be an ConsistencyDecoderVAE; expected an AutoencoderKL",
        ),
    ],
)
def test_other_autoencoders_in_a_folder(copied, folder, kind, message):
    config = copied / "vae" / "config.json"
    config.write_text(json.dumps({"_class_name": kind, "latent_channels": 4}))
    for load in (lambda: load_model(copied), lambda: load_model(folder, vae=copied / "vae")):
        with pytest.raises(CheckpointError, match=message):
            load()


def test_fewer_text_layers_than_the_file_has(copied, folder, lines):
    """Clip skip is done so with diffusers: the states of an earlier layer, by the final norm."""
    path = copied / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    peer = type(small_model().text.transformer).from_pretrained(copied / "text_encoder").eval()
    before = len(lines())
    loaded = load_model(copied, dtype="float32", device="cpu")
    assert lines()[before:] == [
        f"{copied}: left out, as no picture depends on it: text layers after 1 (16)"
    ]
    assert loaded.spec.text.layers == 1
    assert loaded.digest != load_model(folder).digest
    ids = loaded.tokenize(["a photo of a cat"])
    with torch.inference_mode():
        expected = peer(ids).last_hidden_state
    assert torch.equal(loaded.encode_tokens(ids), expected)


def test_more_text_layers_than_the_file_has(copied):
    path = copied / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(
        CheckpointError, match=r"16 missing: text_encoder: text_model\.encoder\.layer"
    ):
        load_model(copied)
