"""Renders for scripts, as `sdbatch run` does: an entry point of `sdbatch.api`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.manifest.manifest import Manifest
from jobs.settings import Settings
from jobs.terminal.console import Terminal
from worker.run import RunSummary
from worker.run_command import RunOptions, model_source, run_manifest


def run(
    read: Callable[[str | None], Manifest], settings: Settings, terminal: Terminal, **options: Any
) -> RunSummary:
    """Render a manifest here and now.

    read: gives the manifest, for the model of this name if it is not its own. options: of
    `RunOptions`. Raises the errors of `jobs.errors`; failed images are counted in the summary.
    """
    chosen = RunOptions(**options)
    name = None if chosen.model is None else model_source(chosen.model, settings)[0]
    return run_manifest(read(name), chosen, settings, terminal)
