"""Ledgers: which images of which jobs are done, and who may render the others."""

from __future__ import annotations

import re

from jobs.errors import LedgerError
from jobs.ledger.base import Ledger
from jobs.ledger.types import LEASE_S

__all__ = ["Ledger", "open_ledger"]

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,19}")


def open_ledger(url: str, *, lease_s: float = LEASE_S) -> Ledger:
    """The ledger at `url`; nothing is contacted yet. Raises `LedgerError`.

    url: a Redis or Valkey server as `jobs.ledger.redis.address` describes, or `memory://`, a new
    ledger for this process alone. lease_s: how long a claim lasts without a heartbeat.
    """
    url = url.strip()
    scheme, separator, _ = url.partition("://")
    if separator and scheme in REDIS_SCHEMES:
        # redis-py takes a quarter of a second to import; commands without a ledger do without.
        from jobs.ledger.redis.connect import connect
        from jobs.ledger.redis.ledger import RedisLedger

        return RedisLedger(connect(url), lease_s=lease_s)
    if url == "memory://":
        from jobs.ledger.memory.ledger import MemoryLedger

        return MemoryLedger(lease_s=lease_s)
    # The address may hold a password, so that no more of it is repeated than its scheme.
    known = separator and _SCHEME.fullmatch(scheme)
    named = f"no ledger is known for {scheme}://" if known else "the ledger's address is no URL"
    raise LedgerError(f"{named}; give redis://host:port")
