"""A task: everything needed to render one image, and the digest that names the result."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from sd_core.spec import ADDED_SETTINGS, Sampling
from sd_core.vocab.bpe import tokens_over

IMAGE_FORMATS = ("png", "jpeg", "webp")
"""Formats that a picture can be written in; the first is the default."""

DEFAULT_QUALITY = 95
"""Quality of pictures in jpeg and webp, 1 to 100."""

Reproducible = Literal["exact", "fast"]
"""The dependence of an image's bytes on the images rendered beside it.

    exact  none
    fast   in the last bits
"""

WEIGHT_SUFFIXES = ("safetensors", "pt", "ckpt", "bin", "pth")
"""Endings of the names of LoRA files: safetensors, or pickles."""

_INPUT_NAME = re.compile(rf"([0-9a-f]{{64}})\.(png|jpg|webp|{'|'.join(WEIGHT_SUFFIXES)})")

# Made once: `json.dumps` with these arguments would make an encoder at every call.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


@dataclass(frozen=True, slots=True)
class ModelPart:
    """Images that follow each other in a plan, and are of one model.

    name: of the model list. images: how many.
    """

    name: str
    images: int


def model_at(parts: Sequence[ModelPart], index: int) -> str:
    """The model of an image. parts: of its whole job. Raises `IndexError` for one beyond them."""
    stops = list(itertools.accumulate(part.images for part in parts))
    return parts[bisect.bisect_right(stops, index)].name


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA of an image, and how much of it.

    name: for people; also in the model list, if `file` is None.
    sha256: of the file's bytes, 64 hex digits.
    weight, text_weight: as `sd_core.Lora` has them.
    file: its name under the job's `inputs/`, `<sha256>.<suffix>`.
    """

    name: str
    sha256: str
    weight: float = 1.0
    text_weight: float = 1.0
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, as plans have them."""
        values: dict[str, Any] = {"name": self.name, **self.canonical()}
        return values if self.file is None else {**values, "file": self.file}

    def canonical(self) -> dict[str, Any]:
        """Values that the pixels depend on."""
        return {
            "sha256": self.sha256,
            "weight": self.weight,
            "text_weight": self.text_weight,
        }


@dataclass(frozen=True, slots=True)
class EmbeddingUse:
    """An embedding that an image's prompts name.

    name: that stands in them; also in the model list, if `file` is None. sha256, file: see
    `LoraUse`.
    """

    name: str
    sha256: str
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, as plans have them."""
        values: dict[str, Any] = self.canonical()
        return values if self.file is None else {**values, "file": self.file}

    def canonical(self) -> dict[str, Any]:
        """Values that the pixels depend on."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class VaeUse:
    """An autoencoder that draws an image instead of the model's own.

    name: for people; also in the model list, if `file` is None. sha256, file: see `LoraUse`.
    """

    name: str
    sha256: str
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, as plans have them."""
        values: dict[str, Any] = {"name": self.name, **self.canonical()}
        return values if self.file is None else {**values, "file": self.file}

    def canonical(self) -> dict[str, Any]:
        """Values that the pixels depend on."""
        return {"sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Task:
    """One image of a job, resolved: nothing is left to defaults.

    index: place in the plan, from 0.
    name: of the image, relative to the job's `images/`, without digest and extension.
    init_image, mask: file names under the job's `inputs/`, `<sha256 of the bytes>.<png|jpg|webp>`.
    format: one of `IMAGE_FORMATS`.
    template: the prompt as it was written, where choices were made in it; for the record alone.
    loras: added in this order. embeddings: that the prompts name. vae: None for the model's own.
    model: by its name in the model list, in a job of several. meta: labels, names and values; for
    the record alone.
    """

    index: int
    name: str
    prompt: str
    negative: str
    sampling: Sampling
    init_image: str | None = None
    mask: str | None = None
    format: str = IMAGE_FORMATS[0]
    template: str | None = None
    loras: tuple[LoraUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    vae: VaeUse | None = None
    model: str | None = None
    meta: tuple[tuple[str, str], ...] = ()

    def canonical(self) -> dict[str, Any]:
        """Values that determine the pixels and the format, and no others (not index nor name)."""
        sampling = self.sampling
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "negative": self.negative,
            "sampler": sampling.sampler,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "width": sampling.width,
            "height": sampling.height,
            "seed": sampling.seed,
            "eta": sampling.eta,
            "karras": sampling.karras,
            "format": self.format,
        }
        for name, default in ADDED_SETTINGS.items():
            if (value := getattr(sampling, name)) != default:
                values[name] = value
        if sampling.long_prompts == "chunk" and self._all_is_read:
            del values["long_prompts"]
        if self.init_image is not None:
            values["init_image"] = self.init_image
            values["strength"] = sampling.strength
        else:
            values.pop("strength_rule", None)
        if self.mask is not None:
            values["mask"] = self.mask
        if self.loras:
            values["loras"] = [lora.canonical() for lora in self.loras]
        if self.embeddings:
            values["embeddings"] = [one.canonical() for one in self.embeddings]
        if self.vae is not None:
            values["vae"] = self.vae.canonical()
        return values

    @property
    def _all_is_read(self) -> bool:
        """True where chunks are no other picture: plain prompts that fit into one, without
        embeddings, whose length a plan does not know.
        """
        plain = self.sampling.syntax == "plain" and not self.embeddings
        return plain and fits(self.prompt, self.negative, self.sampling.guidance)

    def canonical_json(self) -> str:
        """`canonical` as text: compact, keys sorted, ASCII; equal for equal pictures."""
        return _encode(self.canonical())

    def to_json(self) -> dict[str, Any]:
        """Every parameter, explicit, as JSON values: a line of the plan (see `task_line`).

        A parameter that a later version adds is left out where it has its default: workers that do
        not know it refuse a line that has it.
        """
        values = self.canonical()
        values["index"] = self.index
        values["name"] = self.name
        values["init_image"] = self.init_image
        values["strength"] = None if self.init_image is None else self.sampling.strength
        values["mask"] = self.mask
        if self.template is not None:
            values["template"] = self.template
        if self.loras:
            values["loras"] = [lora.to_json() for lora in self.loras]
        if self.embeddings:
            values["embeddings"] = [one.to_json() for one in self.embeddings]
        if self.vae is not None:
            values["vae"] = self.vae.to_json()
        if self.model is not None:
            values["model"] = self.model
        if self.meta:
            values["meta"] = dict(self.meta)
        return values


def fits(prompt: str, negative: str, guidance: float) -> bool:
    """True if plain prompts have no more tokens than the text encoder reads at one time. The
    negative one is not read with guidance 1.
    """
    return not (tokens_over(prompt) or (guidance != 1.0 and tokens_over(negative)))


def input_digest(name: str) -> str:
    """The sha256 that the file name of an input says, 64 hex digits. Raises `ValueError`."""
    match = _INPUT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r:.100} is not valid as the name of an input")
    return match[1]


def spec_digest(task: Task, model_digest: str) -> str:
    """64 hex digits that name the picture: sha256 of the canonical task and the model's digest."""
    digest = sha256(task.canonical_json().encode("ascii"))
    digest.update(b"\n")
    digest.update(model_digest.encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Failure:
    """An image that could not be made: a line of `failures.jsonl`."""

    index: int
    name: str
    prompt: str
    seed: int
    reason: str
    attempts: int = 1
