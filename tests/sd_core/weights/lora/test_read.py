"""Adapter files under every name that people have, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from sd_core.cpu.packing import can_pack
from sd_core.cpu.plain_weight import plain_weight
from sd_core.execution import make_ready
from sd_core.weights.errors import CheckpointError
from sd_core.weights.key_map import clip_names, diffusers_unet_name
from sd_core.weights.lora.names import layers_of
from sd_core.weights.lora.read import LoraFile, read_lora
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import ODD, SMALL, small_model

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"


PACKED = [("packed", "float32")]
if can_pack(torch.device("cpu"), torch.bfloat16):
    PACKED += [("packed", "bfloat16"), ("auto", "bfloat16")]


def same(one: LoraFile, other: LoraFile) -> bool:
    return all(
        mine.keys() == theirs.keys()
        and all(
            torch.equal(mine[name].down, theirs[name].down)
            and torch.equal(mine[name].up, theirs[name].up)
            and mine[name].scale == theirs[name].scale
            for name in mine
        )
        for mine, theirs in ((one.unet, other.unet), (one.text, other.text))
    )


def named_as_diffusers(component: str, name: str) -> str:
    if component == "text":
        return f"text_encoder.{clip_names(name)[0]}"
    theirs = diffusers_unet_name(f"{name}.weight", ODD.unet.num_res_blocks)
    return f"unet.{theirs.removesuffix('.weight')}"


def test_every_layer_under_the_names_of_kohya_and_of_diffusers(tmp_path):
    of_compvis = lora_tensors(ODD, 1)
    kohya, peft, old = {}, {}, {}
    for component, name in layers_of(ODD)[1]:
        ours = ("lora_unet_" if component == "unet" else "lora_te_") + name.removeprefix(
            "transformer."
        ).replace(".", "_")
        theirs = named_as_diffusers(component, name)
        mangled = theirs.replace("text_encoder", "lora_te").replace("unet.", "lora_unet_", 1)
        down, up = (of_compvis[f"{ours}.lora_{half}.weight"] for half in ("down", "up"))
        kohya |= {
            f"{mangled.replace('.', '_')}.{leaf}": of_compvis[f"{ours}.{leaf}"]
            for leaf in ("lora_down.weight", "lora_up.weight", "alpha")
        }
        halved = up / 2  # there is no alpha
        peft |= {f"{theirs}.lora_A.weight": down, f"{theirs}.lora_B.weight": halved}
        old |= {f"{theirs}.lora.down.weight": down, f"{theirs}.lora.up.weight": halved}
    found = [
        read_lora(lora_file(tmp_path, tensors, str(n)), ODD)
        for n, tensors in enumerate((of_compvis, kohya, peft, old))
    ]
    assert len(found[0].unet) + len(found[0].text) == len(layers_of(ODD)[1])
    assert same(found[0], found[1])
    assert same(found[2], found[3])
    for name, layer in found[0].unet.items():
        assert torch.equal(layer.scale * layer.up, found[2].unet[name].up)


def test_pickled_files_and_attention_processors(tmp_path):
    tensors = {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight": (
            torch.randn(4, 48)
        ),
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight": (
            torch.randn(48, 4)
        ),
    }
    torch.save(tensors, tmp_path / "old.bin")
    (name,) = read_lora(tmp_path / "old.bin", ODD).unet
    assert name.endswith("attn2.to_out.0")


def test_a_kernel_between_two_products_is_part_of_the_first(tmp_path):
    down, mid, up = torch.randn(4, 24, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(24, 4, 1, 1)
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_mid.weight": mid,
        f"{layer}.lora_up.weight": up,
    }
    (found,) = read_lora(lora_file(tmp_path, tensors), ODD).unet.values()
    x = torch.randn(1, 24, 8, 8)
    chain = torch.nn.functional.conv2d
    expected = chain(chain(chain(x, down), mid, padding=1), up)
    own = chain(chain(x, found.down, padding=1), found.up[..., None, None])
    assert (own - expected).abs().max() < 1e-6 * expected.abs().max() * 24  # channels


WRONG = {
    "SDXL": ({"lora_te1_x.lora_down.weight": (4, 8)}, "an adapter for SDXL"),
    "SD 2": ({f"unet.{ATTENTION[:-1]}k.lora_A.weight": (4, 1024)}, "Stable Diffusion 2"),
    "Flux": ({"lora_transformer_x.lora_down.weight": (4, 8)}, "Flux or Stable Diffusion 3"),
    "LoHa": ({"lora_unet_x.hada_w1_a": (4, 8)}, "of LoHa"),
    "no LoRA": ({"emb_params": (1, 48)}, "no LoRA: it holds emb_params"),
    "unknown": (
        {f"unet.{ATTENTION}.lora_A.weight": (4, 48), "unet.nose.lora_A.weight": (4, 48)},
        "1 of its 2 tensors belong to no layer .* unet.nose",
    ),
    "half": ({f"unet.{ATTENTION}.lora_A.weight": (4, 48)}, "its up half is missing"),
    "a vector": (
        {f"unet.{ATTENTION}.lora_A.weight": (4, 48), f"unet.{ATTENTION}.lora_B.weight": (48,)},
        r"found \(4, 48\) and \(48,\); expected a rank",
    ),
    "a vector for the prompt": (
        {f"unet.{ATTENTION[:-1]}k.lora_A.weight": (48,)},
        "its up half is missing",
    ),
    "no number": (
        {f"unet.{ATTENTION}.lora_A.weight": (), f"unet.{ATTENTION}.lora_B.weight": ()},
        "expected a rank",
    ),
    "twice": (
        {f"unet.{ATTENTION}.lora_A.weight": (4, 48), f"unet.{ATTENTION}.lora.down.weight": (4, 48)},
        "is there twice, by another name",
    ),
    "no rank": (
        {f"unet.{ATTENTION}.lora_A.weight": (0, 48), f"unet.{ATTENTION}.lora_B.weight": (48, 0)},
        "expected a rank of 1",
    ),
    "shape": (
        {f"unet.{ATTENTION}.lora_A.weight": (4, 48), f"unet.{ATTENTION}.lora_B.weight": (40, 4)},
        r"found \(4, 48\) and \(40, 4\); expected a rank",
    ),
}


@pytest.mark.parametrize(("shapes", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_adapter_of_this_model_says_what_it_is(tmp_path, shapes, words):
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=words):
        read_lora(lora_file(tmp_path, tensors), ODD)


def test_what_peft_says_of_the_scale(tmp_path):
    tensors = {}
    for layer in (ATTENTION, ATTENTION.replace("to_q", "to_out.0")):
        tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(4, 48)
        tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(48, 4)
    config = {"unet.lora_alpha": 8, "unet.alpha_pattern": {ATTENTION: 2}, "unet.r": 4}
    for rslora, scales in ((False, {0.5, 2.0}), (True, {1.0, 4.0})):
        text = json.dumps(config | {"unet.use_rslora": rslora})
        save_file(tensors, tmp_path / "peft.safetensors", {"lora_adapter_metadata": text})
        found = read_lora(tmp_path / "peft.safetensors", ODD).unet
        assert {layer.scale for layer in found.values()} == scales
        assert min(found, key=lambda name: found[name].scale).endswith("to_q")
    for damaged in ("{", "[]", '{"unet.lora_alpha": "many"}'):
        save_file(tensors, tmp_path / "peft.safetensors", {"lora_adapter_metadata": damaged})
        with pytest.raises(CheckpointError, match="lora_adapter_metadata cannot be read"):
            read_lora(tmp_path / "peft.safetensors", ODD)


def test_tensors_that_share_their_memory(tmp_path):
    """A small file would describe more than there is room for."""
    shared = torch.randn(4, 48)
    names = [f"unet.{ATTENTION}.lora_A.weight", *(f"unet.x{n}.lora_A.weight" for n in range(99))]
    torch.save(dict.fromkeys(names, shared), tmp_path / "shared.bin")
    with pytest.raises(CheckpointError, match="share their memory"):
        read_lora(tmp_path / "shared.bin", ODD)


def test_numbers_that_are_not_finite(tmp_path):
    tensors = lora_tensors(ODD, 1, parts="attn2.to_q")
    tensors[next(iter(tensors))][0, 0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        read_lora(tmp_path / "nan.safetensors", ODD)


@pytest.mark.parametrize("way", PACKED, ids=str)
@pytest.mark.parametrize("spec", [ODD, SMALL], ids=["odd", "small"])
def test_weights_that_were_laid_out_come_back(spec, way):
    execution, dtype = way
    plain = small_model(spec).to(getattr(torch, dtype))
    packed = make_ready(small_model(spec).to(getattr(torch, dtype)), execution)
    for name in plain.unet.adapters:
        layer = plain.unet.get_submodule(name)
        weight, bias = plain_weight(packed.unet, name)
        error = 0.0 if dtype == "float32" else 2**-6  # Winograd's form is rounded once more
        largest = layer.weight.abs().max().item()
        torch.testing.assert_close(
            weight.float(), layer.weight.float(), rtol=0, atol=error * largest, msg=name
        )
        assert (bias is None) == (layer.bias is None)
        assert bias is None or torch.equal(bias, layer.bias)
