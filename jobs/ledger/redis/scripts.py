"""The Lua scripts: each is one atomic step of the Redis ledger."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Script:
    """text: what the server runs; sha1: what it knows it by once it has seen it."""

    text: str
    sha1: str


@functools.cache
def load(name: str) -> Script:
    """The script `lua/<name>.lua`, with what all of them share in front."""
    folder = resources.files("jobs.ledger.redis") / "lua"
    text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in ("common", name))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
