"""Requests to the engine and its answers: the values that cross its edge."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sd_core.prompt.conditions import Condition, PromptReader
from sd_core.prompt.errors import PromptError
from sd_core.spec import MOST_EMBEDDINGS, MOST_LORA_WEIGHT, MOST_LORAS, Sampling, whole_number
from sd_core.weights.errors import CheckpointError

Pixels = NDArray[np.uint8]
OnStep = Callable[[int, int], None]
T = TypeVar("T")

MOST_NAME_CHARS = 200

_SHA256 = re.compile("[0-9a-f]{64}")


class EngineClosedError(RuntimeError):
    """The engine takes no more requests, or stopped before this one was finished."""


class Suspended(Exception):  # noqa: N818 - a stop that was asked for is no error
    """How an image that was suspended ends. state: what `Engine.submit` continues it from."""

    def __init__(self, state: bytes) -> None:
        super().__init__("suspended between two steps")
        self.state = state


def sha256_of(path: Path) -> str:
    """In hex, of a file's bytes. Raises `OSError`."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter of an image, and how much of it is added.

    file: kohya's, LyCORIS's or diffusers' (`sd_core.weights.lora`). sha256: of its bytes, 64 hex
    digits; the engine takes no other. weight: of what it does to the UNet, -100 to 100; 0 is
    nothing. text_weight: the same of the text encoder; `of` takes the weight for it.
    Raises `ValueError`.
    """

    file: Path = field(compare=False)
    sha256: str
    weight: float = 1.0
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 {self.sha256!r:.80} is not 64 hex digits")
        for name in ("weight", "text_weight"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not abs(value) <= MOST_LORA_WEIGHT:
                raise ValueError(f"{name} {value!r:.80} is not within -100 to 100")
            object.__setattr__(self, name, float(value))

    @classmethod
    def of(cls, file: str | Path, weight: float = 1.0, text_weight: float | None = None) -> Lora:
        """The adapter in a file, which is read for its sha256. Raises `OSError`, `ValueError`."""
        return cls(
            Path(file),
            sha256_of(Path(file)),
            weight,
            weight if text_weight is None else text_weight,
        )


@dataclass(frozen=True)
class Embedding:
    """Vectors that stand where an image's prompts have a name (textual inversion).

    file: AUTOMATIC1111's or diffusers' (`sd_core.weights.embeddings`). sha256: of its bytes, 64 hex
    digits; the engine takes no other. name: 1 to 200 characters, found as a word, in whatever
    case. Raises `ValueError`.
    """

    file: Path = field(compare=False)
    sha256: str
    name: str

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 {self.sha256!r:.80} is not 64 hex digits")
        named = isinstance(self.name, str) and len(self.name) <= MOST_NAME_CHARS
        if not named or self.name != self.name.strip() or not self.name:
            raise ValueError(f"name {self.name!r:.80} is not 1 to {MOST_NAME_CHARS} characters")

    @classmethod
    def of(cls, file: str | Path, name: str | None = None) -> Embedding:
        """The embedding in a file, by default called as that. Raises `OSError`, `ValueError`."""
        return cls(Path(file), sha256_of(Path(file)), Path(file).stem if name is None else name)


@dataclass(frozen=True)
class Vae:
    """An autoencoder that draws an image instead of the model's own, and reads its init image.

    file: one alone, in CompVis's or diffusers' names, or a whole model's. sha256: of its bytes, 64
    hex digits; the engine takes no other. Raises `ValueError`.
    """

    file: Path = field(compare=False)
    sha256: str

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 {self.sha256!r:.80} is not 64 hex digits")

    @classmethod
    def of(cls, file: str | Path) -> Vae:
        """The autoencoder in a file, which is read for its sha256. Raises `OSError`."""
        return cls(Path(file), sha256_of(Path(file)))


@dataclass(frozen=True)
class Request:
    """One image to render.

    init_image: (H, W, 3) uint8 of exactly the sampling's size, for img2img.
    mask: (H, W) uint8 of that size, with an init image: white is repainted, the rest is kept to the
        pixel.
    priority: images of higher priority take the device between two steps; any whole number.
    loras: adapters, added in this order. embeddings: that its prompts may name.
    vae: None for the model's own.
    exact: give the bits of one fixed row count, which depend on nothing else in the batch. False
        takes whatever row count is quickest.
    Raises `ValueError` naming the field, what it is and what is expected.
    """

    prompt: str
    sampling: Sampling
    negative: str = ""
    init_image: Pixels | None = None
    mask: Pixels | None = None
    priority: int = 0
    exact: bool = True
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    vae: Vae | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative"):
            _check_text(name, getattr(self, name))
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling is {self.sampling!r:.80}; expected an sd_core.Sampling")
        size = (self.sampling.height, self.sampling.width)
        if self.init_image is not None:
            _check_pixels("init image", self.init_image, (*size, 3), "RGB")
        if self.mask is not None and self.init_image is None:
            raise ValueError("a mask goes with an init image")
        if self.mask is not None:
            _check_pixels("mask", self.mask, size, "L")
        if type(self.priority) is not int:
            priority = whole_number("priority", self.priority, "of any size")
            object.__setattr__(self, "priority", priority)
        if type(self.exact) is not bool:
            raise ValueError(f"exact {self.exact!r:.80} is neither True nor False")
        listed = isinstance(self.loras, tuple | list) and len(self.loras) <= MOST_LORAS
        if not listed or not all(isinstance(lora, Lora) for lora in self.loras):
            raise ValueError(f"loras {self.loras!r:.80} are not at most {MOST_LORAS} Loras")
        object.__setattr__(self, "loras", tuple(self.loras))
        given = self.embeddings
        listed = isinstance(given, tuple | list) and len(given) <= MOST_EMBEDDINGS
        if not listed or not all(isinstance(one, Embedding) for one in given):
            raise ValueError(f"embeddings {given!r:.80} are not at most {MOST_EMBEDDINGS} of them")
        if len({one.name.lower() for one in given}) < len(given):
            raise ValueError("two embeddings have one name")
        object.__setattr__(self, "embeddings", tuple(given))
        if not (self.vae is None or isinstance(self.vae, Vae)):
            raise ValueError(f"vae is {self.vae!r:.80}; expected an sd_core.Vae, or None")
        _ = self.conditions

    @cached_property
    def prompts(self) -> tuple[Condition, ...]:
        """The parts of the prompt, mostly one; each is a row of the UNet's batch."""
        return _read("prompt", self._reader.prompt, self.prompt)

    @property
    def one_prompt(self) -> bool:
        """True for a prompt in one part, of weight 1."""
        return len(self.prompts) == 1 and self.prompts[0].weight == 1.0

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions of the rows: the negative prompt's first, without which guidance 1.0 does."""
        if self.one_prompt and self.sampling.guidance == 1.0:
            return self.prompts
        return _read("negative", self._reader.negative, self.negative), *self.prompts

    @property
    def perturbed(self) -> int:
        """Rows for perturbed-attention guidance: one for each part of the prompt."""
        return len(self.prompts) if self.sampling.pag_scale else 0

    @property
    def rows(self) -> int:
        """Rows of the UNet's batch where they are most: one with guidance 1.0, else two; more with
        `AND` and perturbed-attention guidance.
        """
        return self.perturbed + len(self.conditions)

    @property
    def _reader(self) -> PromptReader:
        own = self.sampling
        return PromptReader(own.syntax, own.steps, own.long_prompts, own.emphasis, own.clip_skip)

    def digest(self) -> str:
        """sha256 in hex over all that decides the picture, besides the model."""
        settings: list[object] = [self.prompt, self.negative, asdict(self.sampling)]
        if self.loras:
            settings.append([(one.sha256, one.weight, one.text_weight) for one in self.loras])
        if self.embeddings:
            settings.append([(one.sha256, one.name) for one in self.embeddings])
        if self.vae is not None:
            settings.append({"vae": self.vae.sha256})
        total = hashlib.sha256(json.dumps(settings).encode())
        for pixels in (self.init_image, self.mask):
            part = b"" if pixels is None else np.ascontiguousarray(pixels).tobytes()
            total.update(hashlib.sha256(part).digest())
        return total.hexdigest()


