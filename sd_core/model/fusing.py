"""Exchange of the model's blocks for ones of the same parts, whose kernels do more at a time.

Which kernels those are, the rooms of the devices know (`sd_core.cpu`, `sd_core.gpu`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sd_core.model import vae


def exchange_blocks(
    part: nn.Module,
    norm: type[nn.GroupNorm],
    norm_silu: type[nn.GroupNorm],
    blocks: Mapping[type[nn.Module], type[nn.Module]],
) -> None:
    """Make the blocks of a part, the UNet or the autoencoder, others in place; they keep their
    parts and get another `forward`.

    norm: for group norms. norm_silu: for those that a SiLU follows, which is left out then.
    blocks: for all others, by the class that they have.
    """
    for module in part.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1:
            if isinstance(module[0], nn.GroupNorm) and isinstance(module[1], nn.SiLU):
                module[0].__class__ = norm_silu
                module[1] = nn.Identity()
        elif isinstance(module, vae.ResnetBlock):
            module.norm1.__class__ = module.norm2.__class__ = norm_silu
        elif isinstance(module, vae.Encoder | vae.Decoder):
            module.norm_out.__class__ = norm_silu
        elif type(module) is nn.GroupNorm:
            module.__class__ = norm
        if type(module) in blocks:
            module.__class__ = blocks[type(module)]
