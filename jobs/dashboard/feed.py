"""News for browsers: what the ledger tells, one look after the other.

A look costs a fixed number of calls, however many jobs there are: one for the events of all jobs,
one for the figures of those that changed, and every few seconds one for the workers. Jobs that rest
are not asked about.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jobs.dashboard.views import View, failure_view, job_view, short, worker_view
from jobs.errors import LedgerError
from jobs.ledger.base import Ledger
from jobs.ledger.spans import read_spans
from jobs.ledger.types import JobStatus, News

SLOWLY_S = 2.0
"""Between two looks at workers, and at jobs whose figures change without an event."""

NEWS_AT_ONCE = 1000
LOOKS_AT_ONCE = 10
"""Pages of news that one look reads at most; what is more is passed over."""

MOST_JOBS = 200
"""Jobs whose figures are told at one look, others at the next; and jobs that count as being
rendered.
"""

MOST_SHOWN = 60
"""Pictures and failures that one look tells, the latest ones."""

Message = tuple[str, Any]
"""A name and JSON values: jobs, gone, workers, pictures, failures, ledger."""


class Feed:
    """Looks at a ledger and says what is new. Threads may look and ask at the same time.

    price: of a worker's hour in euros, or None.
    """

    def __init__(
        self,
        ledger: Ledger,
        price: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._price = price
        self._clock = clock
        self._lock = threading.Lock()
        self._after: str | None = None
        self._changed: dict[str, None] = {}  # jobs that are still to be told
        self._rendering: dict[str, None] = {}  # jobs, the latest seen last
        self._slowly_at = clock()
        self._away: str | None = None

    # Looking

    def look(self) -> list[Message]:
        """News since the last look. A ledger that is away is news, too."""
        try:
            with self._lock:
                messages = self._look()
        except LedgerError as error:
            self.rest()  # its events may count from another time when it is back
            if self._away == str(error):
                return []
            self._away = str(error)
            return [("ledger", {"error": short(self._away)})]
        if self._away is not None:
            self._away = None
            messages.insert(0, ("ledger", {"error": None}))
        return messages

    @property
    def away(self) -> str | None:
        """Why the ledger did not answer the last look, or None."""
        return self._away

    def rest(self) -> None:
        """Nobody looks for a while: the next look begins with what is new then."""
        with self._lock:
            self._after = None

    def _look(self) -> list[Message]:
        if self._after is None:
            self._begin()
        news = self._read_news()
        self._changed |= dict.fromkeys(one.job_id for one in news)
        messages: list[Message] = []
        if self._clock() >= self._slowly_at:
            self._slowly_at = self._clock() + SLOWLY_S
            self._changed |= self._rendering
            messages.append(("workers", self.workers()))
        asked = list(self._changed)[:MOST_JOBS]
        if asked:
            statuses = self._ledger.statuses(asked)
            for job_id in asked:
                del self._changed[job_id]
            self._remember(statuses)
            gone = sorted(set(asked) - {status.job_id for status in statuses})
            messages.append(("jobs", [job_view(status, self._price) for status in statuses]))
            if gone:
                messages.append(("gone", gone))
        for name, found in (("pictures", pictures_in(news)), ("failures", failures_in(news))):
            if found:
                messages.append((name, found))
        return messages

    def _begin(self) -> None:
        """Start from now."""
        before = self._ledger.news(limit=1)
        self._after = before[-1].event.id if before else "0"
        self._slowly_at = self._clock()

    def _read_news(self) -> list[News]:
        found: list[News] = []
        for _ in range(LOOKS_AT_ONCE):
            some = self._ledger.news(self._after, NEWS_AT_ONCE)
            found += some
            if some:
                self._after = some[-1].event.id
            if len(some) < NEWS_AT_ONCE:
                break
        return found

    # Asking

    def jobs(self, statuses: Sequence[JobStatus]) -> list[View]:
        """Views of jobs that somebody looks at."""
        with self._lock:
            self._remember(statuses)
        return [job_view(status, self._price) for status in statuses]

    def workers(self) -> list[View]:
        """Views of all workers. Raises `LedgerError`."""
        return [worker_view(one) for one in self._ledger.workers()]

    def _remember(self, statuses: Iterable[JobStatus]) -> None:
        """Remember which of these jobs are being rendered: their figures change by themselves."""
        for status in statuses:
            self._rendering.pop(status.job_id, None)
            if status.leased:
                self._rendering[status.job_id] = None
        for job_id in list(self._rendering)[:-MOST_JOBS]:
            del self._rendering[job_id]


def pictures_in(news: Iterable[News], most: int = MOST_SHOWN) -> list[View]:
    """The last images that were settled, oldest first."""
    found: list[View] = []
    for one in news:
        if one.event.kind == "settled":
            found += [
                {"job": one.job_id, "index": index, "time_s": one.event.time_s}
                for index in _images(one)
            ][-most:]
    return found[-most:]


def failures_in(news: Iterable[News], most: int = MOST_SHOWN) -> list[View]:
    """The last images that failed, oldest first."""
    found = [failure_view(one) for one in news if one.event.kind == "failed"]
    return [view for view in found if view is not None][-most:]


def _images(news: News) -> list[int]:
    """Images that an event names; none if it is not as it must be: another version wrote it."""
    try:
        return read_spans(news.event.values.get("images", ""), NEWS_AT_ONCE)
    except ValueError:
        return []
