"""Subcommands of the workers' side. `worker` imports the package of that name inside, so that the
others work without torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict

import click

from jobs.cli_common import json_option, ledger_at, redis_option
from jobs.console import Terminal
from jobs.errors import InputError
from jobs.settings import Settings


@click.command()
@redis_option
@json_option
@click.pass_obj
def workers(terminal: Terminal, redis: str | None) -> None:
    """List workers: where they are, which model they have, what they do.

    \b
    Example:
      sdbatch workers
    """
    found = ledger_at(redis).workers()
    if terminal.json:
        terminal.document({"workers": [asdict(worker) for worker in found]})
        return
    rows = [(w.name, w.device, w.model, f"{w.images:,}", w.state) for w in found]
    terminal.table(("WORKER", "DEVICE", "MODEL", "IMAGES", "STATE"), rows)


@click.command()
@click.option(
    "--model",
    metavar="NAME",
    help="Model to load, by its name in the model list. [default: SDBATCH_MODEL, else demo]",
)
@click.option(
    "--device",
    metavar="NAME",
    help="Where to render: auto, cpu, cuda or cuda:N. [default: SDBATCH_DEVICE, else auto]",
)
@click.option(
    "--gpus",
    metavar="LIST",
    help="A process for each GPU: all, or numbers as in 0,2; none is one process on the CPU. One "
    "that dies is started again. [default: this process]",
)
@redis_option
def worker(
    model: str | None, device: str | None, gpus: str | None, redis: str | None
) -> int | None:
    """Render shards of jobs until told to stop: one model, on one device or, by --gpus, on several.

    Ctrl-C, SIGTERM or a terminal that is closed end it between two steps; unfinished images go back
    to the queue at once.

    \b
    Example:
      sdbatch worker --model demo
      sdbatch worker --model sd-v1-4 --gpus all
    """
    if gpus is not None and device is not None:
        raise InputError("--gpus and --device: only one of them says where to render")
    # The worker's Celery app reads its settings from the environment, here as under `celery`.
    given = {"SDBATCH_MODEL": model, "SDBATCH_DEVICE": device, "SDBATCH_REDIS": redis}
    os.environ.update({name: value for name, value in given.items() if value is not None})
    if gpus is not None:
        from worker.fleet import run_workers

        return run_workers(gpus, Settings.from_env(os.environ), os.environ)
    try:
        from worker.app import app
    except ModuleNotFoundError as error:
        raise InputError(
            f"a worker needs {error.name}, which is not installed: pip install 'sdbatch[worker]'"
        ) from None
    app.worker_main(["worker", "--without-gossip", "--without-mingle", "--loglevel=INFO"])
    return None


COMMANDS: Sequence[click.Command] = (workers, worker)
