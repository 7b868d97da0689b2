"""Subcommands that read a manifest and render nothing: validate, plan, schema."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from jobs.cli.estimate import MOST_WORKERS, check_price, estimate
from jobs.cli.options import allow_outside_option, json_option, manifest_argument
from jobs.client.manifests import read_manifest
from jobs.client.opening import open_store_at
from jobs.errors import ManifestError, Problem, SdbatchError
from jobs.formatting import counted, size
from jobs.manifest.load import Tick
from jobs.manifest.manifest import Manifest
from jobs.manifest.named_files import KnownFile
from jobs.manifest.schema import json_schema
from jobs.plan.cost import PlanSummary
from jobs.settings import Settings
from jobs.storage import Store
from jobs.task import Task
from jobs.terminal.console import Terminal

MOST_NAMED = 8
"""Files of a kind that a plan names."""


@click.command()
@click.argument(
    "manifests", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@allow_outside_option
@json_option
@click.pass_obj
def validate(terminal: Terminal, manifests: tuple[Path, ...], allow_outside: bool) -> None:
    """Check manifests and every file they name; report all problems at once.

    \b
    Example:
      sdbatch validate shapes.yaml photos/*.yaml
    """
    problems: list[Problem] = []
    good: list[dict[str, Any]] = []
    for path in manifests:
        try:
            manifest = read_manifest(terminal, path, allow_outside=allow_outside)
        except ManifestError as error:
            problems += error.problems
            continue
        good.append({"file": str(path), "name": manifest.name, "images": manifest.total})
        if not terminal.json:
            terminal.say(f"{path}: ok, {counted(manifest.total, 'image')}")
    if problems:
        raise ManifestError(problems)
    if terminal.json:
        terminal.document({"files": good})


@click.command()
@manifest_argument
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    help="How many workers like this machine share the job. [default: 1]",
)
@click.option("--price", type=float, help="Of a worker an hour, in whatever currency.")
@allow_outside_option
@json_option
@click.pass_obj
def plan(
    terminal: Terminal,
    manifest: Path,
    workers: int | None,
    price: float | None,
    allow_outside: bool,
) -> None:
    """Show what a job will cost, without rendering: images, model evaluations, disk space; and time
    and money, by earlier jobs of the store, or if `sdbatch bench` has measured its model here.

    \b
    Example:
      sdbatch plan shapes.yaml --workers 4 --price 1.10
    """
    from jobs.client.earlier_jobs import earlier_job_lines  # and numpy, of `plan` alone
    from jobs.reuse import earlier_pictures
    from jobs.reuse.left import LeftToRender

    check_price(price)
    job = read_manifest(terminal, manifest, allow_outside=allow_outside)
    store = _store_of(job)
    with terminal.status("looking for earlier pictures"):
        earlier = None if store is None else earlier_pictures(store)
    left = LeftToRender(earlier, job.models)
    with terminal.counting("planning", job.total) as tick:
        expansion = job.expand(left.watch(_ticking(job.tasks(), tick)), keep_parts=False)
    summary, job_id = expansion.cost, job.job_id_of(expansion.digest)
    speeds = [] if earlier is None else earlier.speeds()
    takes = estimate(left.costs(), len(expansion.shards.ends), speeds, workers, price)
    if terminal.json:
        files = {name: list(known) for name, known in _files(job).items()}
        document = {"job": job_id, "model": job.model, **files, **summary.to_json()}
        document |= {"reused": left.made}
        terminal.document(document | {"estimate": None if takes is None else takes.to_json()})
    else:
        lines = [*_plan_lines(job, job_id, summary), *(() if takes is None else takes.lines())]
        if left.made:
            told = f"up to {left.made:,} images, which earlier jobs of the store made"
            lines.append(("reused", told))
        for label, text in lines:
            terminal.say(f"{label:12} {text}")
        if store is not None:
            with terminal.status("looking for earlier jobs"):
                before = earlier_job_lines(store, job, job_id, job.tasks())
            terminal.note(before)


@click.command()
@click.pass_obj
def schema(terminal: Terminal) -> None:
    """Print the manifest format as JSON Schema, for editors that check and complete.

    \b
    Example:
      sdbatch schema > sdbatch.schema.json
    """
    terminal.document(json_schema())


def _ticking(tasks: Iterable[Task], tick: Tick) -> Iterator[Task]:
    for task in tasks:
        if task.index % 1000 == 0:
            tick(task.index)
        yield task


def _store_of(job: Manifest) -> Store | None:
    """The store that the job would go to; None where there is none, as a plan needs none."""
    try:
        settings = Settings.from_env(os.environ)
        address = job.output.store or settings.job_store
        return open_store_at(settings, address, None, given=job.output.store is not None)
    except SdbatchError:
        return None


def _files(job: Manifest) -> dict[str, Mapping[str, KnownFile]]:
    """Files that a job's images use, by kind and name."""
    return {"loras": job.loras, "embeddings": job.embeddings, "vaes": job.vaes}


def _plan_lines(job: Manifest, job_id: str, summary: PlanSummary) -> Iterator[tuple[str, str]]:
    shapes = [
        f"{width}×{height}: {count:,}" for (width, height), count in summary.shapes.most_common(8)
    ]
    if len(summary.shapes) > len(shapes):
        shapes.append(f"and {len(summary.shapes) - len(shapes):,} more")
    yield "job", job_id
    yield "model", job.model
    yield "images", f"{summary.images:,}"
    yield "evaluations", f"{summary.evaluations:,} of the model, {summary.rows:,} batch rows"
    yield "shapes", ", ".join(shapes)
    yield "samplers", ", ".join(f"{name}: {n:,}" for name, n in summary.samplers.most_common())
    if summary.inputs:
        yield "inputs", f"{summary.inputs:,}"
    for label, names in _files(job).items():
        if names:
            more = f", and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            yield label, ", ".join(list(names)[:MOST_NAMED]) + more
    yield "output", f"about {size(summary.output_bytes)} of {job.output.format}"
    for label, task in (("first", summary.first), ("last", summary.last)):
        if task is not None:
            yield label, f"{task.name}  {' '.join(task.prompt.split())[:80]}"
