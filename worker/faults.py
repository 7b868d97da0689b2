"""Errors of a worker: what they say of the image and the device, and whom they are reported to."""

from __future__ import annotations

import contextlib
from enum import StrEnum

from jobs.errors import InputError, LedgerError, NotFoundError, SdbatchError, StoreError
from jobs.ledger.base import Ledger
from sd_core.engine.memory import is_out_of_memory
from worker.logs import masked

LONGEST = 500  # characters of an error; a ledger is no log


class DeviceLostError(SdbatchError):
    """The device answers every call with an error until the process ends."""


class Reason(StrEnum):
    """Why an image failed, of few values: a label of metrics. The full text is in the ledger."""

    INPUT = "input"  # its init image, mask or parameters
    MEMORY = "memory"
    NOT_FINITE = "not_finite"
    STORE = "store"
    FORMAT = "format"  # it was rendered, but cannot be written as its file or record
    OTHER = "other"


def is_device_lost(error: BaseException) -> bool:
    """True for a CUDA error that sticks to the process, such as an illegal access.

    Not run on a GPU: the texts are those that PyTorch's sources give.
    """
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    if "captur" in str(error):  # of a graph: the engine goes on without it
        return False
    # By name: not all that imports this renders, and older torch has no such class.
    return "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError"


def reason_of(error: BaseException, *, rendered: bool) -> Reason:
    """rendered: whether the pixels were there already."""
    if is_out_of_memory(error):
        return Reason.MEMORY
    if isinstance(error, ArithmeticError):
        return Reason.NOT_FINITE
    if isinstance(error, StoreError):
        return Reason.STORE
    if isinstance(error, (ValueError, InputError, NotFoundError)):
        return Reason.FORMAT if rendered else Reason.INPUT
    return Reason.OTHER


def report_job_error(ledger: Ledger, job_id: str, owner: str, error: Exception) -> None:
    """Note in the ledger why a job does not move on: `sdbatch status` shows it.

    owner: the worker that met the error. Nothing happens if it is the ledger that fails.
    """
    if isinstance(error, LedgerError):
        return
    story = str(error)
    if not isinstance(error, SdbatchError):
        story = f"unexpected {type(error).__name__}: {story}; the worker's log has more"
    text = " ".join(masked(story).split())
    with contextlib.suppress(LedgerError):
        ledger.note_error(job_id, f"{owner}: {text}"[:LONGEST])
