"""Checks of what every machine has that takes part: settings, queue, store. Each is quick."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Iterator
from importlib import metadata

from jobs.client.served import served_models
from jobs.doctor.finding import Finding, State
from jobs.errors import ExitCode, InputError, LedgerError, SdbatchError
from jobs.formatting import reason
from jobs.ledger import Ledger, open_ledger
from jobs.settings import Settings
from jobs.storage import LocalStore, Store

MOST_SKEW_S = 5.0
"""Difference of clocks that is worth a look: leases and times of records go by them."""

REFUSED_SKEW_S = 900.0
"""Difference from which on servers of S3 refuse signatures."""

ONE_KEY = "sdbatch-doctor-{}"

GROUP = "sdbatch.checks"
"""Entry points of checks that another package brings: each takes the settings."""


Opened = Callable[[], tuple[str, Store]]
"""Opens the store that is looked at: its address, and it."""


def examine(
    read: Callable[[], Settings], open_the_store: Callable[[Settings], tuple[str, Store]]
) -> Iterator[Finding]:
    """All findings, one by one. read: reads the settings, which may raise `InputError`."""
    yield _program()
    try:
        settings = read()
    except InputError as error:
        advice = "set it right; what goes by it was not looked at"
        yield Finding("settings", State.BAD, str(error), advice, ExitCode.BAD_INPUT)
        return
    yield _settings(settings)
    yield from queue(settings.redis, needed=settings.redis != Settings.redis)
    yield store(lambda: open_the_store(settings))
    for found in metadata.entry_points(group=GROUP):
        yield from found.load()(settings)


def _program() -> Finding:
    try:
        version = metadata.version("sdbatch")
    except metadata.PackageNotFoundError:
        version = "from a source tree"
    return Finding("sdbatch", State.GOOD, f"{version}, Python {platform.python_version()}")


def _settings(settings: Settings) -> Finding:
    counts = {
        "models": len(settings.models),
        "loras": len(settings.loras),
        "embeddings": len(settings.embeddings),
        "vaes": len(settings.vaes),
    }
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    if not listed:
        advice = "SDBATCH_MODELS names others"
        return Finding("model list", State.LOOK, "empty: only demo is known", advice)
    return Finding("model list", State.GOOD, listed)


def queue(url: str, *, needed: bool) -> Iterator[Finding]:
    """Looks whether the queue's server answers, keeps what it has, and has this machine's time.

    needed: somebody named it, so its absence is an error; `sdbatch run` does without.
    """
    try:
        ledger = open_ledger(url)
        began = time.monotonic()
        ledger.ping()
        took_s = time.monotonic() - began
        yield Finding("queue", State.GOOD, f"{ledger!r} answers in {took_s * 1000:.1f} ms")
        eviction = ledger.eviction()
        if eviction is not None:
            yield Finding("queue memory", State.LOOK, eviction.partition(": ")[2], "set noeviction")
        yield clock(ledger.time_s() - time.time())
        yield _workers(ledger)
    except LedgerError as error:
        if needed:
            advice = "start it, or set SDBATCH_REDIS right"
            yield Finding("queue", State.BAD, str(error), advice, ExitCode.LEDGER)
        else:
            advice = "needed for sdbatch submit, not for sdbatch run"
            yield Finding("queue", State.LOOK, str(error), advice)


def clock(ahead_s: float) -> Finding:
    """Clocks of this machine and of the queue's server. ahead_s: how far that one is ahead."""
    away_s = abs(ahead_s)
    if away_s <= MOST_SKEW_S:
        return Finding("clock", State.GOOD, f"{away_s:.1f} s from the queue's")
    found = f"{away_s:,.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the queue's"
    advice = "set both by NTP"
    if away_s > REFUSED_SKEW_S:
        return Finding("clock", State.BAD, found, advice, ExitCode.LEDGER)
    return Finding("clock", State.LOOK, found, advice)


def _workers(ledger: Ledger) -> Finding:
    served = served_models(ledger.workers())
    if not served:
        return Finding("workers", State.LOOK, "none", "sdbatch worker --model NAME starts one")
    there = ", ".join(f"{name} ({count})" for name, count in sorted(served.items()))
    return Finding("workers", State.GOOD, there)


def store(opened: Opened) -> Finding:
    """Looks whether objects can be written, are written once, and are read and deleted again. A
    folder that was not there is gone again.
    """
    try:
        place, found = opened()
        new = isinstance(found, LocalStore) and not found.root.exists()
        found.check_writable()
        key, data = ONE_KEY.format(secrets.token_hex(8)), secrets.token_bytes(16)
        try:
            first, second = found.put(key, data), found.put(key, bytes(16))
            kept = found.get(key, limit_bytes=1024)
        finally:
            found.delete(key)
            if new and isinstance(found, LocalStore):
                found.root.rmdir()
    except OSError as error:
        return Finding("store", State.LOOK, f"{place}: {reason(error)}")
    except SdbatchError as error:
        advice = "see who may write there, and SDBATCH_STORE and AWS_ENDPOINT_URL"
        return Finding("store", State.BAD, str(error), advice, ExitCode.STORE)
    if not first or second or kept != data:
        advice = "two workers may overwrite each other; use a store with conditional writes"
        overwritten = f"{place} does not keep the first of two writes"
        return Finding("store", State.LOOK, overwritten, advice)
    return Finding("store", State.GOOD, f"{place} writes once, reads and deletes")
