"""Speed of each worker, from when its images were settled."""

from __future__ import annotations

from collections import defaultdict, deque

WINDOW_S = 60.0
"""Speeds are of the last minute."""

LEAST_S = 3.0
"""Time that a speed is of at least: images come several at once."""

MOST_SETTLES = 10_000
"""Settles that are remembered, of all workers together."""


class Speeds:
    """Images a second by worker. Times are the ledger's own, in seconds."""

    def __init__(self) -> None:
        self._settles: deque[tuple[float, str, int]] = deque(maxlen=MOST_SETTLES)

    def settled(self, time_s: float, owner: str, images: int) -> None:
        self._settles.append((time_s, owner, images))

    def by_owner(self, now_s: float) -> dict[str, float]:
        """Images a second of those that settled some at least twice within the window.

        The first settle only says when to begin: how long its images took is not known.
        """
        while self._settles and self._settles[0][0] < now_s - WINDOW_S:
            self._settles.popleft()
        began_s: dict[str, float] = {}
        images: defaultdict[str, int] = defaultdict(int)
        for time_s, owner, count in self._settles:
            if owner in began_s:
                images[owner] += count
            else:
                began_s[owner] = time_s
        return {
            owner: count / (now_s - began_s[owner])
            for owner, count in images.items()
            if now_s - began_s[owner] >= LEAST_S
        }
