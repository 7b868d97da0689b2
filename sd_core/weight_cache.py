"""Laid-out weights, kept on disk for the next start on the same machine.

    <folder>/<key>-<crc32>.pt    there means whole
             <key>.part          unfinished
             lock                held by the process that writes

Most of a start went into laying weights out, in memory that has to be found first. What was kept is
mapped instead: it takes neither, and all processes that run the same model share it in memory. The
key stands for the weights, for what laid them out, and for what oneDNN wants here.

A file is mapped for as long as its process runs, so it is only ever replaced or deleted, by anybody
at any time, and never changed. It is checked against its crc32 before it is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import mmap
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_core import execution
from sd_core.cpu import (
    fused_blocks,
    kernels,
    mkldnn,
    native_layers,
    native_products,
    packed_weight,
    packing,
)
from sd_core.cpu.kernels import LIBRARY, have_amx
from sd_core.cpu.mkldnn_tensor import content, description
from sd_core.cpu.packed_weight import layouts
from sd_core.cpu.packing import packed_weights, replace
from sd_core.spec import ModelSpec

log = logging.getLogger(__name__)

LEAST_BYTES = 2**28
"""Least bytes of weights that are worth keeping: fewer are laid out in a moment."""

MOST_BYTES = 2**34
"""That a folder may hold. What was not used for longest goes first."""

MODULES = (
    execution,
    fused_blocks,
    packing,
    packed_weight,
    mkldnn,
    native_layers,
    native_products,
    kernels,
)
CODE = (*(Path(str(module.__file__)) for module in MODULES), LIBRARY)
"""Code that lays weights out: the key of what is kept covers it."""

Kept = dict[str, dict[str, Tensor]]
"""A model's parameters by name; of its packed weights bytes and descriptions by layer."""


class WeightCache:
    """Laid-out weights of one model in a folder, where `can_rebuild`.

    spec, dtype: of the model.
    way: that it is run in.
    """

    def __init__(self, folder: Path, spec: ModelSpec, dtype: torch.dtype, way: str) -> None:
        self._folder, self._spec, self._dtype = folder, spec, dtype
        self._way, self._code = way, [_sha256(path) for path in CODE if path.exists()]

    def find(self, digest: str) -> Kept | None:
        """Weights that were kept under this digest (see `Provenance`), mapped; None where there are
        none, or where they are damaged.
        """
        for path in self._files(key := self._key(digest)):
            # Deleted meanwhile, which torch calls a RuntimeError, or not for us.
            with contextlib.suppress(OSError, RuntimeError):
                if path.stem == f"{key}-{_crc32(path)}":
                    kept: Kept = torch.load(path, mmap=True, weights_only=True)
                    with contextlib.suppress(OSError):
                        os.utime(path)
                    return kept
                log.warning("%s is damaged; the weights are laid out anew", path)
                path.unlink()
        return None

    def keep(self, digest: str, model: nn.Module) -> None:
        """Writes in a thread what `find` finds, if there is room for it, and nobody else writes.

        model: packed, with its weights.
        """
        packed = packed_weights(model)
        if not all(weight.first.is_mkldnn for weight in packed.values()):
            return
        kept: Kept = {
            "parameters": {name: weight.data for name, weight in model.named_parameters()},
            "contents": {name: content(weight.first) for name, weight in packed.items()},
            "descriptions": {name: description(weight.first) for name, weight in packed.items()},
        }
        threading.Thread(target=self._keep, args=(self._key(digest), kept), name="keep").start()

    def _key(self, digest: str) -> str:
        """For weights that are laid out by this code, here."""
        model = digest, dataclasses.asdict(self._spec), str(self._dtype), self._way
        machine = torch.get_num_threads(), have_amx(), layouts(self._dtype)
        parts = json.dumps((model, self._code, torch.__version__, machine), sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    def _files(self, key: str) -> list[Path]:
        return list(self._folder.glob(f"{key}-*.pt"))

    def _keep(self, key: str, kept: Kept) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(self._folder / "lock") as locked:
                if locked and not self._files(key):
                    _write(self._folder, key, kept)
        except (OSError, RuntimeError) as error:  # the latter is torch's, where the disk is full
            log.info("laid-out weights cannot be kept in %s: %s", self._folder, error)


def put_back(model: nn.Module, kept: Kept) -> None:
    """Gives a model that is packed, but on `meta`, its weights. Raises `RuntimeError` where torch
    refuses them; then the model is of no more use.
    """
    for name, weight in kept["parameters"].items():
        replace(model, name, nn.Parameter(weight, requires_grad=False))
    for name, packed in packed_weights(model).items():
        packed.put(kept["contents"][name], kept["descriptions"][name])


def _write(folder: Path, key: str, kept: Kept) -> None:
    needed = sum(tensor.nbytes for part in kept.values() for tensor in part.values())
    for left in folder.glob("*.part"):
        left.unlink()
    if needed > MOST_BYTES:
        return
    _make_room(folder, MOST_BYTES - needed)
    if shutil.disk_usage(folder).free < 2 * needed:  # others need room, too
        log.info("laid-out weights are not kept in %s: its disk is nearly full", folder)
        return
    unfinished = folder / f"{key}.part"
    try:
        torch.save(kept, unfinished)
        unfinished.replace(folder / f"{key}-{_crc32(unfinished)}.pt")
    finally:
        unfinished.unlink(missing_ok=True)


def _make_room(folder: Path, most_bytes: int) -> None:
    """Deletes what was not used for longest, until what stays takes no more than this."""
    found = [(path, path.stat()) for path in folder.glob("*.pt")]
    total = sum(stat.st_size for _, stat in found)
    for path, stat in sorted(found, key=lambda item: item[1].st_mtime):
        if total <= most_bytes:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _crc32(path: Path) -> str:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):  # after a power cut
            return ""
        # All in one call: each waits for Python's lock, which a start's imports hold.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return f"{zlib.crc32(mapped):08x}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock, if no other process does; gives True then."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
