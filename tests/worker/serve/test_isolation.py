"""Shards side by side, and an image that nothing else runs beside."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers import wait_for
from worker.serve.isolation import SharedExclusiveLock


def test_shards_run_side_by_side():
    lock, both = SharedExclusiveLock(), threading.Barrier(2, timeout=60)

    def work() -> None:
        with lock.shared():
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work), pool.submit(work)]:
            done.result()


def test_whoever_wants_to_be_alone_comes_next_and_is_alone():
    lock, order = SharedExclusiveLock(), []
    leave = threading.Event()

    def work(name: str, way) -> None:
        with way():
            order.append(f"{name} in")
            if name != "late":
                assert leave.wait(60)
            order.append(f"{name} out")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(work, "first", lock.shared)
        wait_for(lambda: order, "the first to be inside")
        suspect = pool.submit(work, "suspect", lock.exclusive)
        wait_for(lambda: lock.wanted, "the second to wait")
        late = pool.submit(work, "late", lock.shared)
        leave.set()
        for done in (first, suspect, late):
            done.result(timeout=60)
    assert order == ["first in", "first out", "suspect in", "suspect out", "late in", "late out"]


def test_a_failure_lets_the_next_one_in():
    lock = SharedExclusiveLock()
    for way in (lock.shared, lock.exclusive, lock.shared):
        with pytest.raises(ZeroDivisionError), way():
            _ = 1 / 0
    assert not lock.wanted
