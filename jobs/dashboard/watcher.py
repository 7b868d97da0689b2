"""The one thread of a server that looks at the ledger, while a browser listens."""

from __future__ import annotations

import asyncio
import logging
import threading

from jobs.dashboard.feed import Feed
from jobs.dashboard.hub import Hub, written

EVERY_S = 0.5
REST_S = 1.0

log = logging.getLogger(__name__)


class Watcher:
    """Looks with `feed` and tells `hub`, in whose event loop it is started."""

    def __init__(self, feed: Feed, hub: Hub) -> None:
        self._feed = feed
        self._hub = hub
        self._stop = threading.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        name = "sdbatch-dashboard-watcher"
        # A ledger that does not answer may hold it for seconds, which nobody is to wait for.
        threading.Thread(target=self._run, args=(loop,), name=name, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stop.is_set():
            if not self._hub.wanted.wait(REST_S):
                self._feed.rest()
                continue
            try:
                messages = [written(message) for message in self._feed.look()]
            except Exception:  # without this thread, every page would stand still
                log.exception("looking at the ledger failed, trying again")
                messages = []
            try:
                if messages:
                    loop.call_soon_threadsafe(self._hub.publish, messages)
            except RuntimeError:  # the server ended meanwhile
                return
            self._stop.wait(EVERY_S)
