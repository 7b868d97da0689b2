"""CompVis single files, as they are found: Lightning pickles, safetensors, pruned, with EMA."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from sd_core.loading import load_model
from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import ModelSpec
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_single_file, single_file_name, single_file_weights
from tests.sd_core.small import ODD, SMALL, small_model
from tests.sd_core.weights.sparse import write_sparse


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def weights(model):
    return single_file_weights(model)


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    """The model loaded from a plain safetensors file without a spec."""
    path = tmp_path_factory.mktemp("reference") / "model.safetensors"
    save_file(single_file_weights(model), path)
    return load_model(path, device="cpu", dtype="float32")


def assert_same(loaded, model):
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def save_as_lightning(path, state_dict):
    """What `Trainer.save_checkpoint` of the Lightning of 2022 wrote; it need not be installed."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    modules = {
        name: types.ModuleType(name)
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", name)
    }
    modules[name].ModelCheckpoint = callback
    sys.modules.update(modules)
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-4)
    parameter.sum().backward()
    optimizer.step()
    try:
        torch.save(
            {
                "epoch": 6,
                "global_step": 470_000,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": OrderedDict(state_dict),
                "callbacks": {
                    callback: {
                        "monitor": "val/loss_simple_ema",
                        "best_model_score": torch.tensor(0.1),
                        "current_score": np.float64(0.25),
                        "best_model_path": "checkpoints/best.ckpt",
                    }
                },
                "optimizer_states": [optimizer.state_dict()],
                "lr_schedulers": [{"base_lrs": [1e-4], "_last_lr": [np.float32(1e-4)]}],
                "extra": torch.nn.Parameter(torch.zeros(2, 2)),
            },
            path,
        )
    finally:
        for module in modules:
            del sys.modules[module]


def test_safetensors_and_lightning_pickle_hold_the_same_model(model, weights, reference, tmp_path):
    path = tmp_path / "model.ckpt"
    save_as_lightning(path, weights)
    loaded = load_model(path, device="cpu", dtype="float32")
    assert_same(reference, model)
    assert_same(loaded, model)
    assert loaded.spec == reference.spec == SMALL
    assert loaded.digest == reference.digest
    assert (loaded.provenance.format, reference.provenance.format) == ("ckpt", "safetensors")
    assert loaded.provenance.source == str(path)
    assert "pytorch_lightning" not in sys.modules


def test_model_is_ready_for_inference(reference):
    assert not reference.training
    assert not any(p.requires_grad or p.is_meta for p in reference.parameters())
    assert not any(b.is_meta for b in reference.buffers())


EXTRAS = {
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(470_000, dtype=torch.int32),
    "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(32, 4, 3, 3),
    "first_stage_model.loss.logvar": torch.zeros(()),
    "first_stage_model.loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "betas": torch.zeros(1000),
    "alphas_cumprod": torch.zeros(1000),
    "sqrt_recipm1_alphas_cumprod": torch.zeros(1000),
    "logvar": torch.zeros(1000),
}


def test_known_extras_are_skipped(weights, reference, tmp_path):
    save_as_lightning(tmp_path / "full.ckpt", weights | EXTRAS)
    save_file(weights | EXTRAS, tmp_path / "full.safetensors")
    for name in ("full.ckpt", "full.safetensors"):
        assert load_model(tmp_path / name, dtype="float32").digest == reference.digest


def test_text_encoder_named_without_text_model(weights, reference, tmp_path):
    path = tmp_path / "new-names.safetensors"
    save_file({k.replace("text_model.", ""): v for k, v in weights.items()}, path)
    assert load_model(path, dtype="float32").digest == reference.digest


def test_bare_state_dict_under_any_ending(weights, reference, tmp_path):
    torch.save(weights, tmp_path / "bare.bin")
    save_file(weights, tmp_path / "named-wrongly.ckpt")
    for name in ("bare.bin", "named-wrongly.ckpt"):
        assert load_model(tmp_path / name, dtype="float32").digest == reference.digest


def test_half_precision_storage_is_another_digest_and_converts(model, reference, tmp_path):
    path = tmp_path / "half.safetensors"
    save_single_file(model, path, dtype=torch.float16)
    loaded = load_model(path, dtype="float32")
    assert loaded.dtype == torch.float32
    assert_same(loaded, small_model().to(torch.float16).to(torch.float32))
    assert loaded.digest != reference.digest


