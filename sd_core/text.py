"""The CLIP text encoder: token ids to the states the UNet attends to.

The transformer is transformers' `CLIPTextModel`, the class the diffusers weights were saved from.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sd_core.spec import TextSpec


def clip_config(spec: TextSpec) -> CLIPTextConfig:
    """transformers' configuration of a text tower of these sizes."""
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
    """(B, 77) int64 token ids -> (B, 77, width): the last layer after the final norm."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.spec = spec
        self.transformer = CLIPTextModel(clip_config(spec))

    def forward(self, ids: Tensor) -> Tensor:
        return self.transformer(input_ids=ids).last_hidden_state
