"""The local store against a real file system: full, read-only, in the way, gone, without links."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import ExitCode, StoreError, StoreFullError
from jobs.folder.layout import JobKeys
from jobs.storage import LocalStore, open_store
from jobs.storage import filesystem as module
from jobs.storage.base import content_type


def files(root: Path) -> list[str]:
    """Everything below root, temporary files too."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter and read; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Permissions apply, also where tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_full_disk(small_disk: Path):
    store = LocalStore(small_disk / "store")
    store.put("job/a", b"a" * 300_000)
    with pytest.raises(StoreFullError, match=r"job/b: the disk is full; free some space") as caught:
        store.put("job/b", b"b" * 2_000_000)
    assert caught.value.exit_code == ExitCode.STORE
    assert files(store.root) == ["job/a"]
    assert store.get("job/a") == b"a" * 300_000
    assert store.put("job/b", b"b" * 1000)


def test_full_disk_while_overwriting_keeps_the_old_object(small_disk: Path):
    store = LocalStore(small_disk)
    store.put("job/a", b"a" * 300_000)
    with pytest.raises(StoreFullError):
        store.put("job/a", b"b" * 900_000, overwrite=True)
    assert store.get("job/a") == b"a" * 300_000


def test_full_disk_is_found_before_the_work(small_disk: Path):
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(2_000_000))
    with pytest.raises(StoreFullError, match="full"):
        LocalStore(small_disk).check_writable()
    assert files(small_disk) == ["filler"]


def test_a_pipe_in_an_objects_place_keeps_nobody_waiting(store: LocalStore):
    store.put("job/a", b"a")
    os.mkfifo(store.root / "job/b")
    with pytest.raises(StoreError, match="job/b is no file; move it away"):
        store.get("job/b")


def test_a_device_in_an_objects_place_is_not_read(store: LocalStore):
    store.put("job/a", b"a")
    (store.root / "job/zero").symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="job/zero is no file; move it away"):
        store.get("job/zero")


def test_file_size_limit(store: LocalStore):
    store.put("job/a", b"a" * 10_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StoreFullError, match="ulimit -f"):
            store.put("job/b", b"b" * 100_000)
        assert store.put("job/c", b"c" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(store.root) == ["job/a", "job/c"]


def test_read_only_disk(small_disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = LocalStore(small_disk)
    with pytest.raises(StoreError, match="read-only"):
        store.check_writable()
    with pytest.raises(StoreError, match="read-only"):
        store.put("key", b"")


def test_folder_without_write_permission(open_folder: Path):
    (open_folder / "locked").mkdir(mode=0o555)
    for folder in ("locked", "locked/new"):
        store = LocalStore(open_folder / folder)
        with nobody(), pytest.raises(StoreError, match="no permission; choose another") as caught:
            store.check_writable()
        assert str(caught.value).startswith(f"{store.root}: ")
        with nobody(), pytest.raises(StoreError, match="no permission"):
            store.put("job/key", b"")


def test_unreadable_object(open_folder: Path):
    store = LocalStore(open_folder / "store")
    store.put("key", b"x")
    (store.root / "key").chmod(0)
    with nobody(), pytest.raises(StoreError, match="no permission"):
        store.get("key")


def test_a_file_where_a_folder_should_be(store: LocalStore):
    store.put("job", b"a file")
    with pytest.raises(StoreError, match=r"job: a file is where a folder should be") as caught:
        store.put("job/images/a.png", b"")
    assert str(store.root / "job") + ":" in str(caught.value)
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        LocalStore(store.root / "job").check_writable()
    assert store.get("job") == b"a file"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_where_a_file_should_be(store: LocalStore, overwrite: bool):
    store.put("job/a", b"")
    with pytest.raises(StoreError, match="a folder is where a file should be"):
        store.put("job", b"", overwrite=overwrite)
    assert files(store.root) == ["job/a"]


def test_name_too_long_for_the_system(tmp_path: Path):
    deep = LocalStore(tmp_path.joinpath(*["d" * 200] * 20))
    with pytest.raises(StoreError, match="too long"):
        deep.put("key", b"")


def test_root_removed_meanwhile(store: LocalStore):
    store.put("job/a", b"")
    shutil.rmtree(store.root)
    with pytest.raises(StoreError, match=r"has gone while in use; .*mounted"):
        store.put("job/b", b"")
    assert not store.root.exists()


def test_folder_removed_meanwhile(store: LocalStore, monkeypatch: pytest.MonkeyPatch):
    store.put("job/a", b"kept")

    def write_late(folder: Path, data: bytes) -> Path:
        shutil.rmtree(folder)
        return write(folder, data)

    write = module._write_temporary
    monkeypatch.setattr(module, "_write_temporary", write_late)
    with pytest.raises(StoreError, match=r"images/b: its folder was removed meanwhile"):
        store.put("job/images/b", b"")
    assert store.get("job/a") == b"kept"


def test_job_folder_removed_between_puts_is_made_again(store: LocalStore):
    store.put("job/a", b"")
    shutil.rmtree(store.root / "job")
    assert store.put("job/b", b"")


def test_stop_in_the_middle_leaves_no_temporary_file(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
):
    store.put("job/a", b"")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put("job/b", b"x")
    assert files(store.root) == ["job/a"]


def test_temporary_files_of_a_crash(store: LocalStore):
    store.put("job/a", b"")
    old, new = store.root / "job/.tmp-1-old", store.root / "job/.tmp-2-new"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    long_ago = time.time() - module.STALE_AFTER_S - 60
    os.utime(old, (long_ago, long_ago))
    assert [info.key for info in store.list("")] == ["job/a"]

    again = LocalStore(store.root)
    again.put("job/b", b"")
    assert files(store.root) == ["job/.tmp-2-new", "job/a", "job/b"]


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(self))

    monkeypatch.setattr(Path, "hardlink_to", unsupported)


def test_first_writer_wins_without_hard_links(store: LocalStore, no_hard_links: None):
    def write(number: int) -> bool:
        return store.put(f"job/{number % 20}", b"%d" % number)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(200)))
    assert won.count(True) == 20
    for number in (n for n, ok in enumerate(won) if ok):
        assert store.get(f"job/{number % 20}") == b"%d" % number
    assert len(files(store.root)) == 20


