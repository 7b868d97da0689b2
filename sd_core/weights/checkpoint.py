"""Checkpoint as every reader returns it: the sizes, and where each component's weights lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sd_core.model.tokenizer import TokenizerSpec
from sd_core.spec import ModelSpec, VAESpec
from sd_core.weights.stored import Shape, StoredTensor

COMPONENTS = ("text", "unet", "vae")


@dataclass(frozen=True)
class Part:
    """One component in a file.

    stored: the component's tensors by their names in the file. names: gives the names that one of
    our parameters may have there, the preferred one first. where: what stands before a name in an
    error, to say which of several files is meant. unused: the kind of a name that the configuration
    leaves out, None for all others.
    """

    stored: Mapping[str, StoredTensor]
    names: Callable[[str], tuple[str, ...]]
    where: str = ""
    unused: Callable[[str], str | None] = lambda name: None

    def name_of(self, name: str) -> str | None:
        """The name one of our parameters has in this file, None where it is missing."""
        return next((n for n in self.names(name) if n in self.stored), None)

    def shape_of(self, name: str) -> Shape | None:
        """The stored shape of one of our parameters, None where it is missing."""
        found = self.name_of(name)
        return None if found is None else self.stored[found].shape


@dataclass(frozen=True)
class Checkpoint:
    """A whole model, still in its files.

    path: for errors. format: "safetensors", "ckpt" or "diffusers". leftovers: names in the file
    that belong to no component. revision: the hub's commit, where it came from there.
    said: of "prediction" and "zero_snr" what the files say; else the spec has v1's.
    note: said before the list of wrong weights, where the sizes had to be assumed. tokenizer: the
    model's own; None for CLIP's.
    """

    path: str
    format: str
    spec: ModelSpec
    parts: Mapping[str, Part]
    leftovers: tuple[str, ...] = ()
    revision: str | None = None
    note: str = ""
    said: frozenset[str] = frozenset()
    tokenizer: TokenizerSpec | None = None


@dataclass(frozen=True)
class VAECheckpoint:
    """An autoencoder on its own. scale_factor_known: true if a config gave it, not a convention."""

    spec: VAESpec
    part: Part
    scale_factor_known: bool
