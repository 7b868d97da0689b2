"""The commands that render: `sdbatch run`, `bench` and `worker`, entry points of
`sdbatch.commands`.

Neither torch nor what else they need is imported before one of them is called.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.cli.options import (
    allow_outside_option,
    endpoint_option,
    job_argument,
    job_store_option,
    json_option,
    manifest_argument,
    no_reuse_option,
    redis_option,
)
from jobs.client.manifests import read_manifest
from jobs.client.opening import open_job
from jobs.errors import ExitCode, InputError
from jobs.terminal.console import Terminal
from sd_core.spec import DTYPES, MAX_STEPS

if TYPE_CHECKING:
    from jobs.manifest.manifest import Manifest

dtype_option = click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Number format of the model. [default: SDBATCH_DTYPE, else auto]",
)


@click.command()
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
@dtype_option
@click.option("--force", is_flag=True, help="Render anew what the folder holds already.")
@no_reuse_option
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
    from jobs.settings import Settings
    from worker.api import run as render
    from worker.run_command import summary_lines

    def read(model: str | None) -> Manifest:
        return read_manifest(
            terminal, manifest, allow_outside=allow_outside, model=model, all_listed=True
        )

    summary = render(read, Settings.from_env(os.environ), terminal, **options)
    if terminal.json:
        terminal.document(summary.to_json())
    else:
        for line in summary_lines(summary):
            terminal.say(line)
    return ExitCode.SOME_FAILED if summary.failed else ExitCode.DONE


@click.command()
@job_argument
@job_store_option
@endpoint_option
@click.option(
    "--sample",
    metavar="SHARE",
    help="Also render so many of the images again, such as 1%, and compare them.",
)
@click.option("--repair", is_flag=True, help="Render what is missing, damaged or different.")
@click.option(
    "--model",
    metavar="MODEL",
    help="Renders instead of the job's model of that name; of the same weights.",
)
@click.option(
    "--device",
    metavar="NAME",
    help="Where to render: auto, cpu, cuda or cuda:N. [default: SDBATCH_DEVICE, else auto]",
)
@dtype_option
@redis_option
@json_option
@click.pass_obj
def verify(
    terminal: Terminal, /, job: str, store: str | None, endpoint: str | None, **options: Any
) -> int:
    """Compare every image of a job with its record and its plan, and a sample with what the model
    draws. JOB may be the folder of a job on this machine.

    What is missing, damaged, of something else (foreign), without a record, or not in the plan
    (extra) is named. The exit code is 0 if all is right, or was repaired, else 5. Pixels of a
    sample must be the same on a device of the same kind, else nearly so.

    \b
    Example:
      sdbatch verify out/shapes-0c7c52d1c2fe --sample 1%
      sdbatch verify shapes --repair
    """
    from jobs.settings import Settings
    from worker.verify_command import VerifyOptions, result_lines, verify_folder

    chosen = VerifyOptions.of(**{name: options[name] for name in options if name != "redis"})
    folder = open_job(job, store, endpoint, options["redis"])
    verified = verify_folder(folder, chosen, Settings.from_env(os.environ), terminal)
    if terminal.json:
        terminal.document(verified.to_json())
    else:
        for line in result_lines(verified):
            terminal.say(line)
    return ExitCode.STORE if verified.left else ExitCode.DONE


@click.command()
@click.option(
    "--model",
    metavar="MODEL",
    help="A name from the model list, a .ckpt or .safetensors file, a diffusers folder, or "
    "hf:owner/name[@revision]. [default: SDBATCH_MODEL, else demo]",
)
@click.option(
    "--device",
    metavar="NAME",
    help="What to measure: auto, cpu, cuda or cuda:N. [default: SDBATCH_DEVICE, else auto]",
)
@dtype_option
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WxH",
    help="Size of images in pixels; as often as wanted. [default: the model's own, and 1.5 times "
    "that on one side and on both]",
)
@click.option(
    "--steps",
    multiple=True,
    type=click.IntRange(1, MAX_STEPS),
    default=(20, 30, 50),
    help="Steps of an image, to tell images a second for; as often as wanted.",
    show_default=True,
)
@json_option
@click.pass_obj
def bench(
    terminal: Terminal,
    model: str | None,
    device: str | None,
    dtype: str | None,
    sizes: tuple[str, ...],
    steps: tuple[int, ...],
) -> int:
    """Measure how fast this machine renders: images a second, seconds of one image, memory, start.

    What it finds is kept in SDBATCH_CACHE. A model of Stable Diffusion's size takes minutes on a
    CPU: name one --size there.

    \b
    Example:
      sdbatch bench
      sdbatch bench --model models/sd-v1-4.ckpt --size 512x512 --size 768x512
    """
    from jobs.plan.calibration import keep_speed
    from jobs.settings import Settings, check_device
    from worker.run_command import model_source

    settings = Settings.from_env(os.environ)
    if device is not None:
        check_device(device, "--device")
    name, source = model_source(model or settings.worker_model, settings)
    try:
        from worker.checkpoint.load import ModelChoice
        from worker.measure.command import bench, now, parse_sizes
    except ModuleNotFoundError as error:
        raise InputError(
            f"rendering needs {error.name}, which is not installed: pip install 'sdbatch[worker]'"
        ) from None
    choice = ModelChoice.of(name, source, settings, device=device, dtype=dtype)
    report, digest = bench(choice, parse_sizes(sizes), sorted(set(steps)), terminal)
    kept = keep_speed(settings.cache, report.speed(digest, now())) if report.measured else None
    if terminal.json:
        terminal.document({**report.to_json(), "kept": None if kept is None else str(kept)})
    else:
        for label, text in report.head():
            terminal.say(f"{label:8} {text}")
        if report.measured:
            terminal.say("")
            terminal.table(*report.table())
        for line in report.foot():
            terminal.say(line)
        if kept is not None:
            terminal.say(f"kept in {kept}")
    return ExitCode.SOME_FAILED if report.failed else ExitCode.DONE


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
    from jobs.settings import Settings

    # The worker's Celery app reads its settings from the environment, here as under `celery`.
    given = {"SDBATCH_MODEL": model, "SDBATCH_DEVICE": device, "SDBATCH_REDIS": redis}
    os.environ.update({name: value for name, value in given.items() if value is not None})
    if gpus is not None:
        from worker.fleet.fleet import run_workers

        return run_workers(gpus, Settings.from_env(os.environ), os.environ)
    try:
        from worker.app import app
    except ModuleNotFoundError as error:
        raise InputError(
            f"a worker needs {error.name}, which is not installed: pip install 'sdbatch[worker]'"
        ) from None
    # Nobody listens to what Celery's workers tell each other.
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    app.worker_main(["worker", *quiet, "--loglevel=INFO"])
    return None