def test_files_are_readable_by_others_as_the_umask_says(store: LocalStore):
    before = os.umask(0o027)
    try:
        store.put("job/a", b"")
    finally:
        os.umask(before)
    assert (store.root / "job/a").stat().st_mode & 0o777 == 0o640


def test_files_that_are_no_keys_are_not_listed(store: LocalStore):
    store.put("job/a", b"")
    (store.root / "job" / "back\\slash").write_bytes(b"")
    (store.root / os.fsdecode(b"not-utf8-\xff")).write_bytes(b"")
    assert [info.key for info in store.list("")] == ["job/a"]


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
def test_open_store(tmp_path: Path, form: str):
    root = tmp_path / "with space"
    store = open_store(form.format(str(root).replace(" ", "%20") if ":" in form else root))
    assert isinstance(store, LocalStore)
    assert store.root == root
    assert not root.exists()


def test_open_store_relative_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    relative, home = open_store("out"), open_store("~/out")
    monkeypatch.chdir("/")
    assert isinstance(relative, LocalStore)
    assert isinstance(home, LocalStore)
    assert relative.root == tmp_path / "out"
    assert home.root == tmp_path / "home/out"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("gs://bucket", "no store is known for gs://"),
        ("http://host/x", "no store is known for http://; .* AWS_ENDPOINT_URL"),
        ("file://host/x", "three slashes"),
        ("file://", "three slashes"),
        ("http://[", "no store is known"),
        ("file://[", "three slashes"),
        ("a\0b", "is no path"),
        ("\ud800", "is no path"),
        ("~no-such-user/x", "is no path"),
    ],
)
def test_open_store_refuses(url: str, message: str):
    with pytest.raises(StoreError, match=message):
        open_store(url)


def test_job_keys():
    keys = JobKeys("shapes-1a2b")
    assert keys.manifest == "shapes-1a2b/manifest.yaml"
    assert keys.plan_part(3) == "shapes-1a2b/plan/part-00003.jsonl.gz"
    assert keys.input("ff.png") == "shapes-1a2b/inputs/ff.png"
    assert keys.records(12) == "shapes-1a2b/records/000012.jsonl"
    assert keys.failures == "shapes-1a2b/failures.jsonl"
    assert keys.index == "shapes-1a2b/index.html"
    assert keys.sheet(0) == "shapes-1a2b/grid-0000.jpg"
    assert keys.done == "shapes-1a2b/done.json"
    image = keys.image("cats/000007-s42", "0123456789abcdef" * 4, "jpeg")
    assert image == "shapes-1a2b/images/cats/000007-s42-0123456789abcdef.jpg"
    assert image.startswith(keys.images_prefix)
    assert keys(keys.path(image)) == image
    assert content_type(image) == "image/jpeg"
    assert content_type(keys.gallery_index(3)) == "text/javascript; charset=utf-8"
    assert content_type("x") == "application/octet-stream"


@pytest.mark.parametrize("job_id", ["", "a/b", "..", "a\0", "/a", ".tmp-x"])
def test_job_ids_are_folder_names(job_id: str):
    with pytest.raises(StoreError, match="job id"):
        JobKeys(job_id)


def test_an_image_name_cannot_leave_the_job():
    with pytest.raises(StoreError, match="would leave its folder"):
        JobKeys("job").image("../../etc/x", "0" * 64, "png")
