"""A file that is no Stable Diffusion v1 model says what it seems to be."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sd_core.loading import load_model
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import save_diffusers, save_single_file, single_file_weights
from tests.sd_core.small import small_model
from tests.sd_core.weights.sparse import write_sparse

UNET = "model.diffusion_model."
FIRST = UNET + "input_blocks.0.0.weight"
CONTEXT = UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
TEXT = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
VAE = "first_stage_model.encoder.conv_in.weight"
V1 = {FIRST: (320, 4, 3, 3), CONTEXT: (1280, 768), TEXT: (49408, 768), VAE: (128, 3, 3, 3)}

BY_WEIGHTS = {
    "a Stable Diffusion XL model": V1
    | {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,)},
    "a Stable Diffusion 2 model": V1 | {CONTEXT: (1280, 1024)},
    "a Stable Diffusion 2 model ": V1 | {"cond_stage_model.model.ln_final.bias": (1024,)},
    "a transformer model": {UNET + "joint_blocks.0.x_block.attn.qkv.weight": (3, 3)},
    "a transformer model ": {"double_blocks.0.img_attn.proj.weight": (3, 3)},
    "an inpainting model": V1 | {FIRST: (320, 9, 3, 3)},
    "an image editing or upscaling model": V1 | {FIRST: (320, 8, 3, 3)},
    "a depth-guided model": V1 | {FIRST: (320, 5, 3, 3)},
    "a LoRA": {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (320, 4)},
    "a LoRA, a small": {"unet.down_blocks.0.attentions.0.to_k.lora_A.weight": (4, 320)},
    "a textual inversion embedding": {"emb_params": (4, 768)},
    "a textual inversion embedding ": {"<cat-toy>": (768,)},
    "a ControlNet with": V1 | {"control_model.zero_convs.0.0.weight": (320, 320, 1, 1)},
    "a ControlNet": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "an autoencoder (VAE) alone; pass it as vae=": {"decoder.conv_in.weight": (512, 4, 3, 3)},
    "an autoencoder (VAE) alone; ": {VAE: (128, 3, 3, 3)},
    "TAESD, a tiny stand-in": {"taesd_decoder.1.weight": (64, 4, 3, 3)},
    "TAESD, a tiny stand-in ": {"decoder.layers.0.weight": (64, 4, 3, 3)},
    "a UNet alone": {"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
    "a UNet alone;": {"input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a text encoder alone": {"text_model.embeddings.token_embedding.weight": (49408, 768)},
    "the EMA copies of a training run": {"model_ema.diffusion_modelout0bias": (320,)},
    "a model without its text encoder": {FIRST: (320, 4, 3, 3), VAE: (128, 3, 3, 3)},
    "a model without its autoencoder": {FIRST: (320, 4, 3, 3), TEXT: (49408, 768)},
    "the weights of another kind of model (bert.a, bert.b)": {"bert.a": (2,), "bert.b": (2,)},
    "the weights of another kind of model (none at all)": {},
}


@pytest.mark.parametrize("seems", BY_WEIGHTS)
def test_weights_of_something_else(tmp_path, seems):
    path = tmp_path / "model.safetensors"
    write_sparse(path, BY_WEIGHTS[seems])
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: it seems to be {seems.rstrip(' ;')}")
    assert "expected a whole Stable Diffusion v1 model" in str(caught.value)


def test_textual_inversion_pickle(tmp_path):
    path = tmp_path / "style.pt"
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)}}
    torch.save({**content, "name": "style", "step": 500}, path)
    with pytest.raises(CheckpointError, match="seems to be a textual inversion embedding"):
        load_model(path)


BY_BYTES = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 42\n",
    "an HTML page": b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>",
    "a JSON text": b'{"error": "Access denied"}',
    "a text file": "Not the model; ünïcode".encode(),
    "nothing but zeros": b"\0" * 5000,
    "a GGUF model": b"GGUF\x03\0\0\0",
    "a PNG image": b"\x89PNG\r\n\x1a\n",
    "an unknown binary format": b"\x93\xff\x00\x12" * 64,
    "a bare pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("seems", BY_BYTES)
def test_bytes_of_something_else(tmp_path, seems):
    path = tmp_path / "model.ckpt"
    path.write_bytes(BY_BYTES[seems])
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: it seems to be {seems}")


def test_paths_without_a_file(tmp_path, monkeypatch):
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "some.ckpt").write_bytes(b"x")
    for name, message in (
        ("none.ckpt", "no such file; expected model weights"),
        ("empty.ckpt", "the file is empty; expected model weights"),
        ("empty.ckpt/below", "cannot be read: Not a directory"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / name)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        load_model(tmp_path / "some.ckpt")


def test_paths_below_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_single_file(small_model(), tmp_path / "a.safetensors")
    digest = load_model(tmp_path / "a.safetensors").digest
    loaded = load_model("~/a.safetensors")
    assert (loaded.digest, loaded.provenance.source) == (digest, "~/a.safetensors")
    assert load_model("~/a.safetensors", vae="~/a.safetensors").digest == digest
    (tmp_path / "c.yaml").write_text("model: {params: {}}")
    for source, options, message in (
        ("~/b.ckpt", {}, "^~/b.ckpt: no such file; expected model weights$"),
        ("~/a.safetensors", {"vae": "~/b.ckpt"}, "^~/b.ckpt: no such file"),
        ("~/a.safetensors", {"config": "~/b.yaml"}, "no such file; expected a model conf"),
        ("~/a.safetensors", {"config": "~/c.yaml"}, "it has no 'unet_config'"),
        ("~nobody-of-this-name/b.ckpt", {}, "home that ~nobody-of-this-name stands for is not kno"),
        ("~b.ckpt", {}, "^~b.ckpt: no such file"),
        ("a\0b", {}, "no such file"),
        ("a" * 1000, {}, "cannot be read: File name too long"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(source, **options)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("runwayml/stable-diffusion-v1-5", "hf:runwayml/stable-diffusion-v1-5"),
        ("owner/name@v1.4", "hf:owner/name@v1.4"),
        ("lists/runwayml/stable-diffusion-v1-5", "hf:runwayml/stable-diffusion-v1-5"),
        ("lists/sd15", "hf:lists/sd15"),
        ("here/lists/sd15", None),
        ("runwayml/model.safetensors", None),
        ("name", None),
        ("a b/c", None),
    ],
)
def test_names_of_the_hub_without_its_prefix(tmp_path, monkeypatch, folder, source, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "lists").mkdir(parents=True)
    for options in ({}, {"vae": source}):
        with pytest.raises(CheckpointError) as caught:
            load_model(folder if options else source, **options)
        said = f"; a model of the Hugging Face hub is written {hint}" if hint else ""
        assert str(caught.value) == f"{source}: no such file; expected model weights{said}"


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "old.ckpt"])
def test_truncated_download(tmp_path, name, kept):
    path = tmp_path / name
    if name == "old.ckpt":
        weights = single_file_weights(small_model(), torch.float16)
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    else:
        save_single_file(small_model(), path, dtype=torch.float16)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * kept))
    with pytest.raises(CheckpointError, match="the file is cut short"):
        load_model(path)


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "not valid JSON"),
        (b"{" + b"\xff" * 8, "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, "not valid JSON"),
        ({"__metadata__": [1]}, "header is damaged"),
        ({"a": "text"}, "describes 'a' wrongly"),
        ({"a": F32 | {"shape": [-2]}}, "describes 'a' wrongly"),
        ({"a": F32 | {"shape": 2}}, "describes 'a' wrongly"),
        ({"a": F32 | {"data_offsets": [-8, 0]}}, "describes 'a' wrongly"),
        ({"a": F32 | {"data_offsets": [0, 8, 16]}}, "describes 'a' wrongly"),
        ({"a": F32 | {"dtype": "F7"}}, "a is stored as F7; expected one of F64"),
        ({"a": F32 | {"dtype": []}}, "describes 'a' wrongly"),
        ({"a": F32 | {"shape": [3]}}, "cannot take 8 bytes"),
        ({"a": F32 | {"data_offsets": [8, 16]}}, "cut short"),
    ],
)
def test_damaged_safetensors(tmp_path, header, message):
    path = tmp_path / "model.safetensors"
    write_header(path, header, data=b"\0" * 8)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


@pytest.mark.parametrize("spec", ["{}", "[]", "no json", '{"unet": {"heads": 3}}'])
def test_damaged_spec(tmp_path, spec):
    path = tmp_path / "model.safetensors"
    tensors = {name: torch.zeros(1) for name in V1}
    save_file(tensors, path, metadata={"sdbatch.spec": spec})
    with pytest.raises(CheckpointError, match="its sizes are not those of a v1 model"):
        load_model(path)


def test_zip_archives_that_torch_did_not_save(tmp_path):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(CheckpointError, match="none that torch saved"):
        load_model(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers")
    save_diffusers(small_model(), path, dtype=torch.float16)
    return path


@pytest.fixture
def changed(folder, tmp_path):
    """A function that copies the folder with one JSON file changed."""

    def change(name, **values):
        for path in folder.rglob("*"):
            target = tmp_path / path.relative_to(folder)
            if path.is_dir():
                target.mkdir()
            else:
                target.hardlink_to(path)
        old = json.loads((folder / name).read_text())
        (tmp_path / name).unlink()
        new = {k: v for k, v in (old | values).items() if v != "DROP"}
        (tmp_path / name).write_text(json.dumps(new))
        return tmp_path

    return change


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "Diffusion XL model"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "seems to be a Flux model"),
        ("model_index.json", {"unet": "DROP", "vae": [None]}, "Pipeline without unet"),
        ("unet/config.json", {"use_linear_projection": True}, "use_linear_projection is True"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("unet/config.json", {"attention_head_dim": [5, 10, 20, 20]}, "expected one number"),
        ("unet/config.json", {"block_out_channels": [32, 48]}, "no multiples of the first"),
        ("unet/config.json", {"block_out_channels": "DROP"}, "not the UNet of a v1 model"),
        ("unet/config.json", {"down_block_types": ["X"]}, "not the UNet of a v1 model: 'X'"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "a Stable Diffusion 2 model"),
        ("unet/config.json", {"cross_attention_dim": 512}, "do not go together"),
        ("unet/config.json", {"in_channels": 9}, "an inpainting model"),
        ("unet/config.json", {"layers_per_block": "x"}, "num_res_blocks is 'x'; expected a number"),
        ("unet/config.json", {"out_channels": True}, "out_channels is True; expected a number"),
        ("unet/config.json", {"block_out_channels": [0, 0, 0, 0]}, "not the UNet of a v1 model"),
        ("unet/config.json", {"attention_head_dim": 0}, "not the UNet of a v1 model"),
        ("unet/config.json", {"norm_num_groups": -1}, "norm_groups is -1; expected a number"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "is nan; expected a number above 0"),
        ("vae/config.json", {"block_out_channels": []}, "not the autoencoder of a v1 model"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "expected .* within 1 to 100"),
        ("text_encoder/config.json", {"hidden_act": None}, "expected one of quick_gelu, gelu"),
        ("text_encoder/config.json", {"num_attention_heads": 3}, "not divide into 3 heads"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor is 0.1; expected None"),
        ("vae/config.json", {"block_out_channels": [32, 64]}, "only f=8"),
        ("vae/config.json", {"norm_num_groups": 7}, "no model can have these sizes"),
        ("text_encoder/config.json", {"hidden_size": "DROP"}, "no 'hidden_size'"),
        ("text_encoder/config.json", {"vocab_size": 1000}, "expected CLIP's 77 tokens of 49408"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type is 'sample'; expected 'epsilon'",
        ),
    ],
)
def test_folder_of_another_model(changed, name, values, message):
    with pytest.raises(CheckpointError, match=message):
        load_model(changed(name, **values))


def test_folders_that_are_no_pipeline(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "v1-5.safetensors").touch()
    for path, message in (
        (tmp_path / "empty", "no diffusers folder; expected model_index.json in it"),
        (tmp_path / "single", "it holds v1-5.safetensors, which can be loaded itself"),
        (folder / "unet", "one component of a model, not the whole"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(path)


def test_folder_with_files_missing(changed):
    path = changed("unet/config.json")
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet: no weights in it; expected diffusion_pyt"):
        load_model(path)
    (path / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_model(path)
    (path / "vae" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object, it is a list"):
        load_model(path)
    (path / "vae" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_model(path)


@pytest.mark.parametrize("weight_map", [{"a": "../../secret.safetensors"}, {}, []])
def test_bad_shard_index(changed, weight_map):
    path = changed("unet/config.json")
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"expected files in its own folder|no weight_map"):
        load_model(path)


def test_missing_demo(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(CheckpointError, match=r"demo\.safetensors, are missing"):
        load_model("demo")


def test_config_goes_with_single_files_only(folder):
    with pytest.raises(CheckpointError, match="goes with a single file"):
        load_model(folder, config="v1-inference.yaml")
