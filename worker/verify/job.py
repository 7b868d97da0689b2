"""Verifies a whole job: objects first, then a sample by the model, then what is to be mended."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.errors import InputError, Interrupted
from jobs.folder.job_file import JobFile
from jobs.folder.layout import JobFolder
from jobs.folder.model_file import check_pin, pin_model
from jobs.folder.plan import PlanReader
from jobs.folder.records import read_failures
from jobs.plan.cost import evaluations_of
from jobs.settings import Settings
from jobs.task import ModelPart
from worker.checkpoint.load import ModelChoice, load
from worker.output.done import IncompleteError, end_job
from worker.output.record import ModelInfo
from worker.output.repair_records import BrokenImagesError
from worker.verify.check import Checked, Kind, check

if TYPE_CHECKING:
    from worker.observer import Observer
    from worker.verify.again import Again, Sampled


Observe = Callable[[int, int], "AbstractContextManager[Observer]"]
"""Opens the progress of so many images, which take so many evaluations."""


@dataclass
class Verified:
    """Result of a verification. mended: images that were rendered again, or recorded."""

    job: str
    checked: Checked
    sampled: Sampled | None = None
    mended: int = 0

    @property
    def left(self) -> int:
        """Findings that were not mended."""
        return sum(self.checked.counts.values()) - self.mended

    def to_json(self) -> dict[str, Any]:
        checked, sampled = self.checked, self.sampled
        return {
            "job": self.job,
            "images": checked.images,
            "right": checked.right,
            "failed": checked.failed,
            "counts": {kind.value: count for kind, count in checked.counts.items()},
            "findings": [finding.to_json() for finding in checked.findings],
            "sample": None
            if sampled is None
            else {
                "images": sampled.images,
                "same": sampled.same,
                "close": sampled.close,
                "least_psnr_db": sampled.least_psnr_db,
            },
            "mended": self.mended,
            "left": self.left,
        }


@dataclass(frozen=True)
class Wanted:
    """share: of the images that are rendered again, in (0, 1]; None for none. repair: render what
    is not right.
    """

    share: float | None
    repair: bool


def verify_job(
    folder: JobFolder,
    described: JobFile,
    wanted: Wanted,
    choose_model: Callable[[str], ModelChoice],
    settings: Settings,
    *,
    counting: Callable[[str, int], AbstractContextManager[Callable[[int], None]]],
    status: Callable[[str], AbstractContextManager[object]],
    observe: Observe,
    stop: threading.Event,
) -> Verified:
    """Looks, and mends if that is wanted.

    described: the job's file. choose_model: by its name. counting, status, observe: show progress.
    stop: set to end between two steps.
    Raises `NotFoundError`, `StoreError`, `JobConflictError` for a model of other weights,
    `Interrupted`.
    """
    with counting("comparing", described.images) as tick:
        checked = check(folder, described, tick)
    verified = Verified(folder.keys.job_id, checked)
    if wanted.share is None and not (wanted.repair and checked.to_mend()):
        return verified
    again = _Rendering(folder, described, choose_model, settings, status, observe, stop)
    if wanted.share is not None:
        _sample(again, checked, wanted.share, verified)
    if wanted.repair and checked.to_mend():
        again.mend(checked, verified)
        _end_again(folder, described)
    return verified


def _sample(again: _Rendering, checked: Checked, share: float, verified: Verified) -> None:
    from worker.verify.again import choose

    wrong = {finding.index for finding in checked.findings}
    chosen = choose(checked.images, share, again.described.plan)
    failed = {failure.index for failure in read_failures(again.folder)}
    verified.sampled = again.sample([i for i in chosen if i not in wrong and i not in failed])
    for finding in verified.sampled.findings:
        checked.right -= 1
        checked.add(finding)


def _end_again(folder: JobFolder, described: JobFile) -> None:
    """Write totals and gallery once more, if the job is whole now."""
    failures = read_failures(folder)
    try:
        end_job(folder, failures, {"name": described.model}, images=described.images)
    except (IncompleteError, BrokenImagesError):
        return  # other images are still to be made, by its own workers or run


class _Rendering:
    """Renders images of a job, model by model; each is loaded when something is to be drawn."""

    def __init__(
        self,
        folder: JobFolder,
        described: JobFile,
        choose_model: Callable[[str], ModelChoice],
        settings: Settings,
        status: Callable[[str], AbstractContextManager[object]],
        observe: Observe,
        stop: threading.Event,
    ) -> None:
        self.folder = folder
        self.described = described
        self._choose_model = choose_model
        self._settings = settings
        self._status = status
        self._observe = observe
        self._stop = stop

    def sample(self, indices: Sequence[int]) -> Sampled:
        """How these images compare with what the models draw now."""
        from worker.verify.again import Sampled

        sampled = Sampled()

        def sample(again: Again, own: Sequence[int]) -> None:
            with self._observe(len(own), self._evaluations(own)) as observer:
                again.sample(own, observer, sampled)

        self._each_model(indices, sample)
        return sampled

    def mend(self, checked: Checked, verified: Verified) -> None:
        """Renders what is not right."""
        # Whatever is in their place; a folder does not tell a flipped bit from a whole image.
        wrong = {f.index for f in checked.findings if f.kind in (Kind.DIFFERENT, Kind.DAMAGED)}

        def mend(again: Again, own: Sequence[int]) -> None:
            for force in (False, True):
                indices = [index for index in own if (index in wrong) == force]
                if indices:
                    with self._observe(len(indices), self._evaluations(indices)) as observer:
                        outcome = again.mend(indices, observer, force=force)
                    verified.mended += outcome.rendered + outcome.reused

        self._each_model(checked.to_mend(), mend)

    def _evaluations(self, indices: Sequence[int]) -> int:
        return sum(map(evaluations_of, PlanReader(self.folder).tasks(indices)))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted("stopped; what was mended stays so")

    def _each_model(
        self, indices: Sequence[int], do: Callable[[Again, Sequence[int]], None]
    ) -> None:
        """Does something with what draws the images of each model, one model after the other.

        Raises `JobConflictError`, and `Interrupted` between two.
        """
        try:
            from worker.render.weight_files import AddedFiles
            from worker.verify.again import Again
        except ModuleNotFoundError as error:
            raise InputError(
                f"rendering needs {error.name}, which is not installed: "
                "pip install 'sdbatch[worker]'"
            ) from None
        models = self.described.models
        parts = models or (ModelPart(self.described.model, self.described.images),)
        for part, stop in zip(parts, itertools.accumulate(p.images for p in parts), strict=True):
            own = [index for index in indices if stop - part.images <= index < stop]
            if not own:
                continue
            choice = self._choose_model(part.name)
            with self._status(f"loading {choice.name}"):
                model = load(choice)
            info = ModelInfo.of(choice.name, choice.source, model.provenance)
            of = part.name if models else None
            if self.folder.head(self.folder.keys.model(of)) is None:  # none of its images was begun
                pin_model(self.folder, info.name, info.digest, of=of)
            check_pin(self.folder, info.name, info.digest, of=of)
            added = AddedFiles.of(self._settings, choice.cache)
            do(Again(self.folder, self.described, model, info, added, self._stop), own)
            del model  # before the next is loaded
            self._check_stop()
