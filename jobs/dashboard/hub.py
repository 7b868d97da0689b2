"""The browsers that listen: one message goes to all of them, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterable

from jobs.dashboard.feed import Message

MOST_LISTENERS = 64

MOST_UNREAD = 100
"""Messages that wait for a slow browser; one that has more is sent away, and asks for all."""

PING_S = 15.0
"""Pause after which a comment is sent: a connection that is gone is found out by it."""

PING = b": still here\n\n"


class Hub:
    """Listeners of one event loop. Only `wanted` may be used from other threads."""

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self._queues: set[asyncio.Queue[bytes | None]] = set()

    @property
    def full(self) -> bool:
        return len(self._queues) >= MOST_LISTENERS

    def publish(self, messages: Iterable[bytes]) -> None:
        """Give messages, made by `written`, to all listeners."""
        for message in messages:
            for queue in list(self._queues):
                try:
                    queue.put_nowait(message)
                except asyncio.QueueFull:
                    self._send_away(queue)

    def close(self) -> None:
        """Send everybody away."""
        for queue in list(self._queues):
            self._send_away(queue)

    async def listen(self, first: bytes) -> AsyncIterator[bytes]:
        """Messages from now on, after `first`; ends when the listener is sent away."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_UNREAD)
        self._queues.add(queue)
        self.wanted.set()
        try:
            yield first
            while True:
                message: bytes | None = PING
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PING_S):
                        message = await queue.get()
                if message is None:
                    return
                yield message
        finally:
            self._forget(queue)

    def _send_away(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._forget(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    def _forget(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._queues.discard(queue)
        if not self._queues:
            self.wanted.clear()


def written(message: Message) -> bytes:
    """A message as the stream has it: JSON has no line ends."""
    name, values = message
    return f"event: {name}\ndata: {json.dumps(values)}\n\n".encode()
