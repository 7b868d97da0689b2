"""Changes to a guided output as a whole, made of the values of its own image alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.setting_texts import Projection


class Guide(NamedTuple):
    """Changes to the guided output of one evaluation.

    rescale: see `rescale`; 0 is none. thresholding: see `threshold`; 0 is none. projection: see
    `project`; None is none. guidance: the scale, for projection, else 1. clean: weights of x and of
    the model's output in the clean latent that is seen, for thresholding and projection.
    """

    rescale: float
    thresholding: float
    projection: Projection | None
    guidance: float
    clean: tuple[float, float] | None

    def project(
        self, given: Tensor, without: Tensor, x: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The guided output and the difference that was projected in it; None where none is.

        given, without, x: (4, h, w) outputs for the prompt and the negative prompt, and the latents
        that both are of. before: the difference of the evaluation before, which momentum reads;
        zeros at first.
        """
        if self.projection is None or self.clean is None:
            return None
        of_x, of_output = self.clean
        difference = of_output * (given - without)
        if self.projection.momentum:
            difference = before * self.projection.momentum + difference
        update = project(of_x * x + of_output * given, difference, self.projection)
        return given + (self.guidance - 1) / of_output * update, difference

    def apply(self, guided: Tensor, given: Tensor, x: Tensor) -> None:
        """Changes `guided` in place. guided, given, x: (4, h, w) outputs of one image with guidance
        and for the prompt alone, and the latents that both are of.
        """
        if self.rescale:
            rescale(guided, given, self.rescale)
        if self.thresholding and self.clean is not None:
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


def project(clean: Tensor, difference: Tensor, by: Projection) -> Tensor:
    """The update that adaptive projected guidance adds to a clean latent, times its scale less 1
    (Sadat et al. 2024, alg. 1).

    clean: (4, h, w) for the prompt alone. difference: of that to the clean latent of the negative
    prompt, with momentum in it.
    """
    if by.norm_threshold:
        difference = difference * (by.norm_threshold / difference.norm()).clamp(max=1)
    along = F.normalize(clean.double().flatten(), dim=0)
    parallel = (difference.double().flatten() @ along * along).view_as(clean)
    return difference - ((1 - by.eta) * parallel).float()


def threshold(clean: Tensor, share: float) -> Tensor:
    """Dynamic thresholding of a clean latent (Saharia et al. 2022, sec. 2.3): it is cut off at this
    quantile of its magnitudes, and brought to 1 where that is above.
    """
    most = torch.quantile(clean.abs().flatten(), share).clamp(min=1)
    return clean.clamp(-most, most) / most
