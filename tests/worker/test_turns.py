"""Shards side by side, and an image that nothing else runs beside."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers import wait_for
from worker.turns import Turns


def test_shards_run_side_by_side():
    turns, both = Turns(), threading.Barrier(2, timeout=60)

    def work() -> None:
        with turns.together():
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work), pool.submit(work)]:
            done.result()


def test_whoever_wants_to_be_alone_comes_next_and_is_alone():
    turns, order = Turns(), []
    leave = threading.Event()

    def work(name: str, way) -> None:
        with way():
            order.append(f"{name} in")
            if name != "late":
                assert leave.wait(60)
            order.append(f"{name} out")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(work, "first", turns.together)
        wait_for(lambda: order, "the first to be inside")
        suspect = pool.submit(work, "suspect", turns.alone)
        wait_for(lambda: turns.wanted, "the second to wait")
        late = pool.submit(work, "late", turns.together)
        leave.set()
        for done in (first, suspect, late):
            done.result(timeout=60)
    assert order == ["first in", "first out", "suspect in", "suspect out", "late in", "late out"]


def test_a_failure_lets_the_next_one_in():
    turns = Turns()
    for way in (turns.together, turns.alone, turns.together):
        with pytest.raises(ZeroDivisionError), way():
            _ = 1 / 0
    assert not turns.wanted
