"""Browsers that listen, fast and slow ones."""

from __future__ import annotations

import asyncio
import json

from jobs.dashboard import hub
from jobs.dashboard.hub import MOST_UNREAD, Hub, written


def test_messages_reach_all_and_a_slow_one_is_sent_away():
    async def listen():
        listeners = Hub()
        quick, slow = listeners.listen(b"first"), listeners.listen(b"first")
        assert [await anext(quick), await anext(slow)] == [b"first", b"first"]
        seen = []
        for number in range(MOST_UNREAD + 1):
            listeners.publish([str(number).encode()])
            seen.append(await anext(quick))
        left = [message async for message in slow]
        return seen, left, listeners.wanted.is_set()

    seen, left, wanted = asyncio.run(listen())
    assert seen == [str(number).encode() for number in range(MOST_UNREAD + 1)]
    assert left == []  # it asks for all again when it comes back
    assert wanted


def test_nobody_is_wanted_when_all_have_left():
    async def listen():
        listeners = Hub()
        listener = listeners.listen(b"first")
        await anext(listener)
        before = listeners.wanted.is_set()
        await listener.aclose()
        return before, listeners.wanted.is_set()

    assert asyncio.run(listen()) == (True, False)


def test_a_silence_is_filled(monkeypatch):
    """So that a connection that is gone is found out."""
    monkeypatch.setattr(hub, "PING_S", 0.001)

    async def listen():
        listener = Hub().listen(b"first")
        return [await anext(listener), await anext(listener)]

    assert asyncio.run(listen()) == [b"first", hub.PING]


def test_a_message_is_one_line_of_ascii():
    text = written(("jobs", [{"id": "a\nevent: gone\r\n\u2028ü</script>"}])).decode("ascii")
    name, data, *end = text.split("\n")
    assert (name, end) == ("event: jobs", ["", ""])
    assert json.loads(data.removeprefix("data: ")) == [{"id": "a\nevent: gone\r\n\u2028ü</script>"}]
