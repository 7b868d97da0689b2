"""Classifier-free guidance that looks at a whole output."""

from __future__ import annotations

from torch import Tensor


def rescale(guided: Tensor, given: Tensor, share: float) -> None:
    """Brings the spread of a guided output towards that of the prompt's own, in place (Lin et al.
    2023, sec. 3.4).

    guided, given: (4, h, w) of one image. share: 0 (not at all) to 1.
    """
    factor = given.std() / guided.std()
    guided.mul_(share * factor + (1 - share))
