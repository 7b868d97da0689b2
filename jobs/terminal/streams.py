"""The process's standard streams, whatever they are: closed, full, without a reader, ASCII.

What can be written there is no reason to lose pictures, nor to make fewer of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, Any


def restart_in_utf8() -> None:
    """Begin this program again in Python's UTF-8 mode, if the locale is another one.

    Names of pictures, of files in a manifest and in messages are of all languages. In an ASCII
    locale Python could neither write nor print them, and would end in the middle of a job.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or not sys.executable:
        return
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_closed() -> None:
    """Let standard streams that were closed when the program was started lead to nowhere.

    Otherwise the next file that is opened takes the number, and what a library writes to its
    standard output ends up in there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def escape_unencodable() -> None:
    """Let stdout show what its encoding lacks as \\x.. instead of failing, as stderr does."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # missing where tests capture it
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def silence(stream: IO[str]) -> None:
    """Let what is left in the stream's buffer, and what follows, go nowhere.

    The interpreter would complain when it ends, and end with another code.
    """
    with contextlib.suppress(OSError, ValueError):  # a stream that is captured has no number
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Unfailing:
    """A stream for progress, warnings and errors, which is silent from its first failure on.

    A full disk behind stderr, or a reader that went away, must not end a run.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
