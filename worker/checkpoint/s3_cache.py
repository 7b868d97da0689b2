"""Models from buckets, kept on disk: each is downloaded once a machine, and again when it changed.

    <cache>/s3/<model>/<version>/    there means whole
                       latest        names the version that was asked for last
             <version>.twice         it was downloaded a second time, and will not be a third
                       lock          held by the process that downloads

A version stands for what the server says of the files: their names, ETags and sizes. Older ones
stay until somebody deletes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobs.errors import ModelError, StoreError
from jobs.formatting import reason, size
from worker.checkpoint.s3_source import RemoteFile, RemoteModel

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told the bytes that are here and those of the whole, now and then, from several threads."""

LOG_EVERY_S = 10.0


def fetch(
    source: str,
    cache: Path,
    *,
    pinned: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file or folder in which the model is on this machine, downloaded if need be.

    source: see `RemoteModel`. cache: a folder, made if need be; may start with `~`. pinned: the
    caller checks the digest of the weights, so an earlier download will do while the server is
    away. again: the one that is here is not what it must be, so a bit may have flipped: it is
    replaced, once for each version. progress: by default, log lines.

    Raises `ModelError` if the model cannot be had or kept, `StoreError` if that may pass.
    """
    remote = RemoteModel(source)
    try:
        folder = cache.expanduser() / "s3" / _folder_name(remote)
        try:
            files = remote.files()
        except StoreError as error:
            version = _instead(folder, pinned, error)
        else:
            version = folder / _version_name(files)
            if again or not version.is_dir():
                _download(remote, files, version, progress or _LogLines(source), again=again)
            _set_latest(folder, version.name)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where ~ is
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"{source}: it cannot be kept in {cache}: {why} (SDBATCH_CACHE names the folder)"
        ) from None
    return version if remote.is_folder else version / remote.name


def _folder_name(remote: RemoteModel) -> str:
    return f"{remote.name[:80]}-{hashlib.sha256(remote.source.encode()).hexdigest()[:16]}"


def _version_name(files: Sequence[RemoteFile]) -> str:
    said = json.dumps([(file.name, file.etag, file.size_bytes) for file in files])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _instead(folder: Path, pinned: bool, error: StoreError) -> Path:
    """The version that was there last, for a server that is unreachable."""
    try:
        kept = folder / (folder / "latest").read_text()
    except FileNotFoundError:
        raise error from None
    if not kept.is_dir():
        raise error
    if not pinned:
        raise StoreError(
            f"{error}; the copy in {kept} would do if the model list had its digest"
        ) from None
    log.warning("%s; using the copy in %s", error, kept)
    return kept


def _set_latest(folder: Path, name: str) -> None:
    latest = folder / "latest"
    with contextlib.suppress(FileNotFoundError):
        if latest.read_text() == name:
            return
    unfinished = folder / f"latest.{os.getpid()}-{threading.get_ident()}"  # of one writer
    unfinished.write_text(name)
    unfinished.replace(latest)


def _download(
    remote: RemoteModel,
    files: Sequence[RemoteFile],
    version: Path,
    progress: Progress,
    *,
    again: bool,
) -> None:
    """Makes the version's folder, in one moment, once all is in it; see `fetch` for `again`.

    What an interrupted download left is not continued: after a power cut, nobody knows what of it
    is really there.
    """
    folder = version.parent
    folder.mkdir(parents=True, exist_ok=True)
    twice, old = folder / f"{version.name}.twice", folder / f"{version.name}.old.part"
    with _locked(folder / "lock", remote.source):
        if version.is_dir() and (twice.exists() or not again):  # another process was faster
            return
        for left in folder.glob("*.part"):
            shutil.rmtree(left)
        total_bytes = sum(file.size_bytes for file in files)
        free_bytes = shutil.disk_usage(folder).free
        if total_bytes > free_bytes:
            raise ModelError(
                f"{remote.source}: it takes {size(total_bytes)}, and {size(free_bytes)} are free "
                f"in {folder}; free some, or name another folder in SDBATCH_CACHE"
            )
        unfinished = folder / f"{version.name}.part"
        try:
            _write(remote, files, unfinished, _Counter(total_bytes, progress))
            if remote.files() != files:
                raise StoreError(f"{remote.source}: it changed while it was downloaded")
            if version.is_dir():
                version.replace(old)
            unfinished.replace(version)
            if again:
                twice.touch()
            _sync(folder)
        finally:
            shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(unfinished, ignore_errors=True)


def _write(
    remote: RemoteModel, files: Sequence[RemoteFile], folder: Path, counter: _Counter
) -> None:
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.download(file, path, counter.add)
        written = path.stat().st_size
        if written != file.size_bytes:
            raise StoreError(
                f"{remote.source}: {file.name} has {file.size_bytes} bytes, and {written} came"
            )
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path, source: str) -> Iterator[None]:
    """Waits as long as another process of this machine downloads the same."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that downloads %s", source)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Counter:
    """Adds bytes up for a progress."""

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes = total_bytes
        self._progress = progress
        self._done_bytes = 0
        self._lock = threading.Lock()
        progress(0, total_bytes)

    def add(self, count_bytes: int) -> None:
        with self._lock:
            self._done_bytes += count_bytes
            self._progress(self._done_bytes, self._total_bytes)


class _LogLines:
    """One at the start, one at the end, and one every few seconds between."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at_s = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if 0 < done_bytes < total_bytes and now_s - self._at_s < LOG_EVERY_S:
            return
        self._at_s = now_s
        log.info("downloading %s: %s of %s", self._source, size(done_bytes), size(total_bytes))
