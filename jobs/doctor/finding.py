"""Findings: what a look at this machine, or at a server, came to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jobs.errors import ExitCode


class State(StrEnum):
    """good: as it should be. look: works, or is not needed by everybody. bad: jobs will fail."""

    GOOD = "good"
    LOOK = "look"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    check: what was looked at. found: what is there. advice: what to do, where that is not empty.
    code: that a command would end with for it.
    """

    check: str
    state: State
    found: str
    advice: str = ""
    code: ExitCode = ExitCode.DONE
