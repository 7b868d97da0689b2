"""A model's sizes from the configuration files that come with it.

What a configuration asks for and v1 does not have is an error: such a model would load and draw
wrong pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_core.sampling.schedule import BETA_END, BETA_START, TRAIN_TIMESTEPS
from sd_core.spec import LATENT_FACTOR, ModelSpec, TextSpec, UNetSpec, VAESpec
from sd_core.weights.config_files import Config, read_json, read_yaml
from sd_core.weights.errors import SHOWN, CheckpointError, named, shown
from sd_core.weights.identify import foreign_autoencoder, foreign_unet
from sd_core.weights.validate_sizes import native_size, sized, widths

NATIVE_LATENT = 64  # latent pixels along a side of v1's 512x512 training images


def _require(path: Path, config: Config, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Every setting that is there has one of the values that v1 has."""
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise CheckpointError(
                f"{path}: {key} is {shown(config[key])}; expected {values[0]!r}, as in "
                "Stable Diffusion v1"
            )


def compvis_spec(path: Path, text: TextSpec) -> ModelSpec:
    """Sizes from an original `v1-inference.yaml`, which leaves the text encoder's to be given."""
    try:
        params = read_yaml(path)["model"]["params"]
        unet = params["unet_config"]["params"]
        first_stage = params["first_stage_config"]["params"]
        dd = first_stage["ddconfig"]
        heads = unet.get("num_heads", -1)
        channel_mult = widths(unet["channel_mult"])
        levels = [2**level for level in range(len(channel_mult))]
        _require(path, params, _SCHEDULE_COMPVIS)
        _require(path, unet, {"transformer_depth": (1,), "use_linear_in_transformer": (False,)})
        if heads == -1:
            raise CheckpointError(
                f"{path}: its UNet counts channels per head (num_head_channels), as "
                "Stable Diffusion 2 does; expected num_heads"
            )
        return ModelSpec(
            unet=sized(
                UNetSpec,
                in_channels=unet["in_channels"],
                out_channels=unet["out_channels"],
                channels=unet["model_channels"],
                channel_mult=tuple(channel_mult),
                num_res_blocks=unet["num_res_blocks"],
                attention_levels=tuple(ds in unet["attention_resolutions"] for ds in levels),
                num_heads=heads,
                context_dim=unet["context_dim"],
            ),
            vae=sized(
                VAESpec,
                channels=dd["ch"],
                channel_mult=tuple(widths(dd["ch_mult"])),
                num_res_blocks=dd["num_res_blocks"],
                latent_channels=first_stage["embed_dim"],
                scale_factor=float(params.get("scale_factor", 1.0)),  # 1.0 is the code's default
            ),
            text=text,
            native_size=native_size(params.get("image_size", NATIVE_LATENT), LATENT_FACTOR),
            prediction=_COMPVIS_PREDICTIONS[params.get("parameterization", "eps")],
        )
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{path}: it has no {error}; expected an original v1-inference.yaml"
        ) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: not a v1 model's configuration: {error}") from None


