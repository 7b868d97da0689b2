"""A whole job in this process, with no service: what `sdbatch run` does.

The order of writing is that of the service too: manifest, inputs and plan first, then each image
before its record, `done.json` last. So a run that was stopped, however, goes on where it was.

What can be refused, and whether there is anything to do, is found out before torch is imported:
that and the model take ten seconds and more.
"""

from __future__ import annotations

import itertools
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
from jobs.plan.cost import CostFold, PlanSummary
from jobs.plan.shards import ShardTable
from jobs.report import write_unfinished_report
from jobs.settings import Settings
from jobs.storage import Store
from jobs.task import Failure, Reproducible, Task
from worker.checkpoint import digests
from worker.checkpoint.load import ModelChoice, check_there, load
from worker.output.complete import are_there, is_complete
from worker.output.done import end_job
from worker.output.record import ModelInfo

if TYPE_CHECKING:
    from sd_core.model.diffusion import LatentDiffusion
    from worker.observer import Observer
    from worker.render.runner import Outcome
    from worker.render.weight_files import AddedFiles

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
    choices: Sequence[ModelChoice],
    store: Store,
    *,
    job: str | None = None,
    force: bool = False,
    reproducible: Reproducible = JobFile.reproducible,
    settings: Settings | None = None,
    observe: Callable[[PlanSummary], AbstractContextManager[Observer]],
    status: Callable[[str], AbstractContextManager[object]],
    stop: threading.Event,
) -> RunSummary:
    """Renders what the job's folder does not hold yet, model by model, and writes its report.

    choices: one for each of the manifest's models. job: names the folder; by default the name
    derived from the manifest's content. reproducible: for a manifest that says nothing of it.
    settings: say where LoRA, embeddings and VAEs are that have a name.
    observe: opens the progress of one model's images, which cost so much. status: shows what else
    takes its time.
    stop: set to end between two steps; raises `Interrupted` once all that is finished is kept.
    Raises the errors of `jobs.errors`; failed images are counted in the summary.
    """
    folder = JobFolder(store, JobKeys(job if job is not None else manifest.job_id()))
    store.check_writable()
    for choice in choices:
        check_there(choice)
    parts = list(_parts(manifest, choices))
    with status("looking at what is there"):
        _check_plan(manifest, folder, force=force)
        complete = not force and _is_complete(manifest, parts, folder)
    url = folder.url
    if complete:
        prepare(manifest, folder, reproducible=reproducible)  # mends inputs, say
        total = manifest.total
        return RunSummary(folder.keys.job_id, url, total, 0, total, 0, load_s=0.0, render_s=0.0)
    try:
        from worker.render.runner import Outcome
        from worker.render.weight_files import AddedFiles
    except ModuleNotFoundError as error:
        raise InputError(
            f"rendering needs {error.name}, which is not installed: pip install 'sdbatch[worker]'"
        ) from None
    added = AddedFiles.of(settings or Settings(), choices[0].cache)
    outcome = Outcome()
    run = _Run(manifest, folder, reproducible, added, stop, status, observe, force=force)
    for part in parts:
        if not stop.is_set():
            outcome.add(run.render(part))
    write_failures(folder, outcome.failures)
    if outcome.settled < manifest.total:
        with status("writing the gallery"):
            shown = _write_gallery_so_far(folder, outcome.failures, manifest.total)
        done = f"{outcome.rendered + outcome.reused:,} of {counted(manifest.total, 'image')}"
        places = f"\npictures  {url}/images\ngallery   {url}/index.html" if shown else ""
        raise Interrupted(f"stopped after {done}; the same command continues{places}")
    with status("writing the gallery"):
        named = run.models[0].to_json() if run.models else {"name": manifest.model}
        end_job(folder, outcome.failures, named, images=manifest.total)
    return RunSummary(
        job=folder.keys.job_id,
        url=url,
        images=manifest.total,
        rendered=outcome.rendered,
        reused=outcome.reused,
        failed=len(outcome.failures),
        load_s=run.load_s,
        render_s=run.render_s,
        equal=outcome.equal,
    )


@dataclass(frozen=True)
class _Part:
    """Images of a job that one model makes.

    images: their indices. of: the model's name in the plan, in a job of several.
    """

    choice: ModelChoice
    images: range
    of: str | None


def _parts(manifest: Manifest, choices: Sequence[ModelChoice]) -> Iterator[_Part]:
    start = 0
    for part, choice in zip(manifest.models, choices, strict=True):
        of = part.name if len(choices) > 1 else None
        yield _Part(choice, range(start, start + part.images), of)
        start += part.images


