"""The CLIP text encoder: token ids to the states the UNet attends to.

The transformer is transformers' `CLIPTextModel`, the class the diffusers weights were saved from.
transformers takes longer to import than torch, so only what needs it does so, when it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sd_core.model.adapters import adapters_in, make_adaptable
from sd_core.model.embeddings import make_open
from sd_core.spec import TextSpec

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

Shape = tuple[int, ...]


def clip_config(spec: TextSpec) -> CLIPTextConfig:
    """transformers' configuration of a text tower of these sizes."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        max_position_embeddings=spec.length,
        hidden_act=spec.activation,
        projection_dim=spec.width,
        bos_token_id=spec.vocab_size - 2,
        eos_token_id=spec.vocab_size - 1,
        pad_token_id=spec.vocab_size - 1,
        attn_implementation="sdpa",  # type: ignore[call-arg]  # of every configuration's base
    )


class TextEncoder(nn.Module):
    """(B, 77) int64 token ids -> (B, 77, width): a layer's states, after the final norm."""

    def __init__(self, spec: TextSpec) -> None:
        from transformers import CLIPTextModel

        super().__init__()
        self.spec = spec
        self.transformer = CLIPTextModel(clip_config(spec))
        make_adaptable(self)
        make_open(self.tokens)
        self.adapters = adapters_in(self)

    @property
    def tokens(self) -> nn.Module:
        """The table of tokens' vectors."""
        return self.transformer.embeddings.token_embedding

    def forward(self, ids: Tensor, clip_skip: int = 1) -> Tensor:
        """clip_skip: the layer that is read, 1 being the last, 2 the one before it."""
        if clip_skip == 1:
            return self.transformer(input_ids=ids).last_hidden_state
        states = self.transformer(input_ids=ids, output_hidden_states=True).hidden_states
        return self.transformer.final_layer_norm(states[-clip_skip])


def weight_shapes(spec: TextSpec) -> dict[str, Shape]:
    """The names and shapes of a `TextEncoder`'s weights, told without transformers."""
    width, inner = spec.width, spec.mlp_width
    layers: dict[str, Shape] = {
        **{f"self_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")},
        "layer_norm1": (width,),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
        "layer_norm2": (width,),
    }
    shapes: dict[str, Shape] = {
        "embeddings.token_embedding.weight": (spec.vocab_size, width),
        "embeddings.position_embedding.weight": (spec.length, width),
    }
    places = {
        f"encoder.layers.{number}.{name}": shape
        for number in range(spec.layers)
        for name, shape in layers.items()
    }
    for name, shape in {**places, "final_layer_norm": (width,)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"transformer.{name}": shape for name, shape in shapes.items()}
