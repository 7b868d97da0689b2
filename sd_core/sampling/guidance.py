"""Changes to a guided output as a whole, made of the values of its own image alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Guide(NamedTuple):
    """Changes to the guided output of one evaluation.

    rescale: see `rescale`; 0 is none. thresholding: see `threshold`; 0 is none. clean: weights of
    x and of the model's output in the clean latent that is seen, for thresholding.
    """

    rescale: float
    thresholding: float
    clean: tuple[float, float] | None

    def apply(self, guided: Tensor, given: Tensor, x: Tensor) -> None:
        """Changes `guided` in place. guided, given, x: (4, h, w) outputs of one image with guidance
        and for the prompt alone, and the latents that both are of.
        """
        if self.rescale:
            rescale(guided, given, self.rescale)
        if self.clean is not None:
            of_x, of_output = self.clean
            clean = threshold(of_x * x + of_output * guided, self.thresholding)
            guided.copy_((clean - of_x * x) / of_output)


def rescale(guided: Tensor, given: Tensor, share: float) -> None:
    """Brings the spread of a guided output towards that of the prompt's own, in place (Lin et al.
    2023, sec. 3.4).

    share: 0 (not at all) to 1.
    """
    factor = given.std() / guided.std()
    guided.mul_(share * factor + (1 - share))


def threshold(clean: Tensor, share: float) -> Tensor:
    """Dynamic thresholding of a clean latent (Saharia et al. 2022, sec. 2.3): it is cut off at this
    quantile of its magnitudes, and brought to 1 where that is above.
    """
    most = torch.quantile(clean.abs().flatten(), share).clamp(min=1)
    return clean.clamp(-most, most) / most
