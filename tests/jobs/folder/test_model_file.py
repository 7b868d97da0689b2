"""A job's images are of one model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.errors import JobConflictError, StoreError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.model_file import pin_model
from jobs.storage import LocalStore

KEYS = JobKeys("job")


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def test_whoever_renders_first_decides(store):
    pin_model(JobFolder(store, KEYS), "v1", "a" * 64)
    pin_model(JobFolder(store, KEYS), "v1", "a" * 64)
    with pytest.raises(JobConflictError, match=r"v1, digest a{16}.*v1, digest b{16}"):
        pin_model(JobFolder(store, KEYS), "v1", "b" * 64)


def test_one_model_wins_a_race(store):
    def pin(digit):
        try:
            pin_model(JobFolder(store, KEYS), "v1", digit * 64)
        except JobConflictError:
            return None
        return digit

    with ThreadPoolExecutor(8) as pool:
        won = set(pool.map(pin, "0123456789abcdef" * 4)) - {None}
    assert len(won) == 1


def test_it_may_be_fixed_anew(store):
    pin_model(JobFolder(store, KEYS), "v1", "a" * 64)
    pin_model(JobFolder(store, KEYS), "v2", "b" * 64, overwrite=True)
    with pytest.raises(JobConflictError, match="v2"):
        pin_model(JobFolder(store, KEYS), "v1", "a" * 64)


def test_damage_is_named(store):
    store.put(KEYS.model(), b"{}")
    with pytest.raises(StoreError, match=r"model\.json is damaged"):
        pin_model(JobFolder(store, KEYS), "v1", "a" * 64)
