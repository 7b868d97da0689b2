"""Adapters of the images in the engine: read by who submits, kept on the device, least used go.

Nothing here runs on the engine's thread but giving back: so a batch goes on while a file is read.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import nn

from sd_core.cpu.plain_weight import plain_weight
from sd_core.engine.request import EngineClosedError, Lora, sha256_of
from sd_core.model.adapters import Gain, LowRank, Share, gain_of
from sd_core.model.diffusion import LatentDiffusion
from sd_core.weights.errors import CheckpointError
from sd_core.weights.lora.read import LowRankLayer, read_lora

Layers = Mapping[str, tuple[Share, ...]]
"""By the name of a layer, what an image adds to it."""

_CONTEXT = (".attn2.to_k", ".attn2.to_v")
_TIMES = ("time_embed.", ".emb_layers.")


@dataclass(frozen=True)
class _Loaded:
    unet: Mapping[str, LowRank]
    text: Mapping[str, LowRank]
    nbytes: int


@dataclass(frozen=True, eq=False)
class LoraSet:
    """The adapters of an image at their weights, on the device.

    number: that no other has. key: the same for the same files and weights. text: of the text
    encoder. context: of the keys and values of prompts. times: of what timesteps become. others: of
    the UNet's other layers.
    """

    number: int
    key: tuple[Lora, ...]
    text: Layers
    context: Layers
    times: Layers
    others: Layers


class AdapterCache:
    """Adapters on the device, the latest used and those of images in the engine.

    limit_bytes: that they may take together.
    """

    def __init__(self, model: LatentDiffusion, limit_bytes: int) -> None:
        self._model = model
        self._limit_bytes = limit_bytes
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()  # by sha256, oldest use first
        self._users: Counter[str] = Counter()
        self._sets: dict[tuple[Lora, ...], LoraSet] = {}  # of images in the engine
        self._numbers = count()
        self._closed = False
        self._holding = threading.Lock()
        self._changed = threading.Condition()

    def hold(self, loras: Sequence[Lora]) -> LoraSet | None:
        """The set of an image's adapters, until `give_back`; None where none does anything.

        Waits while images in the engine hold so many others that there is no room. Raises
        `CheckpointError` for a file that cannot be used, `MemoryError` for one that is too large,
        and `EngineClosedError`.
        """
        wanted = tuple(lora for lora in loras if lora.weight or lora.text_weight)
        if not wanted:
            return None
        held: list[str] = []
        # One image at a time: two that hold some of what they need would wait for each other.
        with self._holding:
            try:
                for lora in wanted:
                    self._hold(lora, held)
                    held.append(lora.sha256)
            except BaseException:
                self._release(held)
                raise
        with self._changed:
            if wanted not in self._sets:
                self._sets[wanted] = self._set_of(wanted)
            return self._sets[wanted]

    def give_back(self, held: LoraSet) -> None:
        """Ends a `hold`."""
        self._release([lora.sha256 for lora in held.key])

    def close(self) -> None:
        """Ends every wait for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def nbytes(self) -> int:
        """Bytes that adapters take on the device."""
        with self._changed:
            return sum(loaded.nbytes for loaded in self._loaded.values())

    def _hold(self, lora: Lora, held: Sequence[str]) -> None:
        """held: what the image has already."""
        with self._changed:
            if lora.sha256 in self._loaded:
                self._use(lora.sha256)
                return
        loaded = self._read(lora)
        with self._changed:
            self._make_room(lora, loaded.nbytes, held)
            self._loaded[lora.sha256] = loaded
            self._use(lora.sha256)

    def _use(self, sha256: str) -> None:
        self._users[sha256] += 1
        self._loaded.move_to_end(sha256)

    def _release(self, names: Sequence[str]) -> None:
        with self._changed:
            self._users.subtract(names)
            self._sets = {
                key: known
                for key, known in self._sets.items()
                if all(self._users[lora.sha256] for lora in key)
            }
            self._changed.notify_all()

    def _make_room(self, lora: Lora, nbytes: int, held: Sequence[str]) -> None:
        """Drops adapters that no image uses, those unused for longest first."""
        own = sum(self._loaded[name].nbytes for name in dict.fromkeys(held))
        if own + nbytes > self._limit_bytes:
            raise MemoryError(_too_large(lora.file, own + nbytes, self._limit_bytes))
        while sum(loaded.nbytes for loaded in self._loaded.values()) + nbytes > self._limit_bytes:
            unused = next((name for name in self._loaded if not self._users[name]), None)
            if unused is not None:
                del self._loaded[unused]
            elif self._closed:
                raise EngineClosedError("the engine is closed")
            else:
                self._changed.wait()

    def _set_of(self, loras: tuple[Lora, ...]) -> LoraSet:
        text: dict[str, tuple[Share, ...]] = {}
        unet: dict[str, tuple[Share, ...]] = {}
        for lora in loras:
            loaded = self._loaded[lora.sha256]
            _add(text, loaded.text, lora.text_weight)
            _add(unet, loaded.unet, lora.weight)
        context = {name: unet.pop(name) for name in list(unet) if name.endswith(_CONTEXT)}
        times = {name: unet.pop(name) for name in list(unet) if any(t in name for t in _TIMES)}
        return LoraSet(next(self._numbers), loras, text, context, times, unet)

    def _read(self, lora: Lora) -> _Loaded:
        try:
            size = lora.file.stat().st_size
            if size > 2 * self._limit_bytes:  # float32 here may be 16 bits there
                raise MemoryError(_too_large(lora.file, size, self._limit_bytes))
            found = sha256_of(lora.file)
        except OSError as error:
            raise CheckpointError(f"{lora.file}: cannot be read: {error.strerror}") from None
        if found != lora.sha256:
            raise CheckpointError(f"{lora.file}: not the file that the sha256 of it names")
        file = read_lora(lora.file, self._model.spec)
        unet = dict(self._layers(self._model.unet, file.unet))
        text = dict(self._layers(self._model.text, file.text))
        if self._model.device.type == "cuda":
            torch.cuda.current_stream(self._model.device).synchronize()
        tensors = [t for part in (unet, text) for one in part.values() for t in _tensors(one)]
        return _Loaded(unet, text, sum(tensor.nbytes for tensor in tensors))

    def _layers(
        self, part: nn.Module, layers: Mapping[str, LowRankLayer]
    ) -> Iterator[tuple[str, LowRank]]:
        device, dtype = self._model.device, self._model.dtype
        for name, layer in layers.items():
            down, up, scale, gain = layer.down, layer.up, layer.scale, None
            if layer.magnitude is not None:
                weight, bias = plain_weight(part, name)
                own = (t.to(weight.device) for t in (down, up.float() * scale, layer.magnitude))
                gain, up = gain_of(weight, bias, *own)
                gain, scale = Gain(*(t.to(device, dtype) for t in gain)), 1.0
            yield name, LowRank(down.to(device, dtype), up.to(device, dtype), scale, gain)


def _tensors(layer: LowRank) -> Iterator[torch.Tensor]:
    yield from (layer.down, layer.up, *(layer.gain or ()))


def _add(
    shares: dict[str, tuple[Share, ...]], layers: Mapping[str, LowRank], weight: float
) -> None:
    if weight:
        for name, layer in layers.items():
            shares[name] = (*shares.get(name, ()), Share(layer, weight))


def _too_large(file: Path, nbytes: int, limit_bytes: int) -> str:
    return (
        f"{file}: with it an image's adapters take {nbytes / 2**20:,.0f} MiB; there is room for "
        f"{limit_bytes / 2**20:,.0f} MiB"
    )
