"""Become another program that ends with the process that started it, even if that is killed.

    python -I -S die_with_parent.py SIGNAL PARENT-PID PROGRAM ARGUMENTS...

A script of its own: `preexec_fn` of `subprocess` is not safe beside threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(signal: str, parent: str, *command: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal))
    if os.getppid() != int(parent):
        sys.exit(1)  # it ended before it could be tied to
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
