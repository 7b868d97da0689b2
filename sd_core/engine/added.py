"""Weights that an image brings along to the model: adapters, and an autoencoder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sd_core.engine.adapters import LoadedLora, LoraSet, read_adapter, set_of
from sd_core.engine.autoencoders import LoadedVae, read_autoencoder
from sd_core.engine.held_files import HeldFiles
from sd_core.engine.request import Lora, Vae
from sd_core.model.diffusion import LatentDiffusion
from sd_core.model.vae import AutoencoderKL


@dataclass(frozen=True)
class Added:
    """Weights of one image, on the device. files: that they are from."""

    loras: LoraSet | None = None
    vae: AutoencoderKL | None = None
    files: tuple[Lora | Vae, ...] = ()


class AddedWeights:
    """The added weights of all images in the engine, and the latest used.

    limit_bytes: that they may take on the device together.
    """

    def __init__(self, model: LatentDiffusion, limit_bytes: int) -> None:
        self._model = model
        self._files: HeldFiles[Lora | Vae, LoadedLora | LoadedVae] = HeldFiles(
            limit_bytes, self._read
        )
        self._sets: dict[tuple[Lora, ...], tuple[LoraSet, int]] = {}  # with their images
        self._count = 0
        self._lock = threading.Lock()

    def hold(self, loras: Sequence[Lora], vae: Vae | None = None) -> Added:
        """An image's weights, until `give_back`. Adapters of weight 0 are left out.

        Waits and raises as `HeldFiles.hold` does.
        """
        wanted = tuple(lora for lora in loras if lora.weight or lora.text_weight)
        files = (*wanted, *(() if vae is None else (vae,)))
        contents = self._files.hold(files)
        loaded = [content for content in contents if isinstance(content, LoadedLora)]
        drawn = [content.part for content in contents if isinstance(content, LoadedVae)]
        chosen = self._set_of(wanted, loaded) if wanted else None
        return Added(chosen, drawn[0] if drawn else None, files)

    def give_back(self, added: Added) -> None:
        """Ends a `hold`."""
        if added.loras is not None:
            with self._lock:
                known, images = self._sets.pop(added.loras.key)
                if images > 1:
                    self._sets[added.loras.key] = known, images - 1
        self._files.give_back(added.files)

    def close(self) -> None:
        """Ends every wait for room; no file is read from then on."""
        self._files.close()

    @property
    def nbytes(self) -> int:
        """Bytes that they take on the device."""
        return self._files.nbytes

    def _read(self, file: Lora | Vae) -> LoadedLora | LoadedVae:
        if isinstance(file, Vae):
            return read_autoencoder(file, self._model)
        return read_adapter(file, self._model)

    def _set_of(self, key: tuple[Lora, ...], loaded: Sequence[LoadedLora]) -> LoraSet:
        """The one set of these adapters, as long as an image has it."""
        with self._lock:
            known, images = self._sets.get(key, (None, 0))
            if known is None:
                known = set_of(self._count, key, loaded)
                self._count += 1
            self._sets[key] = known, images + 1
            return known