class _Run:
    """The rendering of a job's parts, one after the other: a model is gone before the next comes.

    models: those that made images, or were to.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: JobFolder,
        reproducible: Reproducible,
        added: AddedFiles,
        stop: threading.Event,
        status: Callable[[str], AbstractContextManager[object]],
        observe: Callable[[PlanSummary], AbstractContextManager[Observer]],
        *,
        force: bool,
    ) -> None:
        self._manifest = manifest
        self._folder = folder
        self._reproducible = reproducible
        self._added = added
        self._stop = stop
        self._status = status
        self._observe = observe
        self._force = force
        self._prepared: tuple[JobFile, ShardTable] | None = None
        self.models: list[ModelInfo] = []
        self.load_s = 0.0
        self.render_s = 0.0

    def render(self, part: _Part) -> Outcome:
        """Renders what the folder lacks of a part. Raises like `run_job`."""
        from worker.render.rendering import render  # needs torch
        from worker.render.runner import Outcome

        if part.of is not None and not self._force and self._is_there(part):
            return Outcome(reused=len(part.images))
        started = time.monotonic()
        with self._status(f"loading {part.choice.name}"):
            model, info = _loaded(part.choice)
        self.load_s += time.monotonic() - started
        described, shards = self._prepare()
        with _hint_of_ways_on():
            name, digest = info.name, info.digest
            pin_model(self._folder, name, digest, of=part.of, overwrite=self._force)
        self.models.append(info)
        started = time.monotonic()
        with self._observe(self._cost(part)) as observer:
            outcome = render(
                model,
                info,
                self._folder,
                described,
                shards,
                part.images,
                added=self._added,
                observer=observer,
                stop=self._stop,
                force=self._force,
            )
        self.render_s += time.monotonic() - started
        return outcome

    def _prepare(self) -> tuple[JobFile, ShardTable]:
        """Fills the folder, once a model was loaded."""
        if self._prepared is None:
            with self._status("writing the plan"):
                self._prepared = prepare(
                    self._manifest,
                    self._folder,
                    reproducible=self._reproducible,
                    force=self._force,
                )
        return self._prepared

    def _is_there(self, part: _Part) -> bool:
        """True if the folder has all images of a part, so that its model need not be loaded."""
        with self._status("looking at what is there"):
            digest = _pinned_digest(self._folder, part)
            if digest is None:
                return False
            self._prepare()  # records of an earlier plan would not be of these images
            total = self._manifest.total
            return are_there(
                self._folder, self._tasks(part), images=total, digests={part.of: digest}
            )

    def _tasks(self, part: _Part) -> Iterator[Task]:
        tasks = self._manifest.expansion.tasks()
        return itertools.islice(tasks, part.images.start, part.images.stop)

    def _cost(self, part: _Part) -> PlanSummary:
        if part.of is None:
            return self._manifest.expansion.cost
        cost = CostFold()
        for task in self._tasks(part):
            cost.add(task)
        return cost.summary()


def _loaded(choice: ModelChoice) -> tuple[LatentDiffusion, ModelInfo]:
    before = digests.identity(choice)
    model = load(choice)
    if before is not None and before == digests.identity(choice):
        digests.remember(choice.cache, before, model.digest)
    revision = None if model.provenance is None else model.provenance.revision
    return model, ModelInfo(choice.name, model.digest, choice.source, revision)


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


def _is_complete(manifest: Manifest, parts: Sequence[_Part], folder: JobFolder) -> bool:
    """True if there is nothing to do. Raises `JobConflictError` if the folder's images are known to
    be of another model.
    """
    known = {part.of: _pinned_digest(folder, part) for part in parts}
    digests = {of: digest for of, digest in known.items() if digest is not None}
    tasks, images = manifest.expansion.tasks(), manifest.total
    return len(digests) == len(known) and is_complete(folder, tasks, images=images, digests=digests)


def _pinned_digest(folder: JobFolder, part: _Part) -> str | None:
    """Digest of the weights of images that were rendered before; None if they are not known to be
    those of the model now. Raises `JobConflictError` if they are known to be of another.
    """
    if folder.head(folder.keys.model(part.of)) is None:
        return None
    digest = _known_digest(part.choice)
    if digest is not None:
        with _hint_of_ways_on():
            check_pin(folder, part.choice.name, digest, of=part.of)
    return digest


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
