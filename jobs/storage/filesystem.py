"""The local store: a folder, on a POSIX file system.

An object is written to a hidden temporary file in its own folder, brought to the disk, and then
given its name in one step. So a crash or a full disk leaves whole objects only, and temporary
files, which are never listed and are swept up later. Content types are not kept.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.errors import DamagedError, NotFoundError, StoreError, StoreFullError
from jobs.storage.base import (
    MAX_OBJECT_BYTES,
    MOST_FOLDERS,
    TEMPORARY_PREFIX,
    ObjectInfo,
    check_key,
    check_prefix,
    is_segment,
    too_large,
)
from jobs.storage.folders import check_folder

STALE_AFTER_S = 3600.0
"""Age from which a temporary file is taken for a crash's: writing one takes seconds."""

# What `link` says on file systems that have no hard links (FAT, many network and cloud mounts).
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_FULL = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than allowed here; see `ulimit -f`",
}
_CAUSES = {
    errno.EACCES: "no permission; choose another folder or change its rights",
    errno.EPERM: "no permission; choose another folder or change its rights",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EEXIST: "a file is where a folder should be; move it away or choose another folder",
    errno.ENOTDIR: "a file is where a folder should be; move it away or choose another folder",
    errno.EISDIR: "a folder is where a file should be; move it away or choose another folder",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose shorter names",
    errno.ENOENT: "its folder was removed meanwhile; run again to write what is missing",
    errno.ESTALE: "the network file system has lost it; mount it again",
    errno.EIO: "the disk reports an error; check it before you go on",
}


class LocalStore:
    """Objects as files below `root`; the folder is created when first written to.

    Raises `StoreError` for a root that is an address, see `check_folder`.
    """

    def __init__(self, root: Path | str) -> None:
        check_folder(root)
        self.root = Path(root).absolute()
        self._lock = threading.Lock()
        self._root_made = False
        self._swept: set[Path] = set()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def put(self, key: str, data: bytes, *, overwrite: bool = False) -> bool:
        path = self._path(key)
        with _explained(path):
            if not overwrite and _info(key, path) is not None:
                return False
            folder = path.parent
            self._make_folder(folder)
            temporary = _write_temporary(folder, data)
            try:
                if overwrite:
                    temporary.replace(path)
                elif not _name_first(temporary, path):
                    return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(folder)
        return True

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with _explained(target):
            self._make_folder(target.parent)
            temporary = _write_temporary(target.parent, path)
            try:
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def sha256(self, key: str) -> str | None:
        path = self._path(key)
        with _explained(path):
            try:
                with open(path, "rb", opener=_open_at_once) as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def get(self, key: str, *, limit_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        path = self._path(key)
        with _explained(path):
            try:
                return _read(path, limit_bytes)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NotFoundError(f"{path}: no such object") from None

    def copy(self, source: str, key: str) -> bool:
        return self.head(key) is None and self.put(key, self.get(source))

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        with _explained(path):
            return _info(key, path)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder, _, _ = check_prefix(prefix).rpartition("/")
        yield from self._walk(f"{folder}/" if folder else "", prefix)

    def folders(self, prefix: str, limit: int) -> Sequence[str]:
        with _explained(self.root):
            try:
                found = sorted(
                    entry.name
                    for entry in os.scandir(self.root)
                    if entry.name.startswith(check_prefix(prefix))
                    and is_segment(entry.name)
                    and entry.is_dir()
                )
            except (FileNotFoundError, NotADirectoryError):
                return []
        return found[: min(limit, MOST_FOLDERS)]

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _explained(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def url(self, key: str) -> str:
        return str(self._path(key))

    def check_writable(self) -> None:
        with _explained(self.root):
            self._make_folder(self.root)
            # More than a block, so that a disk which only has room for names is found out too.
            _write_temporary(self.root, bytes(64 * 1024)).unlink()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _walk(self, folder: str, prefix: str) -> Iterator[ObjectInfo]:
        """Depth first; `folder` is empty or ends with a slash."""
        path = self.root / folder
        with _explained(path):
            try:
                # A folder sorts with its slash, as its keys do: "a-b" < "a/b" < "a0".
                names = sorted(
                    entry.name + "/" * entry.is_dir()
                    for entry in os.scandir(path)
                    if is_segment(entry.name)
                )
            except (FileNotFoundError, NotADirectoryError):
                return
        for key in (folder + name for name in names):
            if not key.startswith(prefix):
                continue
            if key.endswith("/"):
                yield from self._walk(key, prefix)
                continue
            with _explained(self.root / key):
                info = _info(key, self.root / key)
            if info is not None:  # otherwise deleted since the folder was read
                yield info

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` and sweep it, once. The root is never created a second time.

        A root that has gone was deleted or unmounted: writing on would put half of a job on
        another disk.
        """
        with self._lock:
            if self._root_made and not self.root.is_dir():
                raise StoreError(
                    f"{self.root} has gone while in use; bring it back (is it still mounted?) "
                    "and run again to write what is missing"
                )
            _make_folders(folder)
            self._root_made = True
            if folder in self._swept:
                return
            self._swept.add(folder)
        _sweep(folder)


def _info(key: str, path: Path) -> ObjectInfo | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if path.is_dir() else ObjectInfo(key, status.st_size, modified_s=status.st_mtime)


def _read(path: Path, limit_bytes: int) -> bytes:
    """A file's bytes. Raises `OSError`, and `DamagedError` if it has more than the limit."""
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(f"{path} is no file; move it away")
        if status.st_size > limit_bytes:
            raise too_large(str(path), status.st_size, limit_bytes)
        data = file.read(status.st_size + 1)
    if len(data) > limit_bytes:
        raise too_large(str(path), None, limit_bytes)
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Opens also a pipe that nobody writes to, and waits for nobody."""
    return os.open(path, flags | os.O_NONBLOCK)


def _write_temporary(folder: Path, content: bytes | Path) -> Path:
    """A new hidden file with these bytes, or those of a file, on the disk; none is left if that
    fails.
    """
    path = folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            if isinstance(content, Path):
                with content.open("rb") as source:
                    shutil.copyfileobj(source, file, length=2**20)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # also Ctrl-C in the middle
        path.unlink(missing_ok=True)
        raise
    return path


def _name_first(temporary: Path, path: Path) -> bool:
    """Give the file its name unless the name is taken; False if it is. The file may stay behind."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_first(temporary, path)
    return True


def _rename_first(temporary: Path, path: Path) -> bool:
    """The same without hard links: look, then rename, with the folder locked meanwhile."""
    import fcntl  # POSIX only: imported here so that the rest of the package loads anywhere

    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return False
        temporary.replace(path)
        return True
    finally:
        os.close(descriptor)  # this unlocks, too


def _make_folders(folder: Path) -> None:
    """`mkdir -p` whose result survives a power cut: each parent is synced after its new entry."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the folder's entries to the disk, so that a new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what some network file systems say: they cannot
            raise
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove temporary files that crashes left behind, and no younger ones: those are in use."""
    oldest = time.time() - STALE_AFTER_S
    for entry in os.scandir(folder):
        if entry.name.startswith(TEMPORARY_PREFIX):
            with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    Path(entry.path).unlink()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the operating system says into what a person can do about it."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        # The system names a parent folder where that is the one in the way.
        if isinstance(error.filename, str) and TEMPORARY_PREFIX not in error.filename:
            path = Path(error.filename)
        if code in _FULL:
            raise StoreFullError(
                f"{path}: {_FULL[code]} and run again; finished images are kept"
            ) from error
        cause = _CAUSES.get(code, error.strerror or str(error))
        raise StoreError(f"{path}: {cause}") from error