@dataclass(frozen=True)
class Rendered:
    """A finished image: pixels (H, W, 3) uint8, of which `sd_core.to_pil` makes a picture.

    latents: (4, h, w) float32 on the CPU, that the pixels were decoded from. evaluations: of the
    UNet. seconds: from admission to the last pixel, here; shared with
    neighbours. exact: every evaluation gave the bits of the fixed row count of its shape.
    """

    pixels: Pixels
    latents: Tensor
    evaluations: int
    seconds: float
    exact: bool = True


@dataclass(frozen=True)
class Batch:
    """One evaluation of the model that was made.

    rows_used: rows that held an image. rows: all of them, padding included. seconds: as the
    engine's thread saw it; a device that works in the background may still be at it.
    """

    rows_used: int
    rows: int
    seconds: float


OnBatch = Callable[[Batch], None]


def check_file(named: Lora | Embedding | Vae) -> None:
    """Raises `CheckpointError` for a file that cannot be read, or is another than was named."""
    try:
        found = sha256_of(named.file)
    except OSError as error:
        raise CheckpointError(f"{named.file}: cannot be read: {error.strerror}") from None
    if found != named.sha256:
        raise CheckpointError(f"{named.file}: it has sha256 {found}, not {named.sha256}")


def _read(name: str, read: Callable[[str], T], prompt: str) -> T:
    try:
        return read(prompt)
    except PromptError as error:
        raise ValueError(f"{name}: {error}, at character {error.offset + 1}") from None


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} {value!r:.80} is no text; expected a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise ValueError(
            f"{name} holds {half!r}, half a character of UTF-16, at {error.start}"
        ) from None


def _check_pixels(name: str, value: object, shape: tuple[int, ...], mode: str) -> None:
    hint = f"such as np.asarray(image.convert({mode!r})) of a PIL image"
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is a {type(value).__name__}; expected a numpy array, {hint}")
    if value.shape != shape:
        raise ValueError(f"{name} is {value.shape}, not {shape}")
    if value.dtype != np.uint8:
        raise ValueError(f"{name} is of {value.dtype}; expected uint8 of 0 to 255, {hint}")
