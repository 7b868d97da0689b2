"""Changes of one job, as the commands and the page of the same names make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jobs.errors import InputError
from jobs.formatting import counted
from jobs.ledger.base import Ledger
from jobs.ledger.types import JobState

Change = Callable[[Ledger, str], str]
"""Changes one job; what became of it, for people."""


def to_state(state: JobState) -> Change:
    """A change to this state. It raises `InputError` if the job has ended and stays so, or is to go
    on with a budget that is used up.
    """

    def change(ledger: Ledger, job_id: str) -> str:
        spent = ledger.status(job_id).spent if state is JobState.ACTIVE else None
        if spent is not None:
            raise InputError(
                f"{job_id} has used up its budget of {spent}; submit it with a larger one"
            )
        after = ledger.set_state(job_id, state)
        if after is not state:
            raise InputError(f"{job_id} is {after} and stays so")
        return str(after)

    return change


def retry(ledger: Ledger, job_id: str) -> str:
    """Let failed images be done again."""
    return f"{counted(ledger.retry(job_id), 'failed image')} to do again"


CHANGES: Mapping[str, Change] = {
    "pause": to_state(JobState.PAUSED),
    "unpause": to_state(JobState.ACTIVE),
    "cancel": to_state(JobState.CANCELLED),
    "retry": retry,
}
