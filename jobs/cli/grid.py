"""The subcommand that draws a job's images by what they differ in."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli.options import (
    endpoint_option,
    job_argument,
    job_store_option,
    json_option,
    redis_option,
)
from jobs.client.opening import open_job
from jobs.formatting import counted
from jobs.terminal.console import Terminal

_AXIS = "sampler, guidance, seed, prompt, model, vae, loras, meta.name or another setting"


@click.command()
@job_argument
@click.option("--x", metavar="AXIS", help=f"Columns: {_AXIS}. [default: by the job]")
@click.option("--y", metavar="AXIS", help="Rows.")
@click.option("--z", metavar="AXIS", help="A section, and pages, for each value.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for page and sheets. [default: grid-JOB]",
)
@job_store_option
@endpoint_option
@redis_option
@json_option
@click.pass_obj
def grid(
    terminal: Terminal,
    job: str,
    x: str | None,
    y: str | None,
    z: str | None,
    output: Path | None,
    store: str | None,
    endpoint: str | None,
    redis: str | None,
) -> None:
    """Draw a job's images as a table by what they differ in: a page, and PNG sheets. JOB may be the
    folder of a job on this machine; it need not be finished.

    Images that differ in more than the axes stand side by side in a cell.

    \b
    Example:
      sdbatch grid out/shapes-0c7c52d1c2fe --x guidance --y sampler
      sdbatch grid shapes --x loras --y prompt --z model
    """
    from jobs.report.grid_files import write_grid

    folder = open_job(job, store, endpoint, redis)
    target = Path(f"grid-{folder.keys.job_id}") if output is None else output
    with terminal.counting("drawing") as tick:
        drawn = write_grid(folder, target, (x, y, z), tick=tick)
    axes = {"x": drawn.x, "y": drawn.y, "z": drawn.z}
    page, sheets = target / "index.html", [str(target / name) for name in drawn.pages]
    if terminal.json:
        terminal.document(
            {
                "job": drawn.job,
                "axes": {
                    place: None if axis is None else {"name": axis.name, "values": axis.labels}
                    for place, axis in axes.items()
                },
                "images": drawn.shown,
                "missing": drawn.missing,
                "page": str(page),
                "sheets": sheets,
            }
        )
        return
    for place, axis in axes.items():
        if axis is not None:
            terminal.say(f"{place:9} {axis.name}, {counted(len(axis.values), 'value')}")
    missing = f", {drawn.missing:,} missing" if drawn.missing else ""
    terminal.say(f"images    {drawn.shown:,}{missing}")
    terminal.say(f"page      {page}")
    more = f" and {len(sheets) - 1:,} more" if len(sheets) > 1 else ""
    terminal.say(f"sheets    {sheets[0]}{more}")
