"""Changes of weights beside those that LyCORIS makes of the same files."""

from __future__ import annotations

import math

import pytest
import torch
from lycoris import functional as lycoris
from safetensors.torch import save_file
from torch import Tensor

from sd_core.weights.lora.changes import read_changes
from sd_core.weights.lora.names import layers_of
from tests.sd_core.lora_files import lora_file, lora_tensors
from tests.sd_core.small import SMALL

RANK, ALPHA = 4, 3.0

LAYERS = {
    ("text", "transformer.encoder.layers.0.mlp.fc1"): "lora_te_encoder_layers_0_mlp_fc1",
    ("unet", "middle_block.0.in_layers.2"): "lora_unet_middle_block_0_in_layers_2",
    ("unet", "middle_block.1.proj_in"): "lora_unet_middle_block_1_proj_in",
}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape) / 4


def loha(shape: tuple[int, ...], tucker: bool) -> tuple[dict[str, Tensor], Tensor]:
    out, into, *kernel = shape
    cored = tucker and bool(kernel)
    columns = into if cored else into * math.prod(kernel)
    parts = {}
    for half in "12":
        parts[f"hada_w{half}_a"] = draw(RANK, out) if cored else draw(out, RANK)
        parts[f"hada_w{half}_b"] = draw(RANK, columns)
        if cored:
            parts[f"hada_t{half}"] = draw(RANK, RANK, *kernel)
    args = (parts["hada_w1_b"], parts["hada_w1_a"], parts["hada_w2_b"], parts["hada_w2_a"])
    cores = (parts.get("hada_t1"), parts.get("hada_t2"))
    expected = lycoris.loha.diff_weight(*args, *cores, gamma=ALPHA / RANK)
    return parts, expected.reshape(shape)


def lokr(shape: tuple[int, ...], whole: str) -> tuple[dict[str, Tensor], Tensor]:
    """whole: which halves are whole matrices; t for a core in the second."""
    out, into, *kernel = shape
    small, large = (4, 2), (out // 4, into // 2)
    parts: dict[str, Tensor] = {}
    if "1" in whole:
        parts["lokr_w1"] = draw(*small)
    else:
        parts |= {"lokr_w1_a": draw(small[0], RANK), "lokr_w1_b": draw(RANK, small[1])}
    if "2" in whole:
        parts["lokr_w2"] = draw(*large, *kernel)
    elif "t" in whole and kernel:
        parts |= {"lokr_w2_a": draw(RANK, large[0]), "lokr_w2_b": draw(RANK, large[1])}
        parts["lokr_t2"] = draw(RANK, RANK, *kernel)
    else:
        parts |= {
            "lokr_w2_a": draw(large[0], RANK),
            "lokr_w2_b": draw(RANK, large[1] * math.prod(kernel)),
        }
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    given = [parts.get(name) for name in names]
    if given[5] is not None and "lokr_t2" not in parts:
        given[5] = given[5].view(RANK, large[1], *kernel)
    scale = 1.0 if whole == "12" else ALPHA  # over the rank, where there is one
    return parts, lycoris.lokr.diff_weight(*given, gamma=scale).reshape(shape)


MAKERS = {
    "LoHa": lambda shape: loha(shape, False),
    "LoHa, Tucker": lambda shape: loha(shape, True),
    **{
        f"LoKr {whole}": lambda shape, w=whole: lokr(shape, w)
        for whole in ("", "1", "2", "12", "t")
    },
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_change(kind, tmp_path):
    torch.manual_seed(1)
    _, shapes = layers_of(SMALL)
    tensors, expected = {}, {}
    for layer, name in LAYERS.items():
        parts, expected[layer] = MAKERS[kind](shapes[layer])
        tensors |= {f"{name}.{leaf}": part for leaf, part in parts.items()}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, tmp_path / "file.safetensors")
    changes = read_changes(tmp_path / "file.safetensors", SMALL)
    assert changes.keys() == expected.keys()
    for layer, change in changes.items():
        found = change.delta()
        assert found.dtype is torch.float32
        assert (found - expected[layer]).abs().max() <= 1e-6 * max(1, expected[layer].abs().max())


def test_locon_with_lengths_of_rows(tmp_path):
    """DoRA, as LyCORIS weighs rows of the output."""
    path = lora_file(tmp_path, lora_tensors(SMALL, 1, parts="middle_block.0", dora=True))
    for layer, change in read_changes(path, SMALL).items():
        weight = draw(*layers_of(SMALL)[1][layer])
        changed = (weight + change.delta()).flatten(1)
        rows = change.magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
        whole = change.applied(weight, 1.0)
        assert torch.allclose(whole.flatten(1), rows, atol=1e-6)
        half = change.applied(weight, 0.5)
        assert torch.allclose(half, (weight + whole) / 2, atol=1e-6)