def test_half_precisions_convert_into_each_other_as_torch_does(model, tmp_path):
    """What one of them cannot hold, too: subnormal, infinite, and in between."""
    stored = single_file_weights(model)
    name = "first_stage_model.encoder.conv_in.bias"
    odd = torch.tensor([6e-8, -6e-5, 65504.0, -65504.0, torch.inf, 1.00390625, 0.0, -0.0])
    stored[name] = odd.repeat(len(stored[name]) // len(odd) + 1)[: len(stored[name])]
    for source, target in (
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
    ):
        rounded = {key: tensor.to(source) for key, tensor in stored.items()}
        save_file(rounded, tmp_path / "model.safetensors")
        loaded = load_model(tmp_path / "model.safetensors", device="cpu", dtype=target)
        for key, tensor in single_file_weights(loaded).items():
            assert torch.equal(tensor, rounded[key].to(target)), key


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_digest_does_not_depend_on_the_type_it_runs_in(model, reference, tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    save_single_file(model, path)
    loaded = load_model(path, dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype)
    assert_same(loaded, small_model().to(loaded.dtype))
    assert loaded.digest == reference.digest


def test_strided_and_shared_tensors_of_a_pickle(weights, reference, tmp_path):
    """A storage may be wider than its tensor, and channels-last weights are saved with strides."""
    changed = dict(weights)
    conv, norm = "model.diffusion_model.out.2.weight", "model.diffusion_model.out.0.weight"
    changed[conv] = weights[conv].to(memory_format=torch.channels_last)
    changed[norm] = torch.cat([torch.zeros(5), weights[norm], torch.zeros(5)])[5:-5]
    assert changed[norm].storage_offset() == 5
    torch.save({"state_dict": changed}, tmp_path / "strided.ckpt")
    assert load_model(tmp_path / "strided.ckpt", dtype="float32").digest == reference.digest


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_own_files_carry_what_shapes_do_not_tell(tmp_path, ending):
    model = small_model(ODD)
    path = tmp_path / f"odd.{ending}"
    save_single_file(model, path)
    loaded = load_model(path, dtype="float32")
    assert loaded.spec == ODD
    assert_same(loaded, model)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_export_names_the_endings_it_knows(model, tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.safetensors or \.ckpt"):
        save_single_file(model, tmp_path / "model.pt")


def original_config(spec, **changes):
    """A `v1-inference.yaml` laid out as the original, with another model's sizes."""
    levels = range(len(spec.unet.channel_mult))
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "num_timesteps_cond": 1,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": spec.native_size // 8,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": spec.vae.scale_factor,
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": spec.unet.channels,
                "attention_resolutions": [2**n for n in levels if spec.unet.attention_levels[n]],
                "num_res_blocks": spec.unet.num_res_blocks,
                "channel_mult": list(spec.unet.channel_mult),
                "num_heads": spec.unet.num_heads,
                "use_spatial_transformer": True,
                "transformer_depth": 1,
                "context_dim": spec.unet.context_dim,
                "use_checkpoint": True,
                "legacy": False,
            },
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4,
                "monitor": "val/rec_loss",
                "ddconfig": {
                    "double_z": True,
                    "z_channels": 4,
                    "resolution": 256,
                    "in_channels": 3,
                    "out_ch": 3,
                    "ch": spec.vae.channels,
                    "ch_mult": list(spec.vae.channel_mult),
                    "num_res_blocks": spec.vae.num_res_blocks,
                    "attn_resolutions": [],
                    "dropout": 0.0,
                },
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    return yaml.safe_dump(
        {
            "model": {
                "base_learning_rate": 1.0e-04,
                "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
                "params": params | changes,
            }
        }
    )


def test_original_config_tells_sizes(weights, reference, tmp_path):
    spec = dataclasses.replace(
        SMALL,
        unet=dataclasses.replace(SMALL.unet, num_heads=4),
        vae=dataclasses.replace(SMALL.vae, scale_factor=0.25),
        native_size=256,
    )
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "v1-inference.yaml").write_text(original_config(spec))
    loaded = load_model(
        tmp_path / "model.safetensors", dtype="float32", config=tmp_path / "v1-inference.yaml"
    )
    assert loaded.spec == spec
    assert loaded.unet.input_blocks[1][1].transformer_blocks[0].attn1.heads == 4
    assert loaded.digest != reference.digest  # the same weights, but another model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (original_config(SMALL, parameterization="x0"), "parameterization is 'x0'; expected 'eps'"),
        (original_config(SMALL, linear_end=0.02), "linear_end is 0.02; expected 0.012"),
        (
            original_config(SMALL, unet_config={"params": {"channel_mult": [1]}}),
            "num_head_channels",
        ),
        ("model: {params: {}}", "it has no 'unet_config'"),
        ("just a text", "not a v1 model's configuration"),
        ("a: [1", "not valid YAML"),
        ("[" * 10_000, "not a v1 model's configuration"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (None, "no such file"),
    ],
)
def test_bad_config(weights, tmp_path, text, message):
    save_file(weights, tmp_path / "model.safetensors")
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(tmp_path / "model.safetensors", config=config)
    assert str(config) in str(caught.value)


