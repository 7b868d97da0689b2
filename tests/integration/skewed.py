"""A worker process whose clock is wrong: `python -m tests.integration.skewed`.

SDBATCH_TEST_CLOCK_S says by how many seconds: ahead, or behind if negative. That is the time of
day; what a process measures for itself (`time.monotonic`) goes on as it does.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from typing import Any

# Their C code wants the real class, and dies of another; pyarrow imports pandas where it is there.
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401

VARIABLE = "SDBATCH_TEST_CLOCK_S"

_time, _time_ns, _Datetime = time.time, time.time_ns, datetime.datetime


class _AlsoReal(type):
    """What C code makes is of the real class."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _Datetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _Datetime)


def be_off_by(seconds: float) -> None:
    """Patches this process; before the modules are imported that take these names."""
    off = datetime.timedelta(seconds=seconds)

    class Skewed(_Datetime, metaclass=_AlsoReal):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return _Datetime.now(tz) + off

        @classmethod
        def utcnow(cls) -> Any:
            return _Datetime.now(datetime.UTC).replace(tzinfo=None) + off

    time.time = lambda: _time() + seconds
    time.time_ns = lambda: _time_ns() + round(seconds * 1e9)
    datetime.datetime = Skewed  # type: ignore[misc]


if __name__ == "__main__":
    be_off_by(float(os.environ[VARIABLE]))
    from jobs.cli.root import main

    sys.exit(main(["worker"]))
