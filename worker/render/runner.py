"""The heart of a worker: tasks in, finished images and records out. No broker here.

Rendering and finishing overlap: the engine's thread renders while a few others encode and store.
A bounded number of images is between the two ends, whatever the job's size.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from jobs.errors import ForeignImageError, InputError, SdbatchError, StoreError
from jobs.folder.suspended import SavedImages
from jobs.plan.cost import evaluations_of
from jobs.task import Failure, Task, spec_digest
from sd_core.device import device_kind
from sd_core.engine.engine import MOST_ROWS, Rendered, Suspended
from sd_core.engine.model_runner import largest_state
from sd_core.engine.request import Request
from sd_core.engine.snapshot import StateError
from worker import logs
from worker.faults import DeviceLostError, Reason, is_device_lost, reason_of
from worker.observer import Observer
from worker.output.finish import Finisher
from worker.output.record import RenderInfo, prompts_of
from worker.output.reused import ReusedPictures
from worker.output.stored import ImageRecords, StoredImages
from worker.output.thumbnails import Thumbnails
from worker.render.job import RenderJob

log = logging.getLogger(__name__)

FINISHERS = {"cpu": 2, "cuda": 16}
"""Threads that encode and store, by the type of the device: with 300 ms for a PUT, and two of them
for an image and its thumbnail, sixteen hold 26 images a second.
"""

IN_FLIGHT = 2 * MOST_ROWS  # images submitted and not yet stored: a full batch and one waiting
_POLL_S = 0.2  # how often a wait looks whether it should stop


@dataclass
class Outcome:
    """Count of the tasks by what became of them. Those neither rendered, reused nor failed were not
    reached.

    equal: reused images without a record that were made as another image of the job, of the same
        name and parameters.
    copied: reused images that another job of the store had made.
    """

    rendered: int = 0
    reused: int = 0
    equal: int = 0
    copied: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def settled(self) -> int:
        return self.rendered + self.reused + len(self.failures)

    def add(self, other: Outcome) -> None:
        """Counts what became of other tasks, too."""
        self.rendered += other.rendered
        self.reused += other.reused
        self.equal += other.equal
        self.copied += other.copied
        self.failures += other.failures


@dataclass(frozen=True)
class RenderOptions:
    """How images are rendered, beside what they are.

    priority: of the job.
    save: asked when a run is stopped: whether images that were begun are saved for a worker to go
    on with, or dropped.
    grace_s: images that end within so many seconds of the stop are finished first.
    """

    priority: int = 0
    save: Callable[[], bool] = lambda: False
    grace_s: float = 0.0


class Runner:
    """Renders tasks of one job on one engine.

    Images that an earlier worker left half-way are continued from there.
    """

    def __init__(
        self, job: RenderJob, records: ImageRecords, observer: Observer, options: RenderOptions
    ) -> None:
        self._job = job
        self._engine = job.engine
        self._exact = job.described.reproducible == "exact"
        self._finisher = Finisher(
            job.folder,
            job.model,
            records,
            observer,
            quality=job.described.quality,
            overwrite=job.force,
            encoder=job.encoder,
            thumbnails=Thumbnails(job.folder, job.encoder) if job.described.thumbnails else None,
            input_names=job.input_names,
        )
        self._records = records
        self._stored = StoredImages(job.folder, records)
        self._saved = SavedImages(job.folder)
        self._reused = None
        if job.earlier is not None and not job.force:
            self._reused = ReusedPictures(
                *(job.folder, job.described, job.earlier, job.model, job.input_names)
            )
        self._observer = observer
        self._options = options
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._rendering: set[Future[Rendered]] = set()
        self._fatal: BaseException | None = None
        self._stopped_at: float | None = None
        self.outcome = Outcome()

    def render(self, tasks: Iterable[Task], stop: threading.Event) -> Outcome:
        """Renders what is missing, until all is done or `stop` is set; takes effect in one step.

        An image that fails is a line in the outcome and leaves the others alone. What every image
        would meet (a full disk, a store that went away, a device that no longer answers) stops the
        run and is raised, once the images already rendered are settled.
        """
        finishers = FINISHERS[self._engine.model.device.type]
        with ThreadPoolExecutor(finishers, thread_name_prefix="sdbatch-finish") as pool:
            try:
                for task in tasks:
                    if not self._take_slot(stop):
                        break
                    if not self._start(task, pool):
                        self._slots.release()
                self._wait_for_all(stop)
            except BaseException:
                self._cancel()
                self._wait_for_all(stop)
                raise
        if self._fatal is not None:
            raise self._fatal
        return self.outcome

    def _take_slot(self, stop: threading.Event) -> bool:
        while not (stop.is_set() or self._fatal):
            if self._slots.acquire(timeout=_POLL_S):
                return True
        return False

    def _start(self, task: Task, pool: ThreadPoolExecutor) -> bool:
        """Submits the task to the engine, whose end frees its slot; False if there is no need."""
        try:
            with logs.context(image=task.index):
                spec = spec_digest(task, self._job.model.digest)
                return not self._reuse(task, spec) and self._submit(task, spec, pool)
        except ForeignImageError as error:
            self._fail(task, error, evaluations_of(task), reason_of(error, rendered=False))
            return False
        except BaseException:
            self._slots.release()
            raise

    def _reuse(self, task: Task, spec: str) -> bool:
        """True if the image is in the store already, and whole; its record is mended if it was
        lost. A damaged image stays until it can be replaced.
        """
        if self._job.force:
            return False
        found = self._stored.find(task, spec)
        if found is None:
            return self._take_earlier(task, spec)
        if found.line is not None:
            self._records.add(found.line)
        with self._lock:
            self.outcome.reused += 1
            self.outcome.equal += found.equal
        self._observer.reused(task.index, evaluations_of(task))
        return True

    def _take_earlier(self, task: Task, spec: str) -> bool:
        """True if another job of the store had made the image: now it is in this one's folder."""
        line = None if self._reused is None else self._reused.take(task, spec)
        if line is None:
            return False
        self._records.add(line)
        with self._lock:
            self.outcome.reused += 1
            self.outcome.copied += 1
        self._observer.reused(task.index, evaluations_of(task))
        return True

    def _submit(
        self, task: Task, spec: str, pool: ThreadPoolExecutor, *, from_start: bool = False
    ) -> bool:
        """Hand the task to the engine. from_start: whatever was saved of its image."""
        try:
            request = self._request(task)
        except (StoreError, InputError):  # not of this image: a store is unreachable, a list lacks
            raise
        except Exception as error:  # an input that is gone, damaged, or odd in a way of its own
            self._fail(task, error, evaluations_of(task), reason_of(error, rendered=False))
            return False
        left = evaluations_of(task)
        state = None
        if not (from_start or self._job.force):
            state = self._saved.take(task.index, spec, limit_bytes=largest_state(request))

        def step(done: int, total: int) -> None:
            nonlocal left
            left = total - done
            self._observer.step()

        future = self._engine.submit(request, on_step=step, state=state)
        self._observer.submitted()
        with self._lock:
            self._rendering.add(future)

        # What this thread's log lines are about, those of the finishing one are about too.
        context = contextvars.copy_context()

        def rendered(future: Future[Rendered]) -> None:
            pool.submit(context.run, self._end, task, spec, future, left, pool)

        future.add_done_callback(rendered)
        return True

    def _request(self, task: Task) -> Request:
        size, inputs = (task.sampling.width, task.sampling.height), self._job.inputs
        picture = None if task.init_image is None else inputs.picture(task.init_image, *size)
        mask = None if task.mask is None else inputs.mask(task.mask, *size)
        priority = self._options.priority
        added, folder = self._job.added, self._job.folder
        return Request(
            *(task.prompt, task.sampling, task.negative, picture, mask, priority, self._exact),
            loras=added.loras_of(task, folder),
            embeddings=added.embeddings_of(task, folder),
            vae=added.vae_of(task, folder),
        )

    def _end(
        self,
        task: Task,
        spec: str,
        future: Future[Rendered],
        evaluations_left: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Finish or save an image that left the engine, on a finishing thread; free its slot."""
        error = None if future.cancelled() else future.exception()
        begun_anew = False
        try:
            if isinstance(error, Suspended):
                self._saved.keep(task.index, spec, error.state)
            elif isinstance(error, StateError):
                log.warning("begins anew: %s", error)
                begun_anew = self._submit(task, spec, pool, from_start=True)
            elif self._finish(task, future, evaluations_left):
                self._saved.drop(task.index, spec)
        except Exception as failed:  # nobody looks at what this thread raises
            self._fatal = failed
            self._cancel()
        finally:
            self._observer.left()
            with self._lock:
                self._rendering.discard(future)
            if not begun_anew:
                self._slots.release()

    def _finish(self, task: Task, future: Future[Rendered], evaluations_left: int) -> bool:
        """Encodes and stores a rendered image; whether it is in the store."""
        rendered = None
        try:
            rendered = future.result()
            finished = self._finisher.finish(
                rendered.pixels,
                task,
                self._render_info(task, rendered),
                damage=self._stored.damage(task.index),
            )
            with self._lock:
                self.outcome.rendered += not finished.reused
                self.outcome.reused += finished.reused
                self.outcome.equal += finished.equal
            if finished.reused:
                self._observer.reused(task.index, 0)
            else:
                self._observer.rendered(task.index, rendered.seconds)
            return True
        except CancelledError:
            pass  # a stop is no failure
        except ForeignImageError as error:
            self._fail(task, error, evaluations_left, reason_of(error, rendered=True))
        except SdbatchError as error:
            self._fatal = error
            self._cancel()
        except Exception as error:
            if is_device_lost(error):
                # No fault of the image: another worker is to render it.
                self._fatal = DeviceLostError(f"the device no longer answers: {error}")
                self._cancel()
            else:
                reason = reason_of(error, rendered=rendered is not None)
                self._fail(task, error, evaluations_left, reason)
        return False

    def _render_info(self, task: Task, rendered: Rendered) -> RenderInfo:
        model = self._engine.model
        return RenderInfo(
            device=", ".join(filter(None, (device_kind(model.device), model.kernels))),
            dtype=str(model.dtype).removeprefix("torch."),
            execution=model.execution,
            evaluations=rendered.evaluations,
            batch_rows=self._engine.rows_of(task.sampling) if rendered.exact else None,
            render_s=rendered.seconds,
            tokens_cut={
                name: over
                for name, text in prompts_of(task).items()
                if task.sampling.long_prompts == "cut" and (over := model.tokens_over(text))
            },
        )

    def _fail(self, task: Task, error: Exception, evaluations_left: int, reason: Reason) -> None:
        text = f"{error}" or type(error).__name__
        failure = Failure(task.index, task.name, task.prompt, task.sampling.seed, text)
        with self._lock:
            self.outcome.failures.append(failure)
        self._observer.failed(failure, evaluations_left, reason)

    def _cancel(self) -> None:
        with self._lock:
            rendering = list(self._rendering)
        for future in rendering:
            future.cancel()

    def _suspend(self) -> None:
        """Save images that were begun, but for those that will be finished within the grace."""
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
        with self._lock:
            rendering = list(self._rendering)
        left_s = max(0.0, self._stopped_at + self._options.grace_s - now)
        self._engine.suspend(rendering, grace_s=left_s)

    def _wait_for_all(self, stop: threading.Event) -> None:
        """Until every slot is free again; a stop ends what is still rendering."""
        for _ in range(IN_FLIGHT):
            while not self._slots.acquire(timeout=_POLL_S):
                if self._fatal or (stop.is_set() and not self._options.save()):
                    self._cancel()
                elif stop.is_set():
                    self._suspend()
        self._slots.release(IN_FLIGHT)
