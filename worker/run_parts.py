"""Parts of a run: images of one model each, rendered one part after the other."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.errors import JobConflictError
from jobs.folder.job_file import JobFile
from jobs.folder.layout import JobFolder
from jobs.folder.model_file import check_pin, pin_model
from jobs.folder.prepare import prepare
from jobs.manifest.manifest import Manifest
from jobs.plan.cost import CostFold, PlanSummary
from jobs.plan.shards import ShardTable
from jobs.reuse.earlier import EarlierPictures
from jobs.task import Reproducible, Task
from worker.checkpoint import digests
from worker.checkpoint.load import ModelChoice, load
from worker.observer import Observers
from worker.output.complete import are_there
from worker.output.record import ModelInfo
from worker.render.budget import BudgetWatch

if TYPE_CHECKING:
    from sd_core.model.diffusion import LatentDiffusion
    from worker.observer import Observer
    from worker.render.runner import Outcome
    from worker.render.weight_files import AddedFiles


@dataclass(frozen=True)
class Part:
    """Images of a job that one model makes.

    images: their indices. of: the model's name in the plan, in a job of several.
    """

    choice: ModelChoice
    images: range
    of: str | None


def parts_of(manifest: Manifest, choices: Sequence[ModelChoice]) -> Iterator[Part]:
    """The parts of a job in order. choices: one for each of its models."""
    start = 0
    for part, choice in zip(manifest.models, choices, strict=True):
        of = part.name if len(choices) > 1 else None
        yield Part(choice, range(start, start + part.images), of)
        start += part.images


class Run:
    """The rendering of a job's parts, one after the other: a model is gone before the next comes.

    earlier: pictures of other jobs that may be taken. watch: sets the stop for a budget's sake.
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
        earlier: EarlierPictures | None,
        watch: BudgetWatch | None,
    ) -> None:
        self._manifest = manifest
        self._folder = folder
        self._reproducible = reproducible
        self._added = added
        self._stop = stop
        self._status = status
        self._observe = observe
        self._force = force
        self._earlier = earlier
        self._watch = watch
        self._prepared: tuple[JobFile, ShardTable] | None = None
        self.models: list[ModelInfo] = []
        self.load_s = 0.0
        self.render_s = 0.0

    def render(self, part: Part) -> Outcome:
        """Renders what the folder lacks of a part. Raises like `run_job`."""
        from worker.render.rendering import render  # needs torch
        from worker.render.runner import Outcome

        if part.of is not None and not self._force and self._is_there(part):
            if self._watch is not None:
                self._watch.found(len(part.images))
            return Outcome(reused=len(part.images))
        started = time.monotonic()
        with self._status(f"loading {part.choice.name}"):
            model, info = _loaded(part.choice)
        self.load_s += time.monotonic() - started
        described, shards = self._prepare()
        with hint_of_ways_on():
            name, digest = info.name, info.digest
            pin_model(self._folder, name, digest, of=part.of, overwrite=self._force)
        self.models.append(info)
        started = time.monotonic()
        with self._observe(self._cost(part)) as observer:
            if self._watch is not None:
                observer = Observers((observer, self._watch))
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
                earlier=self._earlier,
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
                    reuse=self._earlier is not None,
                )
        return self._prepared

    def _is_there(self, part: Part) -> bool:
        """True if the folder has all images of a part, so that its model need not be loaded."""
        digest = pinned_digest(self._folder, part)
        if digest is None:
            return False
        self._prepare()  # records of an earlier plan would not be of these images
        with self._status("looking at what is there"):
            total = self._manifest.total
            return are_there(
                self._folder, self._tasks(part), images=total, digests={part.of: digest}
            )

    def _tasks(self, part: Part) -> Iterator[Task]:
        tasks = self._manifest.expansion.tasks()
        return itertools.islice(tasks, part.images.start, part.images.stop)

    def _cost(self, part: Part) -> PlanSummary:
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
    return model, ModelInfo.of(choice.name, choice.source, model.provenance)


def pinned_digest(folder: JobFolder, part: Part) -> str | None:
    """Digest of the weights of images that were rendered before; None if they are not known to be
    those of the model now. Raises `JobConflictError` if they are known to be of another.
    """
    if folder.head(folder.keys.model(part.of)) is None:
        return None
    digest = _known_digest(part.choice)
    if digest is not None:
        with hint_of_ways_on():
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
def hint_of_ways_on() -> Iterator[None]:
    try:
        yield
    except JobConflictError as error:
        hint = "name this run with --job, or render all anew with --force"
        raise JobConflictError(f"{error}; {hint}") from None
