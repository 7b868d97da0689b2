"""Files of LoRA, embeddings and VAEs on this machine: from a job's folder, or from where the
worker's own model list says.

    <cache>/added/<sha256>.<suffix>    those of jobs; the least used go first
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import DamagedError, InputError
from jobs.folder.layout import JobFolder
from jobs.formatting import quote, reason
from jobs.limits import MAX_EMBEDDING_BYTES
from jobs.models import ModelSource
from jobs.settings import Settings
from jobs.storage import get_verified
from jobs.task import EmbeddingUse, LoraUse, Task, VaeUse
from sd_core.engine.request import Embedding, Lora, Vae, sha256_of
from worker.checkpoint.fetch_file import fetched

MOST_KEPT_BYTES = 16 * 2**30

Use = LoraUse | EmbeddingUse | VaeUse


@dataclass(frozen=True)
class WeightFiles:
    """Files of one kind. Threads may share it.

    word: for one, to people. listed: those of the model list. cache: a folder for what comes from
    elsewhere. limit_bytes: of one file.
    """

    word: str
    listed: Mapping[str, ModelSource]
    cache: Path
    limit_bytes: int
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _checked: set[tuple[Path, str]] = field(default_factory=set, init=False)

    def path(self, use: Use, folder: JobFolder) -> Path:
        """The file of an image, on this machine. folder: of the job.

        Raises `ValueError` for a file of the job that is damaged, gone or too large; `InputError`
        for what this worker lacks, and `StoreError`.
        """
        with self._lock:
            return self._listed(use) if use.file is None else self._of_job(use, use.file, folder)

    def _of_job(self, use: Use, name: str, folder: JobFolder) -> Path:
        key, path = folder.keys.input(name), self._cache / "added" / name
        if self._is_right(path, use.sha256):
            with contextlib.suppress(OSError):  # it is the latest used
                os.utime(path)
            return path
        info = folder.head(key)
        if info is not None and info.size_bytes > self.limit_bytes:
            raise ValueError(f"{self.word} {quote(use.name)} is {self._too_large(info.size_bytes)}")
        try:
            data = get_verified(folder.store, key, use.sha256, limit_bytes=self.limit_bytes)
        except DamagedError as error:
            raise ValueError(
                f"{error}; submit or run the job's manifest again, which writes it anew"
            ) from None
        try:
            self._keep(path, data)
        except OSError as error:
            raise InputError(
                f"{self.word} files cannot be kept in {self.cache}: {reason(error)} "
                "(SDBATCH_CACHE names the folder)"
            ) from None
        self._checked.add((path, use.sha256))
        return path

    def _keep(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                file.write(data)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
        Path(file.name).replace(path)
        kept = sorted(
            ((found.stat(), found) for found in path.parent.iterdir() if found != path),
            key=lambda pair: pair[0].st_mtime,
        )
        total = len(data) + sum(info.st_size for info, _ in kept)
        for info, oldest in kept:
            if total <= MOST_KEPT_BYTES:
                return
            oldest.unlink(missing_ok=True)
            total -= info.st_size

    def _listed(self, use: Use) -> Path:
        source = self.listed.get(use.name)
        if source is None:
            raise InputError(
                f"{self.word} {quote(use.name)} is not in the model list of this worker; "
                "SDBATCH_MODELS names the list"
            )
        try:
            path = fetched(source.source, self.cache)
            size_bytes = path.stat().st_size
            if size_bytes > self.limit_bytes:
                raise InputError(f"{self.word} {quote(use.name)} is {self._too_large(size_bytes)}")
            if not self._is_right(path, use.sha256):
                raise InputError(
                    f"{self.word} {quote(use.name)}: {source.source} has sha256 "
                    f"{sha256_of(path)}, the job wants {use.sha256}"
                )
        except OSError as error:
            raise InputError(
                f"{self.word} {quote(use.name)}: {source.source} cannot be read: {reason(error)}"
            ) from None
        return path

    def _is_right(self, path: Path, sha256: str) -> bool:
        """True for a file that is there with these bytes. Each is read once by a process; who loads
        it reads them again.
        """
        if (path, sha256) not in self._checked or not path.exists():
            if not path.exists() or sha256_of(path) != sha256:
                return False
            self._checked.add((path, sha256))
        return True

    @property
    def _cache(self) -> Path:
        try:
            return self.cache.expanduser()
        except RuntimeError as error:  # nobody knows whose home
            raise InputError(f"SDBATCH_CACHE: {self.cache}: {error}") from None

    def _too_large(self, size_bytes: int) -> str:
        return (
            f"{size_bytes / 2**20:,.0f} MiB; SDBATCH_LORA_MIB allows {self.limit_bytes // 2**20:,}"
        )


@dataclass(frozen=True)
class AddedFiles:
    """Files that images bring along to the model; one for all jobs of a process."""

    loras: WeightFiles
    embeddings: WeightFiles
    vaes: WeightFiles

    @classmethod
    def of(cls, settings: Settings, cache: Path) -> AddedFiles:
        """Finds them as the settings say, with this cache."""
        return cls(
            WeightFiles("LoRA", settings.loras, cache, settings.lora_bytes),
            WeightFiles("embedding", settings.embeddings, cache, MAX_EMBEDDING_BYTES),
            WeightFiles("VAE", settings.vaes, cache, settings.lora_bytes),
        )

    def loras_of(self, task: Task, folder: JobFolder) -> tuple[Lora, ...]:
        """An image's LoRA. Raises like `WeightFiles.path`."""
        return tuple(
            Lora(self.loras.path(use, folder), use.sha256, use.weight, use.text_weight)
            for use in task.loras
        )

    def embeddings_of(self, task: Task, folder: JobFolder) -> tuple[Embedding, ...]:
        """An image's embeddings. Raises like `WeightFiles.path`."""
        return tuple(
            Embedding(self.embeddings.path(use, folder), use.sha256, use.name)
            for use in task.embeddings
        )

    def vae_of(self, task: Task, folder: JobFolder) -> Vae | None:
        """An image's autoencoder. Raises like `WeightFiles.path`."""
        use = task.vae
        return None if use is None else Vae(self.vaes.path(use, folder), use.sha256)
