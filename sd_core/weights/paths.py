"""Finds the files that a model's source names, and says what may have been meant if they are not
there. It works without torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from sd_core.weights.errors import CheckpointError, named

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WEIGHTS = (".ckpt", ".safetensors", ".bin", ".pt", ".pth", ".yaml")


def local_path(source: str | Path) -> Path:
    """The path that a source means; `~/…` and `~user/…` are below a home.

    Raises `CheckpointError` where nobody knows that home.
    """
    if not str(source).startswith("~") or "/" not in str(source):
        return Path(source)
    try:
        return Path(source).expanduser()
    except RuntimeError:
        home = str(source).partition("/")[0]
        raise CheckpointError(f"{source}: the home that {home} stands for is not known") from None


def require_there(source: str | Path, expected: str) -> Path:
    """The path that a source means. expected: what should be there, for the message.

    Raises `CheckpointError` if nothing is, or nobody may look.
    """
    path = local_path(source)
    try:
        path.stat()
    except (FileNotFoundError, ValueError):  # the latter for characters that no path has
        raise CheckpointError(
            f"{named(str(source))}: no such file; expected {expected}{_hint(path)}"
        ) from None
    except OSError as error:
        reason = error.strerror
        raise CheckpointError(f"{named(str(source))}: cannot be read: {reason}") from None
    return path


def _hint(path: Path) -> str:
    """Says how to write a model of the hub, where a path looks like one: `owner/name`."""
    name = "/".join(path.parts[-2:])
    looks_so = _HUB_NAME.fullmatch(name) and not name.endswith(_WEIGHTS)
    # In a model list it is further down, relative to the list.
    if not looks_so or (len(path.parts) > 2 and path.parent.exists()):
        return ""
    return f"; a model of the Hugging Face hub is written hf:{name}"
