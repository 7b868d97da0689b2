"""Tells by names and shapes alone what an adapter file is for. No torch, as in `names`."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from sd_core.weights.errors import named
from sd_core.weights.lora.names import Shape

NAMED = 3
"""Names of a kind that an error spells out."""

_PARTS = (
    "alpha",
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("diff", "diff_b"),
)
"""Kinds of tensors that every program calls the same."""

_LEAVES = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_mid.weight": "mid",
    "dora_scale": "magnitude",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    **{name: name for name in _PARTS},
}
_ENDS = sorted(_LEAVES, key=len, reverse=True)
_OLD_PROCESSOR = re.compile(r"(.*)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")

_NO_LOW_RANK = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "diff": "differences",
    "diff_b": "differences",
}
_OTHERS = {"oft_blocks": "OFT", "oft_diag": "OFT", "a1.weight": "GLoRA", "on_input": "IA3"}


def split(key: str) -> tuple[str | None, str]:
    """The name of a tensor's layer, which stands before its kind, and the kind: down, up, mid,
    alpha, magnitude, or the name itself of a part of LoHa, LoKr or differences. None where it is of
    no adapter.
    """
    key = key.removeprefix("base_model.model.")
    old = _OLD_PROCESSOR.fullmatch(key)
    if old is not None:
        place, layer, leaf = old.groups()
        place = f"{place}.{'to_out.0' if layer == 'to_out' else layer}"
        return place if place.startswith("unet.") else f"unet.{place}", leaf
    for end in _ENDS:
        if key.endswith(f".{end}"):
            return key.removesuffix(f".{end}"), _LEAVES[end]
    return None, ""


def flaw_of(
    shapes: Mapping[str, Shape], layers: Container[str | None], *, merged: bool = False
) -> str | None:
    """Why a file is no LoRA for a model that has these layers; None if nothing shows it.

    merged: it is to be merged into a model, which those without a low-rank form can be, too.
    shapes: of the file's tensors, by name. layers: by all their names in files; whether the shapes
    fit them is left to `read_lora`.
    """
    seems = _other_kind(shapes, merged=merged)
    if seems is not None:
        return f"it seems to be {seems}"
    unknown = [key for key in shapes if split(key)[0] not in layers]
    if not unknown:
        return None
    listed = ", ".join(named(key) for key in unknown[:NAMED])
    rest = "" if len(unknown) <= NAMED else f" and {len(unknown) - NAMED:,} more"
    return (
        f"{len(unknown):,} of its {len(shapes):,} tensors belong to no layer of a "
        f"Stable Diffusion v1 model that can have a LoRA: {listed}{rest}"
    )


def _other_kind(shapes: Mapping[str, Shape], *, merged: bool) -> str | None:
    """The kind of a file that is no LoRA for Stable Diffusion v1; None where nothing shows it."""
    leaves = {key.rpartition(".")[2] for key in shapes} | {
        ".".join(key.rsplit(".", 2)[1:]) for key in shapes
    }
    if any(key.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for key in shapes):
        return "an adapter for SDXL; expected one for Stable Diffusion v1"
    of_transformers = ("lora_transformer_", "transformer.")
    if any("double_blocks" in key or key.startswith(of_transformers) for key in shapes):
        return "an adapter for Flux or Stable Diffusion 3; expected one for Stable Diffusion v1"
    width = _context_width(shapes)
    if width in (1024, 2048):
        model = "SDXL" if width == 2048 else "Stable Diffusion 2"
        return f"an adapter for {model}; expected one for Stable Diffusion v1"
    for leaf, kind in () if merged else _NO_LOW_RANK.items():
        if leaf in leaves:
            return (
                f"of {kind}, which have no low-rank form, so that no image can have its own; merge "
                "it: in the model list, name: {source: a model, loras: [the file]} is a model"
            )
    for leaf, kind in _OTHERS.items():
        if leaf in leaves:
            return f"of {kind}, which is not supported; expected a LoRA, LoCon or DoRA"
    if not any(split(key)[0] is not None for key in shapes):
        listed = ", ".join(named(key) for key in list(shapes)[:NAMED])
        return f"no LoRA: it holds {listed}" if listed else "no LoRA: it holds nothing"
    return None


def _context_width(shapes: Mapping[str, Shape]) -> int | None:
    """Width of the prompts that an adapter is for, where it has a layer for them."""
    for key, shape in shapes.items():
        place, leaf = split(key)
        matrix = leaf == "down" and len(shape) > 1
        if matrix and place is not None and re.search(r"attn2[._]to_k$", place):
            return shape[1]
    return None
