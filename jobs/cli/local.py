"""The subcommand that runs a whole cluster on this machine."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import click

from jobs.cli.options import json_option
from jobs.errors import InputError
from jobs.formatting import reason
from jobs.settings import Settings
from jobs.storage.folders import check_folder
from jobs.terminal.console import Terminal


@click.command()
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Worker processes."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where jobs and pictures are kept. [default: SDBATCH_LOCAL, else "
    "~/.local/share/sdbatch/local]",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Model to load, by its name in the model list. [default: SDBATCH_MODEL, else demo]",
)
@click.option("--no-dashboard", is_flag=True, help="Leave the live page away.")
@json_option
@click.pass_obj
def local(
    terminal: Terminal, workers: int, folder: Path | None, model: str | None, no_dashboard: bool
) -> None:
    """Run queue, store and workers on this machine until Ctrl-C; needs no Docker.

    Meanwhile `sdbatch submit` and the other commands find it by themselves. A second start has the
    jobs and pictures of the first. The live page (see `sdbatch dashboard`) is served, too, where
    that is installed.

    \b
    Example:
      sdbatch local --workers 2
    """
    from jobs.cli.dashboard import installed, page_address
    from jobs.local.address import LocalCluster, default_folder
    from jobs.local.cluster import Plan, run_cluster
    from jobs.local.display import Display

    settings = Settings.from_env(os.environ)
    name = settings.worker_model if model is None else model
    settings.model(name)  # an unknown one is refused before anything starts
    chosen = default_folder(os.environ) if folder is None else folder
    if chosen is None:
        raise InputError("there is no home folder to keep the cluster in; give --folder DIR")
    check_folder(chosen)
    plan = Plan(chosen.absolute(), workers, name)
    display = Display(terminal)
    for variable in ("SDBATCH_REDIS", "SDBATCH_STORE"):
        if os.environ.get(variable):
            display.warn(f"{variable} is set, so `sdbatch submit` from here goes elsewhere")

    def serve_page(here: LocalCluster) -> AbstractContextManager[str | None]:
        """Serves the cluster's page, if that is wanted and installed."""
        if no_dashboard or not installed():
            return nullcontext()
        return page_address(replace(settings, redis=here.redis, local=here))

    try:
        run_cluster(plan, os.environ, display, serve_page)
    except OSError as error:
        raise InputError(f"{plan.folder} cannot be used: {reason(error)}") from None