_COMPVIS_PREDICTIONS = {"eps": "epsilon", "v": "v"}
_DIFFUSERS_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""Name of a prediction in the format -> one of `PREDICTIONS`."""

_SCHEDULE_COMPVIS: Mapping[str, tuple[Any, ...]] = {
    "parameterization": tuple(_COMPVIS_PREDICTIONS),
    "timesteps": (TRAIN_TIMESTEPS,),
    "linear_start": (BETA_START,),
    "linear_end": (BETA_END,),
}

_SCHEDULE_DIFFUSERS: Mapping[str, tuple[Any, ...]] = {
    "prediction_type": tuple(_DIFFUSERS_PREDICTIONS),
    "beta_schedule": ("scaled_linear",),
    "beta_start": (BETA_START,),
    "beta_end": (BETA_END,),
    "num_train_timesteps": (TRAIN_TIMESTEPS,),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False, None, True),
}


def diffusers_prediction(path: Path) -> tuple[str, bool, frozenset[str]]:
    """`prediction` and `zero_snr` of `ModelSpec` and `said` of `Checkpoint`, from a
    `scheduler_config.json` with v1's schedule.
    """
    config = read_json(path)
    _require(path, config, _SCHEDULE_DIFFUSERS)
    prediction = _DIFFUSERS_PREDICTIONS[config.get("prediction_type", "epsilon")]
    rescaled = config.get("rescale_betas_zero_snr")
    said = ("prediction",) if rescaled is None else ("prediction", "zero_snr")
    return prediction, bool(rescaled), frozenset(said)


def diffusers_unet(path: Path) -> tuple[UNetSpec, int]:
    """(sizes, native image side in pixels) from `unet/config.json`."""
    config = read_json(path)
    try:
        seems = foreign_unet(config.get("in_channels"), config.get("cross_attention_dim"))
        if seems is not None:
            raise CheckpointError(
                f"{path}: it seems to be {seems}; expected a Stable Diffusion v1 model"
            )
        _require(path, config, _UNET_AS_V1)
        levels = widths(config["block_out_channels"])
        down = config["down_block_types"]
        guidance_dim = config.get("time_cond_proj_dim")
        attends = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
        spec = sized(
            UNetSpec,
            in_channels=config.get("in_channels", 4),
            out_channels=config.get("out_channels", 4),
            channels=levels[0],
            channel_mult=_multipliers(levels),
            num_res_blocks=config.get("layers_per_block", 2),
            attention_levels=tuple(attends[kind] for kind in down),
            num_heads=_heads(config),
            context_dim=config["cross_attention_dim"],
            norm_groups=config.get("norm_num_groups", 32),
            guidance_dim=0 if guidance_dim is None else guidance_dim,
        )
        latent = config.get("sample_size")
        return spec, native_size(NATIVE_LATENT if latent is None else latent, LATENT_FACTOR)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: not the UNet of a v1 model: {error}") from None


_UNET_AS_V1: Mapping[str, tuple[Any, ...]] = {
    "use_linear_projection": (False, None),
    "transformer_layers_per_block": (1, [1, 1, 1, 1]),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "encoder_hid_dim": (None,),
    "dual_cross_attention": (False, None),
    "only_cross_attention": (False, None),
    "resnet_time_scale_shift": ("default",),
    "act_fn": ("silu", "swish"),
    "freq_shift": (0,),
    "flip_sin_to_cos": (True,),
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
}


def _heads(config: Config) -> int:
    """diffusers' `attention_head_dim` is the number of heads in v1's configurations."""
    heads = config.get("num_attention_heads")
    heads = config.get("attention_head_dim", 8) if heads is None else heads
    counts = set(heads) if isinstance(heads, list) else {heads}
    if len(counts) != 1:
        raise ValueError(
            f"its levels have {shown(heads)} attention heads; expected one number for all"
        )
    return counts.pop()


def _multipliers(levels: list[int]) -> tuple[int, ...]:
    if any(width % levels[0] for width in levels):
        raise ValueError(f"block_out_channels {levels} are no multiples of the first")
    return tuple(width // levels[0] for width in levels)


def diffusers_vae(path: Path) -> VAESpec:
    """Sizes from `vae/config.json`; old ones leave the scale factor out, v1's is meant."""
    config = read_json(path)
    seems = foreign_autoencoder(named(str(config.get("_class_name", ""))[:SHOWN]))
    if seems is not None:
        raise CheckpointError(f"{path}: it seems to be {seems}; expected an AutoencoderKL")
    _require(
        path,
        config,
        {
            "act_fn": ("silu", "swish"),
            "shift_factor": (None,),
            "latents_mean": (None,),
            "use_quant_conv": (True,),
            "use_post_quant_conv": (True,),
            "mid_block_add_attention": (True,),
        },
    )
    try:
        levels = widths(config["block_out_channels"])
        return sized(
            VAESpec,
            channels=levels[0],
            channel_mult=_multipliers(levels),
            num_res_blocks=config.get("layers_per_block", 2),
            latent_channels=config.get("latent_channels", 4),
            norm_groups=config.get("norm_num_groups", 32),
            scale_factor=config.get("scaling_factor", VAESpec().scale_factor),
        )
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: not the autoencoder of a v1 model: {error}") from None


def diffusers_text(path: Path) -> TextSpec:
    """Sizes from `text_encoder/config.json`."""
    config = read_json(path)
    config = config.get("text_config", config)
    try:
        return sized(
            TextSpec,
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            vocab_size=config.get("vocab_size", TextSpec().vocab_size),
            length=config.get("max_position_embeddings", TextSpec().length),
            activation=config.get("hidden_act", TextSpec().activation),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: not a CLIP text encoder: no {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a CLIP text encoder: {error}") from None
