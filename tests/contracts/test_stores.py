"""What every store promises (`jobs.storage.base.Store`), checked over each of them."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.storage import Store, get_verified, open_store
from jobs.storage.base import MAX_KEY_BYTES, check_key, is_segment

BAD_KEYS = [
    "",
    "/absolute",
    "trailing/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x7fb",
    "\ud800",
    ".tmp-mine",
    "a/.tmp-mine",
    "é" * 128,
    "a/" * 520 + "b",
]


@pytest.fixture(params=["local", "s3"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new, empty store of each kind is; another process can open it by this, too."""
    if request.param == "local":
        return str(tmp_path / "store")
    return request.getfixturevalue("s3_address")


@pytest.fixture
def store(address: str) -> Store:
    return open_store(address)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing over S3 takes many requests, as that of a large job does."""
    monkeypatch.setattr("jobs.storage.s3.store.PAGE_KEYS", 3)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_what_is_put_comes_back(store: Store):
    assert store.put("job/images/a.png", b"pixels")
    assert store.get("job/images/a.png") == b"pixels"
    info = store.head("job/images/a.png")
    assert info is not None
    assert (info.key, info.size_bytes) == ("job/images/a.png", 6)


def test_an_empty_object_is_an_object(store: Store):
    assert store.put("empty", b"")
    assert store.get("empty") == b""
    assert [(i.key, i.size_bytes) for i in store.list("")] == [("empty", 0)]


def test_no_more_is_read_than_the_limit(store: Store):
    store.put("key", b"x" * 1000)
    assert store.get("key", limit_bytes=1000) == b"x" * 1000
    for limit in (999, 10, 0):
        with pytest.raises(DamagedError, match=rf"key has 1,000 bytes, more than the {limit} "):
            store.get("key", limit_bytes=limit)
    store.put("empty", b"")
    assert store.get("empty", limit_bytes=0) == b""
    with pytest.raises(NotFoundError):
        store.get("none", limit_bytes=0)


def test_a_digest_is_compared(store: Store):
    store.put("key", b"pixels")
    sha256 = hashlib.sha256(b"pixels").hexdigest()
    assert get_verified(store, "key", sha256, limit_bytes=6) == b"pixels"
    with pytest.raises(DamagedError, match=f"key is damaged: its sha256 is {sha256}, not 0000"):
        get_verified(store, "key", "0" * 64, limit_bytes=6)
    with pytest.raises(DamagedError, match="more than the 5 bytes"):
        get_verified(store, "key", sha256, limit_bytes=5)
    with pytest.raises(NotFoundError):
        get_verified(store, "none", sha256, limit_bytes=6)


def test_first_writer_wins(store: Store):
    assert store.put("key", b"first") is True
    assert store.put("key", b"second") is False
    assert store.get("key") == b"first"


def test_overwrite_replaces(store: Store):
    assert store.put("key", b"first", overwrite=True) is True
    assert store.put("key", b"second and longer", overwrite=True) is True
    assert store.get("key") == b"second and longer"


def test_a_copy_is_the_same_object(store: Store):
    store.put("job/images/a.png", b"pixels")
    assert store.copy("job/images/a.png", "other/images/b.png") is True
    assert store.get("other/images/b.png") == b"pixels"
    before, after = store.head("job/images/a.png"), store.head("other/images/b.png")
    assert before is not None
    assert after is not None
    assert after.size_bytes == before.size_bytes
    assert after.metadata == before.metadata  # its digest among it, where a store notes one


def test_a_copy_replaces_nothing(store: Store):
    store.put("a", b"one")
    store.put("b", b"two")
    assert store.copy("a", "b") is False
    assert store.get("b") == b"two"


def test_of_nothing_there_is_no_copy(store: Store):
    with pytest.raises(NotFoundError, match="none"):
        store.copy("none", "copy")
    assert store.head("copy") is None


@pytest.mark.parametrize("size", [0, 10, 20 * 2**20 + 7])
def test_a_file_of_any_size_is_put_whole(store: Store, tmp_path: Path, size: int):
    path, data = tmp_path / "file", (bytes(range(256)) * (size // 256 + 1))[:size]
    path.write_bytes(data)
    store.put("job/00000.tar", b"before")
    store.put_file("job/00000.tar", path)
    assert store.get("job/00000.tar", limit_bytes=size) == data
    assert store.sha256("job/00000.tar") == hashlib.sha256(data).hexdigest()
    assert keys(store) == ["job/00000.tar"]


def test_digests_that_a_store_knows(store: Store):
    store.put("a", b"one")
    assert store.sha256("a") == hashlib.sha256(b"one").hexdigest()
    assert store.sha256("none") is None


def test_what_is_not_there(store: Store):
    assert store.head("none") is None
    assert store.head("none/below") is None
    assert keys(store) == []
    assert keys(store, "none/") == []
    with pytest.raises(NotFoundError, match="none"):
        store.get("none")
    store.put("file", b"")
    assert store.head("file/below") is None
    with pytest.raises(NotFoundError):
        store.get("file/below")


def test_a_prefix_of_a_key_is_no_object(store: Store):
    store.put("job/images/a.png", b"")
    assert store.head("job/images") is None
    with pytest.raises(NotFoundError):
        store.get("job/images")


def test_delete_is_idempotent(store: Store):
    store.put("job/key", b"x")
    store.delete("job/key")
    store.delete("job/key")
    store.delete("job/key/below")
    assert store.head("job/key") is None
    assert store.put("job/key", b"again") is True


def test_list_is_sorted_by_key_and_filtered_by_prefix(store: Store):
    put = ["a0", "a-b", "a/b0/c", "a/b/c-1", "é", "Z", "a/b c"]
    for key in put:
        store.put(key, key.encode())
    assert keys(store) == sorted(put)
    assert keys(store, "a/") == ["a/b c", "a/b/c-1", "a/b0/c"]
    assert keys(store, "a/b") == ["a/b c", "a/b/c-1", "a/b0/c"]
    assert keys(store, "a/b/") == ["a/b/c-1"]
    assert keys(store, "a/b/c-1") == ["a/b/c-1"]
    assert keys(store, "a0") == ["a0"]


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(st.text("ab-/. é", min_size=1), min_size=1, max_size=3), max_size=12))
def test_order_is_that_of_the_keys(store: Store, small_pages: None, names: list[list[str]]):
    folder = f"{uuid.uuid4().hex}/"
    wanted: set[str] = set()
    for parts in names:
        key = folder + "/".join(part.replace("/", "") for part in parts)
        if any(
            f"{key}/".startswith(f"{other}/") or other.startswith(f"{key}/") for other in wanted
        ):
            continue  # no key is also a folder
        try:
            store.put(key, b"", overwrite=True)
        except StoreError:  # no valid key
            continue
        wanted.add(key)
    assert keys(store, folder) == sorted(wanted)
    for start in {key[: (len(folder) + len(key)) // 2] for key in wanted}:
        assert keys(store, start) == sorted(key for key in wanted if key.startswith(start))


def test_list_is_not_read_as_a_whole(store: Store, small_pages: None):
    for number in range(20):
        store.put(f"n/{number:02d}", b"", overwrite=True)
    listing = store.list("n/")
    assert next(listing).key == "n/00"
    store.delete("n/19")
    assert "n/19" not in [info.key for info in listing]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused_everywhere(store: Store, key: str):
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b""),
        lambda: store.put(key, b"", overwrite=True),
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.url(key),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="key"):
            call()
    assert keys(store) == []


@pytest.mark.parametrize("prefix", ["../", "/etc/", "a/../../"])
def test_a_prefix_does_not_leave_the_store(store: Store, prefix: str):
    with pytest.raises(StoreError, match="key"):
        keys(store, prefix)


@pytest.mark.parametrize(
    "key", ["a", "a b", "日本/é.png", "-", "...", ".hidden", "x" * 255, "'\"<>&?#%*|:"]
)
def test_odd_keys_that_are_fine(store: Store, key: str):
    assert store.put(key, b"x")
    assert store.get(key) == b"x"
    assert keys(store) == [key]


def test_key_limits():
    assert is_segment("x" * 255)
    assert not is_segment("x" * 256)
    fitting = "/".join(["x" * 255] * 4)
    assert len(fitting) == MAX_KEY_BYTES - 1
    assert check_key(fitting + "a"[:0]) == fitting
    with pytest.raises(StoreError, match="1024 bytes"):
        check_key(fitting + "/x")


def test_one_of_many_threads_wins(store: Store):
    start = threading.Barrier(16)

    def write(number: int) -> bool:
        start.wait()
        return store.put("race/key", b"%d" % number * 10_000)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, range(16)))
    assert won.count(True) == 1
    assert store.get("race/key") == b"%d" % won.index(True) * 10_000


def _write_from_a_process(address: str, number: int, start, results) -> None:
    store = open_store(address)
    start.wait()
    results.put([store.put(f"race/{key}", b"%d" % number * 1000) for key in range(20)])


def test_one_of_many_processes_wins(address: str, store: Store):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_write_from_a_process, args=(address, number, start, results))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    won = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [sum(column) for column in zip(*won, strict=True)] == [1] * 20
    assert all(len(set(store.get(f"race/{key}"))) == 1 for key in range(20))


def test_readers_never_see_a_part(store: Store):
    sizes = (100_000, 300_000)
    store.put("key", b"0" * sizes[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(40):
            store.put("key", b"%d" % (turn % 2) * sizes[turn % 2], overwrite=True)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        seen = store.get("key")
        assert (len(seen), len(set(seen))) in [(size, 1) for size in sizes]
    writer.join()


def test_check_writable_leaves_nothing_behind(store: Store):
    store.check_writable()
    store.check_writable()
    assert keys(store) == []


def test_url_names_the_key(store: Store):
    assert store.url("job/index.html").endswith("job/index.html")


def test_folders_are_named_whatever_they_hold(store: Store):
    for number in range(3):
        for name in ("b-1", "a-1", "a-2", "ab"):
            store.put(f"{name}/images/{number}.png", b"x")
    store.put("a-file", b"x")
    assert list(store.folders("a-", 1000)) == ["a-1", "a-2"]
    assert sorted(store.folders("", 2000)) == ["a-1", "a-2", "ab", "b-1"]
    assert len(store.folders("", 2)) == 2
    assert list(store.folders("c", 10)) == []


def test_a_store_that_is_empty_has_no_folders(store: Store):
    assert list(store.folders("a", 10)) == []


def test_head_says_when_an_object_was_written(store: Store):
    store.put("key", b"x")
    info = store.head("key")
    assert info is not None
    assert info.modified_s is not None
    assert info.modified_s > 1.5e9
