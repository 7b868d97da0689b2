"""What an error says about the image, the device and the worker."""

from __future__ import annotations

from enum import StrEnum

from jobs.errors import InputError, NotFoundError, SdbatchError, StoreError
from sd_core.memory import is_out_of_memory


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
    """Whether it is a CUDA error that sticks to the process, such as an illegal access.

    Not run on a GPU: the texts are those that PyTorch's sources give.
    """
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
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
