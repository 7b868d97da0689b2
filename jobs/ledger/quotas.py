"""Quotas: how many images of one submitter may be to do at a time.

A submitter is a user of the server that holds the ledger. Every client says itself which user it
is, so quotas keep mistakes from filling a queue; they are no wall against somebody who means harm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobs.errors import InputError, QuotaError
from jobs.formatting import counted

OTHERS = "*"
"""The submitter whose quota holds for all who have none of their own."""

MOST_IMAGES = 10**12

_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,100}")


def quota_of(quotas: Mapping[str, int], submitter: str) -> int | None:
    """The submitter's own one, else that of `OTHERS`, else None."""
    return quotas.get(submitter, quotas.get(OTHERS))


def check_quota(submitter: str, most: int, to_do: int, more: int) -> None:
    """Raises `QuotaError` if a job's images are too many for its submitter.

    most: that may be to do at a time. to_do: of the submitter's other jobs. more: of this job.
    """
    if more <= 0 or to_do + more <= most:
        return
    raise QuotaError(
        f"{submitter} may have {counted(most, 'image')} to do at a time: other jobs have "
        f"{to_do:,}, and this one would have {more:,}; wait until some are done, cancel a job "
        "(sdbatch jobs), or ask whoever runs the queue for more (sdbatch quota)"
    )


def check_setting(submitter: str, images: int | None) -> None:
    """Raises `InputError` if no user of a server can be called so, or if it is no quota."""
    if not _NAME.fullmatch(submitter):
        raise InputError(
            f"{submitter!r:.120} is no user's name: 1 to 100 characters without spaces, "
            f"or {OTHERS} for all who have no quota of their own"
        )
    if images is not None and not 0 <= images <= MOST_IMAGES:
        raise InputError(f"{images} is no quota: expected 0 to {MOST_IMAGES:,} images")
