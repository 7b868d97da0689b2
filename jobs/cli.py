"""The `sdbatch` command: each subcommand is a plain function; `main` turns errors into exit codes.

Subcommands that render import `worker` inside, so that the others work without torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from jobs import cli_jobs, cli_local, cli_queue, cli_worker
from jobs.cli_common import (
    allow_outside_option,
    endpoint_option,
    json_option,
    manifest_argument,
    open_store_at,
    read_manifest,
)
from jobs.console import EXIT_CODES, Terminal, size
from jobs.earlier import earlier_job_lines
from jobs.errors import (
    ExitCode,
    Interrupted,
    ManifestError,
    Problem,
    SdbatchError,
    Stop,
    exit_code,
)
from jobs.formatting import counted
from jobs.manifest import Manifest, Tick
from jobs.plan import PlanSummary, summarize
from jobs.run import RunOptions, model_source, summary_lines
from jobs.run import run as run_manifest
from jobs.schema import json_schema
from jobs.settings import DTYPES, Settings, debugging
from jobs.sources import reason
from jobs.streams import escape_unencodable, open_closed, restart_in_utf8, silence
from jobs.task import Task


def _version() -> str:
    try:
        return importlib.metadata.version("sdbatch")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree


class _ReaderGoneError(Exception):
    """Whoever read our output has seen enough, as `head` does."""


class _Group(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # click would end with code 1
            raise _ReaderGoneError from None


@click.group(
    cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(_version(), prog_name="sdbatch")
def cli() -> None:
    """Render batches of images with Stable Diffusion v1 from YAML manifests.

    \b
    Example:
      sdbatch plan job.yaml
      sdbatch run job.yaml
    """


@cli.command()
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


@cli.command()
@manifest_argument
@allow_outside_option
@json_option
@click.pass_obj
def plan(terminal: Terminal, manifest: Path, allow_outside: bool) -> None:
    """Show what a job will cost, without rendering: images, model evaluations, disk space.

    \b
    Example:
      sdbatch plan shapes.yaml
    """
    job = read_manifest(terminal, manifest, allow_outside=allow_outside)
    with terminal.counting("planning", job.total) as tick:
        summary = summarize(_ticking(job.tasks(), tick))
    with terminal.status("naming the job"):
        job_id = job.job_id()
    if terminal.json:
        terminal.document({"job": job_id, "model": job.model, **summary.to_json()})
    else:
        for label, text in _plan_lines(job, job_id, summary):
            terminal.say(f"{label:12} {text}")
        with terminal.status("looking for earlier jobs"):
            earlier = _earlier_job_lines(job)
        terminal.note(earlier)


@cli.command()
@manifest_argument
@click.option(
    "--store",
    metavar="URL",
    help="Folder or s3://bucket/prefix. [default: the manifest's, else SDBATCH_STORE, else out]",
)
@endpoint_option
@click.option("--job", metavar="NAME", help="Name of the job's folder. [default: by content]")
@click.option(
    "--model",
    metavar="MODEL",
    help="Instead of the manifest's: a .ckpt or .safetensors file, a diffusers folder, "
    "hf:owner/name[@revision], or a name from the model list.",
)
@click.option("--vae", metavar="FILE", help="Another autoencoder than the model's own.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The original v1-inference.yaml of a single-file checkpoint.",
)
@click.option(
    "--device",
    metavar="NAME",
    help="Where to render: auto, cpu, cuda or cuda:N. [default: SDBATCH_DEVICE, else auto]",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Number format of the model. [default: SDBATCH_DTYPE, else auto]",
)
@click.option("--force", is_flag=True, help="Render anew what the folder holds already.")
@allow_outside_option
@json_option
@click.pass_obj
def run(terminal: Terminal, /, manifest: Path, allow_outside: bool, **options: Any) -> int:
    """Render a manifest here and now: pictures, records and a gallery in one folder.

    Run it again to continue after a stop: only what is missing is rendered.

    \b
    Example:
      sdbatch run shapes.yaml
      sdbatch run portraits.yaml --model models/sd-v1-4.ckpt --store /data/jobs
    """
    settings = Settings.from_env(os.environ)
    chosen = RunOptions(**options)
    name = None if chosen.model is None else model_source(chosen.model, settings)[0]
    job = read_manifest(terminal, manifest, allow_outside=allow_outside, model=name)
    summary = run_manifest(job, chosen, settings, terminal)
    if terminal.json:
        terminal.document(summary.to_json())
    else:
        for line in summary_lines(summary):
            terminal.say(line)
    return ExitCode.SOME_FAILED if summary.failed else ExitCode.DONE


@cli.command()
@click.pass_obj
def schema(terminal: Terminal) -> None:
    """Print the manifest format as JSON Schema, for editors that check and complete.

    \b
    Example:
      sdbatch schema > sdbatch.schema.json
    """
    terminal.document(json_schema())


for command in (*cli_queue.COMMANDS, *cli_jobs.COMMANDS, *cli_worker.COMMANDS, *cli_local.COMMANDS):
    cli.add_command(command)


def _ticking(tasks: Iterable[Task], tick: Tick) -> Iterator[Task]:
    for task in tasks:
        if task.index % 1000 == 0:
            tick(task.index)
        yield task


def _earlier_job_lines(job: Manifest) -> list[str]:
    """See `earlier_job_lines`; of the store that the job would go to, if it can be reached."""
    try:
        settings = Settings.from_env(os.environ)
        address = job.output.store or settings.job_store
        store = open_store_at(settings, address, None, given=job.output.store is not None)
    except SdbatchError:  # a plan needs neither settings nor a store
        return []
    return earlier_job_lines(store, job)


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
    yield "output", f"about {size(summary.output_bytes)} of {job.output.format}"
    for label, task in (("first", summary.first), ("last", summary.last)):
        if task is not None:
            yield label, f"{task.name}  {' '.join(task.prompt.split())[:80]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. Here, and only here, exceptions become exit codes."""
    if arguments is None:  # of a process of its own
        restart_in_utf8()
        arguments = sys.argv[1:]
    open_closed()
    escape_unencodable()
    terminal = Terminal(json="--json" in arguments)
    try:
        result = cli.main(args=arguments, prog_name="sdbatch", standalone_mode=False, obj=terminal)
        sys.stdout.flush()
    except (BrokenPipeError, _ReaderGoneError):
        silence(sys.stdout)
        return ExitCode.DONE
    except click.ClickException as error:
        _tell(terminal, error)
        return error.exit_code
    except click.Abort:
        _tell(terminal, Interrupted("interrupted"))
        return ExitCode.INTERRUPTED
    except (SdbatchError, Stop) as error:
        _tell(terminal, error)
        return exit_code(error)
    except OSError as error:  # of stdout, as everything else is turned into our own errors
        silence(sys.stdout)
        message = f"the output cannot be written: {reason(error)}"
        Terminal(json=False).error(SdbatchError(message))
        return ExitCode.UNEXPECTED
    except Exception as error:
        if debugging(os.environ):
            raise
        name = type(error).__name__
        message = f"unexpected {name}: {error} (SDBATCH_DEBUG=1 shows where)"
        _tell(terminal, SdbatchError(message))
        return ExitCode.UNEXPECTED
    return result if isinstance(result, int) else ExitCode.DONE


def _tell(terminal: Terminal, error: Exception) -> None:
    """Say what went wrong, to whoever still listens: the exit code tells it, too."""
    try:
        if isinstance(error, click.ClickException) and not terminal.json:
            error.show(terminal.err.file)
        else:
            terminal.error(error)
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
