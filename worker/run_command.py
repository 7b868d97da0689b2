"""`sdbatch run`: a job in this process, on this machine, with no service.

What the command line and the settings mean is decided here; `worker.run` does the work.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.client.earlier_jobs import earlier_job_lines
from jobs.errors import ExitCode, InputError
from jobs.formatting import agreeing, counted
from jobs.manifest.manifest import Manifest
from jobs.models import ModelSource
from jobs.settings import Settings, check_device
from jobs.storage import open_store
from jobs.storage.base import is_segment
from jobs.supervise.deferred import Deferred
from jobs.supervise.signals import Interrupts
from jobs.terminal.console import Terminal
from jobs.terminal.figures import duration
from worker.checkpoint.load import ModelChoice
from worker.progress import RunProgress
from worker.run import RunSummary, run_job


@dataclass(frozen=True)
class RunOptions:
    """Options of `sdbatch run` as its command line gave them; None where the settings decide."""

    store: str | None = None
    endpoint: str | None = None
    model: str | None = None
    vae: str | None = None
    config: Path | None = None
    device: str | None = None
    dtype: str | None = None
    job: str | None = None
    force: bool = False
    no_reuse: bool = False


def model_source(model: str, settings: Settings) -> tuple[str, ModelSource]:
    """Name and source of what `--model` gives: a name of the model list, or a checkpoint itself."""
    if model == "demo" or model in settings.models:
        return model, settings.model(model)
    if model.startswith("hf:"):
        return model.removeprefix("hf:").partition("@")[0].rpartition("/")[2], ModelSource(model)
    if Path(model).exists() or Path(model).suffix or len(Path(model).parts) > 1:
        return Path(model).stem, ModelSource(model)
    return model, settings.model(model)  # which says what names there are


def run_manifest(
    manifest: Manifest, options: RunOptions, settings: Settings, terminal: Terminal
) -> RunSummary:
    """Renders what is missing of a job. Raises the errors of `jobs.errors`."""
    if options.job is not None and ("/" in options.job or not is_segment(options.job)):
        raise InputError(f"--job {options.job!r} is not a folder name")
    if options.device is not None:
        check_device(options.device, "--device")
    if options.config is not None and len(manifest.models) > 1:
        raise InputError(f"--config is for one model; this manifest has {manifest.model}")
    choices = [_choice(part.name, options, settings) for part in manifest.models]
    address = options.store or manifest.output.store or settings.store
    store = open_store(address, endpoint=options.endpoint)
    with terminal.status("planning"):
        _ = manifest.expansion
    if options.job is None:
        with terminal.status("looking for earlier jobs"):
            job_id, tasks = manifest.job_id(), manifest.expansion.tasks()
            earlier = earlier_job_lines(store, manifest, job_id, tasks)
        terminal.note(earlier)
    with stopping_on_signals(terminal) as stop:
        return run_job(
            manifest,
            choices,
            store,
            job=options.job,
            force=options.force,
            reuse=not options.no_reuse,
            reproducible=settings.reproducible,
            settings=settings,
            observe=lambda cost: RunProgress(cost.images, cost.evaluations, terminal.err),
            status=terminal.status,
            stop=stop,
        )


def _choice(model: str, options: RunOptions, settings: Settings) -> ModelChoice:
    """A model of the manifest, of which --model names one."""
    given = None if options.model is None else model_source(options.model, settings)
    return ModelChoice.of(
        model,
        given[1] if given is not None and given[0] == model else settings.model(model),
        settings,
        device=options.device,
        dtype=options.dtype,
        config=options.config,
        vae=options.vae,
    )


@contextlib.contextmanager
def stopping_on_signals(terminal: Terminal) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets; another one ends the process at
    once, but a terminal that hangs up gives it the time to save.
    """
    stop = threading.Event()

    def begin_to_stop() -> None:
        stop.set()
        with contextlib.suppress(OSError):
            terminal.err.print("stopping after this step; Ctrl-C again ends at once")

    def on_stop(count: int) -> None:
        if count > 1:
            # An exception would wait for the engine's step, which may take seconds. Nothing can
            # be half-written: the store replaces files whole.
            try:
                terminal.err.show_cursor()
            finally:  # the main thread may just be writing there
                os._exit(ExitCode.INTERRUPTED)
        stopping.ask()

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    with Deferred(begin_to_stop, "sdbatch-stop") as stopping, Interrupts(on_stop).counting():
        yield stop


def summary_lines(summary: RunSummary) -> Iterator[str]:
    """The end of a run, for people."""
    images = counted(summary.images, "image")
    before = summary.reused - summary.equal - summary.copied
    were = f"{agreeing(before, 'was', 'were')} there already"
    if summary.images == before:
        yield f"nothing to do: {before:,} of {images} {were}"
    else:
        done = f"{summary.rendered:,} of {images} rendered in {duration(summary.render_s)}"
        if summary.rendered:
            done += f" ({summary.rendered / summary.render_s:.2f} images/s)"
        if before:
            done += f", {before:,} {were}"
        if summary.copied:
            done += f", {summary.copied:,} taken from earlier jobs"
        if summary.equal:
            same = agreeing(summary.equal, "is the same as another", "are the same as others")
            done += f", {summary.equal:,} {same}"
        yield done
    if summary.failed:
        them = agreeing(summary.failed, "it", "them")
        yield f"{summary.failed:,} failed: see failures.jsonl; run again to retry {them}"
    yield f"pictures  {summary.url}/images"
    yield f"gallery   {summary.url}/index.html"