def change(weights, *, drop=(), add=()):
    kept = {name: tensor for name, tensor in weights.items() if name not in drop}
    return kept | {name: torch.zeros(3) for name in add}


def test_every_wrong_weight_is_named(model, weights, tmp_path):
    path = tmp_path / "wrong.safetensors"
    wrong = change(
        weights,
        drop=("model.diffusion_model.out.0.bias", "first_stage_model.decoder.norm_out.weight"),
        add=("model.diffusion_model.extra.weight", "surprise"),
    )
    wrong["first_stage_model.quant_conv.bias"] = torch.zeros(7)
    wrong["model.diffusion_model.out.2.bias"] = torch.zeros(4, dtype=torch.int64)
    save_file(wrong, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: its weights do not fit the model: ")
    assert (
        "2 missing: model.diffusion_model.out.0.bias, first_stage_model.decoder.norm_out.weight"
        in message
    )
    assert "2 unexpected: surprise, model.diffusion_model.extra.weight" in message
    assert "first_stage_model.quant_conv.bias is (7,), expected (8,)" in message
    assert (
        "model.diffusion_model.out.2.bias is stored as torch.int64, expected a floating" in message
    )


def test_many_wrong_weights_are_counted(weights, tmp_path):
    path = tmp_path / "wrong.ckpt"
    torch.save(change(weights, add=[f"surprise.{n}" for n in range(1000)]), path)
    with pytest.raises(CheckpointError, match=r"1000 unexpected: .* and 990 more") as caught:
        load_model(path)
    assert len(str(caught.value)) < 1000


def test_missing_weight_that_tells_a_size(tmp_path):
    """The file is compared with v1 itself, so what is wrong is still named exactly."""
    path = tmp_path / "wrong.safetensors"
    with torch.device("meta"):
        state = LatentDiffusion(ModelSpec()).state_dict()
    shapes = {single_file_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    del shapes["first_stage_model.encoder.conv_in.weight"]
    write_sparse(path, shapes)
    with pytest.raises(CheckpointError, match=r"no sound encoder\.conv_in\.weight") as caught:
        load_model(path)
    problems = str(caught.value).split(": ", 2)[2]
    assert problems == "1 missing: first_stage_model.encoder.conv_in.weight"


def test_widths_that_fit_no_model(weights, tmp_path):
    path = tmp_path / "wrong.safetensors"
    wrong = dict(weights)
    wrong["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(20, 4, 3, 3)
    save_file(wrong, path)
    with pytest.raises(CheckpointError, match="level widths"):
        load_model(path)


def test_file_changed_after_loading_leaves_the_model_alone(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_single_file(model, path)
    loaded = load_model(path, dtype="float32")
    path.write_bytes(b"")
    assert_same(loaded, model)


@pytest.fixture(scope="module")
def other():
    return small_model(seed=1)


def test_vae_of_another_file(model, other, tmp_path):
    """Bare names with training leftovers, as the fine-tuned autoencoders are published."""
    save_single_file(model, tmp_path / "model.safetensors")
    save_single_file(other, tmp_path / "other.safetensors")
    vae = other.vae.state_dict()
    torch.save(
        {"state_dict": vae | {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}},
        tmp_path / "vae.ckpt",
    )
    for source in ("other.safetensors", "vae.ckpt"):
        loaded = load_model(tmp_path / "model.safetensors", dtype="float32", vae=tmp_path / source)
        assert torch.equal(loaded.unet.out[2].weight, model.unet.out[2].weight)
        for name, tensor in loaded.vae.state_dict().items():
            assert torch.equal(tensor, vae[name])
        assert loaded.spec == SMALL
        assert loaded.provenance.vae == str(tmp_path / source)
        assert loaded.digest != load_model(tmp_path / "model.safetensors").digest


def test_vae_errors(model, weights, tmp_path):
    save_single_file(model, tmp_path / "model.safetensors")
    vae = model.vae.state_dict()
    save_file(model.unet.state_dict(), tmp_path / "unet.safetensors")
    save_file(change(vae, drop=["decoder.norm_out.bias"]), tmp_path / "part.safetensors")
    for name, message in (
        ("unet.safetensors", "seems to be a UNet alone; expected an autoencoder"),
        ("part.safetensors", "1 missing: vae: decoder.norm_out.bias"),
        ("none.safetensors", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / "model.safetensors", vae=tmp_path / name)


def test_pickle_module_is_not_needed_to_read(weights, reference, tmp_path, monkeypatch):
    """Reading goes through no unpickler at all, Python's or torch's."""
    save_as_lightning(tmp_path / "model.ckpt", weights)

    def refuse(*_, **__):
        raise AssertionError("an unpickler was used")

    for where, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(where, name, refuse)
    assert load_model(tmp_path / "model.ckpt", dtype="float32").digest == reference.digest
