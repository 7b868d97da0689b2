"""Map from our parameter names (those of the CompVis files) to those of the diffusers format.

Our names are known from the model, so a file's unknown names are left over and can be reported as
they are.
"""

from __future__ import annotations

import re

_RES_LEAVES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
# diffusers wrote the autoencoder's attention under these names until 0.17, as in the first SD v1
# folders.
_VAE_ATTENTION_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def diffusers_unet_name(name: str, num_res_blocks: int) -> str:
    """A UNet parameter's name in `unet/`. name: ours, as `input_blocks.1.0.in_layers.0.bias`."""
    module, leaf = name.rsplit(".", 1)
    if module in _UNET_ENDS:
        return f"{_UNET_ENDS[module]}.{leaf}"
    block, rest = module.split(".", 1)
    if block == "middle_block":
        index, rest = rest.split(".", 1)
        return f"mid_block.{_UNET_MIDDLE[index]}.{_RES_LEAVES.get(rest, rest)}.{leaf}"
    number, part, rest = rest.split(".", 2)
    if block == "input_blocks":
        level, layer = divmod(int(number) - 1, num_res_blocks + 1)
        place = f"down_blocks.{level}"
        if rest == "op":
            return f"{place}.downsamplers.0.conv.{leaf}"
    else:
        level, layer = divmod(int(number), num_res_blocks + 1)
        place = f"up_blocks.{level}"
        if rest == "conv":
            return f"{place}.upsamplers.0.conv.{leaf}"
    kind = "resnets" if part == "0" else "attentions"
    return f"{place}.{kind}.{layer}.{_RES_LEAVES.get(rest, rest)}.{leaf}"


def diffusers_vae_names(name: str, levels: int) -> tuple[str, ...]:
    """An autoencoder parameter's names in `vae/`: today's, then the one of old folders if another.

    levels: of the autoencoder, whose decoder diffusers numbers from the deepest on.
    """
    name = name.replace("norm_out", "conv_norm_out").replace("nin_shortcut", "conv_shortcut")
    name = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", name)
    name = re.sub(r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"(up_blocks\.\d+)\.block\.", r"\1.resnets.", name)
    name = re.sub(r"(up_blocks\.\d+)\.upsample\.", r"\1.upsamplers.0.", name)
    middle = re.fullmatch(r"(\w+)\.mid\.(\w+)\.(.+)", name)
    if middle is None:
        return (name,)
    half, part, rest = middle.groups()
    place = f"{half}.mid_block.{_VAE_MIDDLE[part]}"
    if part != "attn_1":
        return (f"{place}.{rest}",)
    module, leaf = rest.split(".")
    today = _VAE_ATTENTION[module]
    old = _VAE_ATTENTION_OLD.get(today)
    names = (f"{place}.{today}.{leaf}",)
    return names if old is None else (*names, f"{place}.{old}.{leaf}")


def clip_names(name: str) -> tuple[str, str]:
    """A text parameter's names in files: transformers wrote `text_model.` before version 5."""
    inner = name.removeprefix("transformer.")
    return (f"text_model.{inner}", inner)
