"""Whose turn it is: full batches, urgent work first, nobody waits for ever."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from sd_core.engine.scheduler import MOST_OVERTAKEN, STARVED_TICKS, Scheduler

SMALL, WIDE = (8, 8), (8, 12)
ROOM = 8


@dataclass(eq=False)
class Plane:
    arrived: int
    left: int = 10
    rows: int = 2
    shape: tuple[int, int] = SMALL
    priority: int = 0
    started: bool = False
    times_bypassed: int = 0
    apart: bool = False

    @property
    def group(self) -> object:
        return self.shape, self.apart


def fly(scheduler: Scheduler[Plane], planes: list[Plane]) -> list[Plane]:
    """One evaluation; who had it. Those that are done leave the list."""
    choice = scheduler.choose(planes)
    assert choice is not None
    assert {plane.group for plane in choice.flights} == {choice.group}
    assert sum(plane.rows for plane in choice.flights) <= ROOM
    scheduler.served(choice, planes)
    for plane in choice.flights:
        plane.started = True
        plane.left -= 1
    planes[:] = [plane for plane in planes if plane.left]
    return choice.flights


def test_no_flights_no_choice():
    assert Scheduler(lambda shape: ROOM).choose([]) is None


def test_rows_that_a_pair_leaves_free_go_to_single_ones():
    planes = [Plane(n, left=20 - n) for n in range(3)] + [Plane(9, rows=1), Plane(10, rows=1)]
    planes.append(Plane(11))
    assert [p.arrived for p in fly(Scheduler(lambda shape: 7), planes)] == [0, 1, 2, 9]


def test_what_flies_goes_on_and_the_longest_waiting_one_joins():
    planes = [Plane(n, left=2) for n in range(4)]
    scheduler = Scheduler[Plane](lambda shape: ROOM)
    fly(scheduler, planes)
    planes += [Plane(5, left=30), Plane(6, left=40)]
    assert [p.arrived for p in fly(scheduler, planes)] == [0, 1, 2, 3]
    assert [p.arrived for p in fly(scheduler, planes)] == [6, 5]


def test_urgent_work_displaces_what_flies_at_the_next_step():
    planes = [Plane(n) for n in range(4)]
    scheduler = Scheduler[Plane](lambda shape: ROOM)
    fly(scheduler, planes)
    planes.append(Plane(9, priority=5))
    assert [p.arrived for p in fly(scheduler, planes)] == [9, 0, 1, 2]
    planes.append(Plane(10, priority=5, shape=WIDE))
    planes.append(Plane(11, priority=6, shape=WIDE))
    assert [p.arrived for p in fly(scheduler, planes)] == [11, 10]


def test_shapes_of_one_priority_take_turns():
    planes = [Plane(0), Plane(1, shape=WIDE)]
    scheduler = Scheduler[Plane](lambda shape: ROOM)
    seen = [fly(scheduler, planes)[0].arrived for _ in range(6)]
    assert seen in ([0, 1] * 3, [1, 0] * 3)


def test_images_of_one_shape_that_may_share_no_batch_take_turns():
    planes = [Plane(n, apart=n % 2 == 1) for n in range(4)]
    scheduler = Scheduler[Plane](lambda shape: ROOM)
    seen = [[plane.arrived for plane in fly(scheduler, planes)] for _ in range(4)]
    assert sorted(seen) == [[0, 2], [0, 2], [1, 3], [1, 3]]


def test_a_shape_of_low_priority_waits_only_so_long_and_never_delays_urgent_work_twice():
    planes = [Plane(0, left=200, priority=9), Plane(1, left=5, shape=WIDE)]
    scheduler = Scheduler[Plane](lambda shape: ROOM)
    seen = [fly(scheduler, planes)[0].arrived for _ in range(6 * (STARVED_TICKS + 1))]
    gaps = [n for n, arrived in enumerate(seen) if arrived == 1]
    assert len(gaps) == 5
    assert gaps[0] == STARVED_TICKS
    assert all(later - sooner == STARVED_TICKS + 1 for sooner, later in itertools.pairwise(gaps))


def test_a_short_image_is_not_overtaken_for_ever():
    short = Plane(0, left=1)
    planes = [short, *(Plane(n, left=2) for n in range(1, 5))]
    scheduler = Scheduler[Plane](lambda shape: ROOM)
    arrived, ticks = 5, 0
    while short.left:
        fly(scheduler, planes)
        while len(planes) < 9:  # longer ones keep coming
            planes.append(Plane(arrived, left=2))
            arrived += 1
        ticks += 1
        assert ticks < 2 * MOST_OVERTAKEN
    assert short.times_bypassed >= MOST_OVERTAKEN


def test_a_mixed_job_leaves_few_rows_empty():
    rng = random.Random(0)
    planes = [
        Plane(
            n,
            left=rng.randint(10, 60),
            rows=rng.choice((1, 2, 2, 2)),
            shape=rng.choice((SMALL, WIDE)),
        )
        for n in range(200)
    ]
    scheduler = Scheduler[Plane](lambda shape: 16)
    used = ticks = 0
    while planes:
        choice = scheduler.choose(planes)
        used += sum(plane.rows for plane in choice.flights)
        ticks += 1
        scheduler.served(choice, planes)
        for plane in choice.flights:
            plane.started = True
            plane.left -= 1
        planes = [plane for plane in planes if plane.left]
    assert used / (16 * ticks) > 0.97
