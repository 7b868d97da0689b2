"""A whole job in this process, with no service: what `sdbatch run` does.

The order of writing is that of the service too: manifest, inputs and plan first, then each image
before its record, `done.json` last. So a run that was stopped, however, goes on where it was.

What can be refused, and whether there is anything to do, is found out before torch is imported:
that and the model take ten seconds and more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.dataset import has_dataset
from jobs.errors import BudgetSpent, InputError, Interrupted, StoreError
from jobs.folder.job_file import JobFile, check_folder
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import check_plan
from jobs.folder.prepare import prepare
from jobs.folder.records import write_failures
from jobs.formatting import counted
from jobs.manifest.manifest import Manifest
from jobs.plan.cost import PlanSummary
from jobs.report import write_unfinished_report
from jobs.reuse import earlier_pictures, index_pictures
from jobs.settings import Settings
from jobs.storage import Store
from jobs.task import Failure, Reproducible
from worker.checkpoint.load import ModelChoice, check_there
from worker.output.complete import is_complete
from worker.output.done import end_job
from worker.output.live_gallery import gallery_kept_up_to_date
from worker.render.budget import BudgetWatch
from worker.run_parts import Part, Run, parts_of, pinned_digest

if TYPE_CHECKING:
    from worker.observer import Observer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """Result of a run.

    images: of the whole job.
    url: of its folder, for people.
    equal: reused images that were not there before, but are the same as another image of the job.
    copied: reused images that an earlier job of the store had made.
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
    copied: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folder": self.url,
            "images": self.images,
            "rendered": self.rendered,
            "reused": self.reused,
            "equal": self.equal,
            "copied": self.copied,
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
    reuse: bool = True,
    reproducible: Reproducible = JobFile.reproducible,
    settings: Settings | None = None,
    observe: Callable[[PlanSummary], AbstractContextManager[Observer]],
    status: Callable[[str], AbstractContextManager[object]],
    stop: threading.Event,
) -> RunSummary:
    """Renders what the job's folder does not hold yet, model by model, and writes its report.

    choices: one for each of the manifest's models. job: names the folder; by default the name
    derived from the manifest's content. reuse: take pictures that earlier jobs of the store made.
    reproducible: for a manifest that says nothing of it.
    settings: say where LoRA, embeddings and VAEs are that have a name.
    observe: opens the progress of one model's images, which cost so much. status: shows what else
    takes its time.
    stop: set to end between two steps; raises `Interrupted` once all that is finished is kept, and
    `BudgetSpent` where the manifest's budget did so.
    Raises the errors of `jobs.errors`; failed images are counted in the summary.
    """
    folder = JobFolder(store, JobKeys(job if job is not None else manifest.job_id()))
    store.check_writable()
    for choice in choices:
        check_there(choice)
    parts = list(parts_of(manifest, choices))
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
    earlier = earlier_pictures(store) if reuse and not force else None
    watch = None if manifest.budget is None else BudgetWatch(manifest.budget, stop)
    run = Run(
        *(manifest, folder, reproducible, added, stop, status, observe),
        force=force,
        earlier=earlier,
        watch=watch,
    )
    with gallery_kept_up_to_date(folder, planned=manifest.total):
        for part in parts:
            if not stop.is_set():
                outcome.add(run.render(part))
    write_failures(folder, outcome.failures)
    if outcome.settled < manifest.total:
        index_pictures(folder)
        with status("writing the gallery"):
            shown = _write_gallery_so_far(folder, outcome.failures, manifest.total)
        done = f"{outcome.rendered + outcome.reused:,} of {counted(manifest.total, 'image')}"
        places = f"\npictures  {url}/images\ngallery   {url}/index.html" if shown else ""
        if watch is not None and watch.spent is not None:
            why = f"the budget of {watch.spent} is used up after {done}"
            raise BudgetSpent(f"{why}; a larger one continues{places}")
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
        copied=outcome.copied,
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


def _is_complete(manifest: Manifest, parts: Sequence[Part], folder: JobFolder) -> bool:
    """True if there is nothing to do. Raises `JobConflictError` if the folder's images are known to
    be of another model.
    """
    if manifest.output.dataset is not None and not has_dataset(folder, images=manifest.total):
        return False  # asked for since, or broken off
    known = {part.of: pinned_digest(folder, part) for part in parts}
    digests = {of: digest for of, digest in known.items() if digest is not None}
    tasks, images = manifest.expansion.tasks(), manifest.total
    return len(digests) == len(known) and is_complete(folder, tasks, images=images, digests=digests)
