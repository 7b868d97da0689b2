"""Jobs from Python, for scripts and notebooks.

    from jobs import client

    job = client.run({"version": 1, "prompts": ["a red circle"], "matrix": {"seeds": [1, 2, 3]}})
    for picture in job.images():
        print(picture.record["seed"], picture.image.size)
    job.to_pandas().groupby("seed").size()

`run` renders here, `submit` has workers do it, `find` gives a job of before; all give a `Job`. What
goes wrong raises an error of `jobs.errors`, with the text that the command line would show.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.client.api import find, run, submit
    from jobs.client.job import Job, Picture, Status

__all__ = ["Job", "Picture", "Status", "find", "run", "submit"]

_AT = {
    **dict.fromkeys(("find", "run", "submit"), "jobs.client.api"),
    **dict.fromkeys(("Job", "Picture", "Status"), "jobs.client.job"),
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, as commands of this package do without most of it."""
    if name not in _AT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_AT[name]), name)
