"""The rows that an image takes in a batch, and what each is for."""

from __future__ import annotations

from dataclasses import dataclass

from sd_core.setting_texts import FreeU


@dataclass(frozen=True)
class RowRoles:
    """Roles of an image's rows. First are perturbed ones, one for each prompt, then comes that of
    the negative prompt, and last are those of the prompts. Beyond the guided part of the steps an
    image has the last of them only.

    weights: of the prompts. negative: there is such a row. pag_scale: of the perturbed rows.
    layers: places of the UNet where they are so. freeu: of all rows.
    """

    weights: tuple[float, ...] = (1.0,)
    negative: bool = True
    pag_scale: float = 0.0
    layers: tuple[str, ...] = ()
    freeu: FreeU | None = None

    @property
    def plain(self) -> bool:
        """True for a prompt and a negative prompt, without anything else."""
        return self.weights == (1.0,) and not self.pag_scale and self.freeu is None

    def prompts(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The rows of the prompts among an image's rows."""
        return rows[-len(self.weights) :]

    def without(self, rows: tuple[int, ...]) -> int:
        """The row that guidance leads away from; without guidance the prompt's own."""
        there = self.negative and len(rows) > len(self.weights)
        return rows[-len(self.weights) - 1] if there else rows[-1]

    def perturbed(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The rows for perturbed-attention guidance, in the order of the prompts."""
        return rows[: max(0, len(rows) - len(self.weights) - int(self.negative))]
