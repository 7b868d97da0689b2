"""Pauses before a process that died is started again."""

from __future__ import annotations

from jobs.supervise.restarts import Restarts

PAUSES_S = (1.0, 2.0, 4.0)
STEADY_S = 300.0


def test_pauses_grow_until_a_process_lives_long():
    now = 0.0
    restarts = Restarts(PAUSES_S, STEADY_S, clock=lambda: now)
    deaths = []
    for _ in range(5):
        restarts.alive()
        deaths.append((restarts.died(), restarts.pause()))
    assert deaths == [(False, 1.0), (False, 2.0), (False, 4.0), (True, 4.0), (True, 4.0)]
    assert not restarts.due()
    now += PAUSES_S[-1]
    assert restarts.due()
    restarts.alive()
    now += STEADY_S - 1
    assert restarts.died()
    restarts.alive()
    now += STEADY_S
    assert (restarts.died(), restarts.pause()) == (False, PAUSES_S[0])


def test_a_process_that_never_came_to_life_died_quickly():
    now = 0.0
    restarts = Restarts(PAUSES_S, STEADY_S, clock=lambda: now)
    now += 2 * STEADY_S
    assert [restarts.died() for _ in range(4)] == [False, False, False, True]
