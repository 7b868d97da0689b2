"""The one error of everything that reads weights."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A model could not be loaded; the message says what, where, and what was expected."""
