"""Remembers the digests of models that were loaded here, so that a run without work needs no torch.

    <cache>/digests/<identity>.json    {"digest": …}, some 80 bytes for each model

A digest is made of weights, which takes torch and seconds. What is asked here instead is whether a
model's files are still those of its last load. A local file is the same while its size, its times
and its inode number are; git goes by these, too, and no program sets the time of a file's last
change back. A repository is the same while the hub names the same commit, an object in a bucket
while its ETag is the same. Where any of that is in doubt the model is loaded, as if nothing had
been remembered.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from jobs.errors import ModelError, StoreError
from jobs.manifest.sources import S3
from sd_core.weights import hub
from sd_core.weights.errors import CheckpointError
from sd_core.weights.paths import local_path
from worker.checkpoint.load import ModelChoice

log = logging.getLogger(__name__)

MOST_FILES = 1000
"""In a folder that may be a model; a larger one is not looked through."""

MOST_BYTES = 1000
"""Most bytes of the file of a remembered digest."""

_DIGEST = re.compile("[0-9a-f]{64}")

Facts = list[Any]
"""JSON values that change when what they are about does."""


class _DoubtError(Exception):
    """It cannot be said whether the files are the same."""


def identity(choice: ModelChoice) -> str | None:
    """64 hex digits that stand for the model's files as they are now, and for what reads them; None
    if that cannot be said: a file is missing, or a server is unreachable.
    """
    config = None if choice.config is None else str(choice.config)
    try:
        facts = [_code(), *(_facts(source) for source in (choice.source, choice.vae, config))]
        facts += [
            [*_facts_of_file(one.source), one.weight, one.text_weight] for one in choice.loras
        ]
        facts.append([choice.prediction, choice.zero_snr])
    except (_DoubtError, OSError, CheckpointError, ModelError, StoreError) as error:
        log.debug("it is not known whether the model is the same: %s", error)
        return None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def recall(cache: Path, identity: str) -> str | None:
    """The digest of the weights in files with this identity, if they were loaded before."""
    try:
        with _path(cache, identity).open("rb") as file:
            said = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError, RuntimeError):  # RuntimeError: nobody knows ~
        return None
    digest = said.get("digest") if isinstance(said, dict) else None
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def remember(cache: Path, identity: str, digest: str) -> None:
    """For `recall`. Where it cannot be written, the next run loads the model to learn it."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(cache, identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({"digest": digest}, file)
        Path(file.name).replace(path)


def _path(cache: Path, identity: str) -> Path:
    return cache.expanduser() / "digests" / f"{identity}.json"


def _facts(source: str | None) -> Facts:
    """Facts that tell a source from another one, or from itself before a change."""
    if source is None:
        return []
    if source == "demo":
        return list(_files(Path(str(resources.files("sd_core.demo").joinpath("demo.safetensors")))))
    if source.startswith(hub.PREFIX):
        return [source, hub.commit_of(source)]
    if source.startswith(S3):
        from worker.checkpoint.s3_source import RemoteModel  # boto3 takes a while to import

        files = RemoteModel(source).files()
        if not all(file.etag for file in files):
            raise _DoubtError(f"{source}: the server says no ETag")
        return [source, *([file.name, file.etag, file.size_bytes] for file in files)]
    return list(_files(local_path(source)))


def _facts_of_file(source: str) -> Facts:
    """The same for a file that is merged: one on the hub or in a bucket is as it was."""
    if source.startswith((hub.PREFIX, S3)):
        raise _DoubtError(f"{source}: it is elsewhere")
    return list(_files(local_path(source)))


def _files(path: Path) -> Iterator[Facts]:
    """Facts of a file, or of all files in a folder: a new one there may be read the next time."""
    if not path.is_dir():
        yield _stat(path.resolve())
        return
    count = 0
    for folder, folders, names in os.walk(path.resolve(), followlinks=True):
        folders.sort()
        count += len(names) + len(folders)
        if count > MOST_FILES:
            raise _DoubtError(f"{path}: it holds more than {MOST_FILES} files")
        for name in sorted(names):
            yield _stat(Path(folder, name))


def _stat(path: Path) -> Facts:
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


@functools.cache
def _code() -> str:
    """Digest of the code that reads weights and hashes them; another version may differ."""
    digest = hashlib.sha256()
    core = Path(str(resources.files("sd_core")))
    modules = [core / name for name in ("spec.py", "model/tokenizer.py", "vocab/bpe.py")]
    for path in (*modules, *sorted((core / "weights").rglob("*.py"))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
