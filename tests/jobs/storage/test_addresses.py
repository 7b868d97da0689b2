"""Where stores are: the same place in other words, and what a worker may open."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError, StoreError
from jobs.storage import LocalStore, open_store
from jobs.storage.addresses import canonical_address, is_within, opener, same_place


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("/data//jobs/./a/", "/data/jobs/a"),
        ("out/", "out"),
        ("file:///data/my%20jobs/", "/data/my jobs"),
        ("file://localhost/data", "/data"),
        ("gs://bucket/", "gs://bucket/"),
    ],
)
def test_one_way_to_write_an_address(address, canonical):
    assert canonical_address(address) == canonical
    assert same_place(address, canonical)


@pytest.mark.parametrize(
    ("one", "other"),
    [("s3://bucket/a", "s3://bucket/b"), ("s3://bucket/a", "/bucket/a"), ("/a", "/b"), ("a", "/a")],
)
def test_other_places(one, other):
    assert not same_place(one, other)


def test_links_lead_to_the_same_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert same_place(str(tmp_path / "link"), str(tmp_path / "real"))  # neither is there yet
    (tmp_path / "real").mkdir()
    assert same_place(str(tmp_path / "link/a/.."), str(tmp_path / "real"))


@pytest.mark.parametrize(
    ("address", "place", "within"),
    [
        ("s3://bucket/jobs", "s3://bucket/jobs", True),
        ("s3://bucket/jobs/mine/", "s3://bucket/jobs/", True),
        ("s3://bucket/jobs", "s3://bucket", True),
        ("s3://bucket/jobs-2", "s3://bucket/jobs", False),
        ("s3://bucket", "s3://bucket/jobs", False),
        ("s3://bucket-2/jobs", "s3://bucket", False),
        ("/data/jobs/a", "/data/jobs", True),
        ("file:///data/jobs/a", "/data/jobs/", True),
        ("/data/jobs/../secret", "/data/jobs", False),
        ("/data/jobs2", "/data/jobs", False),
        ("s3://data/jobs", "/", False),
        ("/a\0b", "/data", False),
    ],
)
def test_within(address, place, within):
    assert is_within(address, place) is within


def test_a_link_out_of_an_allowed_folder(tmp_path):
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed/out").symlink_to(tmp_path / "secret")
    assert not is_within(str(tmp_path / "allowed/out"), str(tmp_path / "allowed"))


class TestOpener:
    def test_without_a_list_all_stores_open(self, tmp_path):
        store = opener(())(str(tmp_path))
        assert isinstance(store, LocalStore)

    def test_others_are_refused_and_that_is_no_failure_of_a_store(self, tmp_path):
        allowed = opener(("s3://bucket/jobs", str(tmp_path / "jobs")))
        assert allowed(str(tmp_path / "jobs/a")).url("x") == str(tmp_path / "jobs/a/x")
        with pytest.raises(InputError, match=r"/etc is none that this worker may use; SDBATCH_ST"):
            allowed("/etc")
        with pytest.raises(InputError, match="SDBATCH_STORES allows s3://bucket/jobs, /"):
            allowed("s3://bucket/other")

    def test_a_place_that_is_none(self):
        with pytest.raises(StoreError, match="no bucket name"):
            opener(("s3://Bucket",))


@pytest.mark.parametrize(
    "address",
    [
        str(Path("s3://bucket/jobs")),
        "s3:/bucket/jobs",
        "S3:/bucket",
        "/srv/s3:/key:secret@bucket/jobs",
        "./s3:",
        "file:/data/jobs",
        "file:///data/s3:/bucket",
        "gs:/bucket",
    ],
)
def test_an_address_that_lost_a_slash_is_no_folder(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    lost = r"a folder named \S+: is an address that lost a slash.*; give \S+:// as a text"
    with pytest.raises(StoreError, match=lost) as caught:
        open_store(address)
    assert "secret" not in str(caught.value)
    if "://" not in address:
        for refuse in (canonical_address, LocalStore, lambda place: opener([place])):
            with pytest.raises(StoreError, match=lost):
                refuse(address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["s3", "runs:2/x", "s3:backup", "a:b/c", "C:"])
def test_folders_with_colons(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    assert open_store(folder).url("x") == str(tmp_path / folder / "x")
