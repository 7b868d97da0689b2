"""A whole job in this process, with no service: what `sdbatch run` does.

The order of writing is that of the service too: manifest, inputs and plan first, then each image
before its record, `done.json` last. So a run that was stopped, however, goes on where it was.

What can be refused, and whether there is anything to do, is found out before torch is imported:
that and the model take ten seconds and more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.errors import InputError, Interrupted, JobConflictError, StoreError
from jobs.folder.job_file import JobFile, check_folder
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.model_file import check_pin, pin_model
from jobs.folder.plan import check_plan
from jobs.folder.prepare import prepare
from jobs.folder.records import write_failures
from jobs.formatting import counted
from jobs.manifest.load import Manifest
from jobs.report import write_unfinished_report
from jobs.settings import Settings
from jobs.storage import Store
from jobs.task import Failure, Reproducible
from worker.checkpoint import digests
from worker.checkpoint.load import ModelChoice, check_there, load
from worker.output.complete import is_complete
from worker.output.done import end_job
from worker.output.record import ModelInfo

if TYPE_CHECKING:
    from worker.observer import Observer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """Result of a run.

    images: of the whole job.
    url: of its folder, for people.
    equal: reused images that were not there before, but are the same as another image of the job.
    """

    job: str
    url: str
    images: int
    rendered: int
    reused: int
    failed: int
    load_s: float
    render_s: float
    equal: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folder": self.url,
            "images": self.images,
            "rendered": self.rendered,
            "reused": self.reused,
            "equal": self.equal,
            "failed": self.failed,
            "load_s": round(self.load_s, 3),
            "render_s": round(self.render_s, 3),
        }


def run_job(
    manifest: Manifest,
    choice: ModelChoice,
    store: Store,
    *,
    job: str | None = None,
    force: bool = False,
    reproducible: Reproducible = JobFile.reproducible,
    settings: Settings | None = None,
    observe: Callable[[], AbstractContextManager[Observer]],
    status: Callable[[str], AbstractContextManager[object]],
    stop: threading.Event,
) -> RunSummary:
    """Renders what the job's folder does not hold yet, and writes its report.

    job: names the folder; by default the name derived from the manifest's content. reproducible:
    for a manifest that says nothing of it. settings: say where LoRA and embeddings are that have a
    name.
    observe: opens the progress of rendering. status: shows what else takes its time.
    stop: set to end between two steps; raises `Interrupted` once all that is finished is kept.
    Raises the errors of `jobs.errors`; failed images are counted in the summary.
    """
    folder = JobFolder(store, JobKeys(job if job is not None else manifest.job_id()))
    store.check_writable()
    check_there(choice)
    with status("looking at what is there"):
        _check_plan(manifest, folder, force=force)
        complete = not force and _is_complete(manifest, choice, folder)
    url = folder.url
    if complete:
        prepare(manifest, folder, reproducible=reproducible)  # mends inputs, say
        total = manifest.total
        return RunSummary(folder.keys.job_id, url, total, 0, total, 0, load_s=0.0, render_s=0.0)
    try:
        from worker.render.rendering import render
        from worker.render.weight_files import AddedFiles
    except ModuleNotFoundError as error:
        raise InputError(
            f"rendering needs {error.name}, which is not installed: pip install 'sdbatch[worker]'"
        ) from None
    started = time.monotonic()
    with status(f"loading {choice.name}"):
        before = digests.identity(choice)
        model = load(choice)
        if before is not None and before == digests.identity(choice):
            digests.remember(choice.cache, before, model.digest)
    load_s = time.monotonic() - started
    with status("writing the plan"):
        described, shards = prepare(manifest, folder, reproducible=reproducible, force=force)
    revision = None if model.provenance is None else model.provenance.revision
    info = ModelInfo(choice.name, model.digest, choice.source, revision)
    with _hint_of_ways_on():
        pin_model(folder, info.name, info.digest, overwrite=force)
    started = time.monotonic()
    with observe() as observer:
        outcome = render(
            model,
            info,
            folder,
            described,
            shards,
            added=AddedFiles.of(settings or Settings(), choice.cache),
            observer=observer,
            stop=stop,
            force=force,
        )
    render_s = time.monotonic() - started
    write_failures(folder, outcome.failures)
    if outcome.settled < manifest.total:
        with status("writing the gallery"):
            shown = _write_gallery_so_far(folder, outcome.failures, manifest.total)
        done = f"{outcome.rendered + outcome.reused:,} of {counted(manifest.total, 'image')}"
        places = f"\npictures  {url}/images\ngallery   {url}/index.html" if shown else ""
        raise Interrupted(f"stopped after {done}; the same command continues{places}")
    with status("writing the gallery"):
        end_job(folder, outcome.failures, info.to_json(), images=manifest.total)
    return RunSummary(
        job=folder.keys.job_id,
        url=url,
        images=manifest.total,
        rendered=outcome.rendered,
        reused=outcome.reused,
        failed=len(outcome.failures),
        load_s=load_s,
        render_s=render_s,
        equal=outcome.equal,
    )


def _write_gallery_so_far(folder: JobFolder, failures: Sequence[Failure], planned: int) -> bool:
    """The gallery of a run that was stopped, which it is, whatever is wrong here; whether there is
    one.
    """
    try:
        return write_unfinished_report(folder, failures, planned=planned)
    except StoreError as error:  # also a record of another version, without what a gallery shows
        log.warning("there is no gallery: %s", error)
        return False


def _check_plan(manifest: Manifest, folder: JobFolder, *, force: bool) -> None:
    """Raises `JobConflictError` if the folder is another job's, as `prepare` would once the model
    is loaded.
    """
    if force or check_folder(folder, manifest.digest) is None:
        check_plan(folder, manifest.expansion.parts())


def _is_complete(manifest: Manifest, choice: ModelChoice, folder: JobFolder) -> bool:
    """True if there is nothing to do. Raises `JobConflictError` if the folder's images are known to
    be of another model.
    """
    if folder.head(folder.keys.model) is None:
        return False
    digest = _known_digest(choice)
    if digest is None:
        return False
    with _hint_of_ways_on():
        check_pin(folder, choice.name, digest)
    return is_complete(folder, manifest.expansion.tasks(), images=manifest.total, digest=digest)


def _known_digest(choice: ModelChoice) -> str | None:
    """Digest of the model's weights, if they were loaded here before or the model list pins it."""
    identity = digests.identity(choice)
    digest = None if identity is None else digests.recall(choice.cache, identity)
    if digest is None or choice.digest is None:
        return digest or choice.digest
    return digest if digest == choice.digest else None  # `load` says what is wrong


@contextmanager
def _hint_of_ways_on() -> Iterator[None]:
    try:
        yield
    except JobConflictError as error:
        hint = "name this run with --job, or render all anew with --force"
        raise JobConflictError(f"{error}; {hint}") from None
