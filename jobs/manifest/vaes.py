"""Autoencoders (VAEs) that a manifest uses instead of the model's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from jobs.manifest.embeddings import Listing
from jobs.manifest.input_images import Inputs
from jobs.manifest.lora_lists import Problem, inside
from jobs.manifest.named_files import FileRules, Kind, NamedFiles
from sd_core.weights.vae_header import check_vae

VAE = Kind("VAE", "vaes", unnamed="", check=check_vae)

OWN = "model"
"""Stands for the model's own."""

Choice = tuple[Listing, ...]
"""The VAE of an image, as entries keep it; empty for the model's own."""


class Vaes(NamedFiles):
    """The VAEs of one manifest."""

    def __init__(self, inputs: Inputs, rules: FileRules) -> None:
        super().__init__(VAE, inputs, rules)

    def declare(self, name: str, given: str | Mapping[str, str], folder: Path) -> None:
        super().declare(name, given, folder)
        if name == OWN:
            raise ValueError(f"{OWN} stands for the model's own VAE; choose another name")

    def choice(self, text: str, folder: Path, problem: Problem) -> Choice:
        """The VAE of a name or path. problem: is told why it cannot be used."""
        if text == OWN:
            return ()
        try:
            name, sha256, file = self.find(text, folder)
        except ValueError as error:
            problem((), str(error))
            return ()
        return ((name, sha256, file),)

    def choices(self, texts: Iterable[str], folder: Path, problem: Problem) -> list[Choice]:
        """The same for the values of a matrix."""
        return [self.choice(text, folder, inside(n, problem)) for n, text in enumerate(texts)]


def vae_name(choice: Choice) -> str:
    """A VAE as a manifest names it that has `manifest_names`."""
    return choice[0][0] if choice else OWN
