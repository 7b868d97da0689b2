"""Everything that can go wrong, and the exit code a command ends with.

    Exception
    ├── SdbatchError              1  an error that nobody named better
    │   ├── InputError            2  bad input: a command line, a setting, a file
    │   │   └── ManifestError     2  a manifest or files it names; each problem with its place
    │   ├── ModelError            4  the model cannot be loaded
    │   ├── StoreError            5  the store cannot be read or written
    │   │   ├── StoreFullError    5  no space is left in it
    │   │   └── DamagedError      5  one object is not what it must be; the store itself works
    │   │       └── ForeignImageError  5  an image's place is taken by something else
    │   ├── JobConflictError      6  the folder holds another job
    │   ├── NotFoundError         7  no such job, plan or object
    │   ├── DeviceLostError       1  the device answers no more (`worker.faults`)
    │   └── LedgerError           9  the ledger cannot be reached, or refuses
    │       ├── DamagedLedgerError 9  what it holds of a job cannot be read
    │       └── QuotaError        9  a submitter would have too many images to do
    └── Stop                         not an error: somebody wanted it
        ├── Interrupted         130  Ctrl-C or a signal; what is finished is kept
        └── BudgetSpent         130  a job's budget is used up; what is finished is kept

Three codes belong to no exception: 0, done, 3, done but some images failed, and 8, cancelled.
`exit_code` is the one place where an exception becomes a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit code of a command."""

    DONE = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    SOME_FAILED = 3
    MODEL = 4
    STORE = 5
    CONFLICT = 6
    NOT_FOUND = 7
    CANCELLED = 8
    LEDGER = 9
    INTERRUPTED = 130  # 128 + SIGINT, as shells count


class SdbatchError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = ExitCode.UNEXPECTED


class InputError(SdbatchError):
    """The command line, a setting or a file is not as it must be."""

    exit_code = ExitCode.BAD_INPUT


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake and where it is.

    line, column: counted from 1; 0 where the problem is the file itself.
    path: which value, such as `prompts[3].seeds`; empty for the whole file.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    @property
    def place(self) -> str:
        """`file:line:column`, as editors and terminals make links of."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.path, self.message) if part)


class ManifestError(InputError):
    """All problems of a manifest and of the files it names, file by file and line by line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ModelError(SdbatchError):
    """The model is missing, corrupt, or no Stable Diffusion v1 model."""

    exit_code = ExitCode.MODEL


class StoreError(SdbatchError):
    """The store cannot be read or written."""

    exit_code = ExitCode.STORE


class StoreFullError(StoreError):
    """No space is left in the store."""


class DamagedError(StoreError):
    """One object is cut, changed, or larger than anything of its kind; the store itself works."""


class ForeignImageError(DamagedError):
    """Something else is stored under an image's key: damaged, or made from other parameters."""


class JobConflictError(SdbatchError):
    """The folder holds another job."""

    exit_code = ExitCode.CONFLICT


class NotFoundError(SdbatchError):
    """There is no such job, plan or object."""

    exit_code = ExitCode.NOT_FOUND


class LedgerError(SdbatchError):
    """The ledger cannot be reached, is full, or refuses. Its message never holds a password."""

    exit_code = ExitCode.LEDGER


class DamagedLedgerError(LedgerError):
    """Something that the ledger holds is not as it must be: of one job, and asking again does not
    help.
    """


class QuotaError(LedgerError):
    """A submitter would have more images to do at a time than its quota allows."""


class Stop(Exception):  # noqa: N818 - not an error
    """Work ended early because somebody wanted it to."""

    exit_code = ExitCode.INTERRUPTED


class Interrupted(Stop):
    """Ctrl-C or a signal. What is finished is kept, and the same command continues."""


class BudgetSpent(Stop):
    """The budget of a job is used up. What is finished is kept, and a larger one continues."""


def exit_code(error: BaseException) -> ExitCode:
    """The code that a command ended by `error` gives to the shell."""
    if isinstance(error, (SdbatchError, Stop)):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode.UNEXPECTED


@dataclass(frozen=True, slots=True)
class ManifestWarning:
    """kind: a word for programs. first: what and where, the first time. count: how many times."""

    kind: str
    first: Problem
    count: int

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count, **asdict(self.first)}
