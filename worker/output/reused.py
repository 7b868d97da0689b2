"""Takes a picture that an earlier job of the store made, instead of rendering it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache

from jobs.errors import DamagedError, NotFoundError, StoreError
from jobs.folder.job_file import JobFile, read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.records import WHOLE, Record, read_lines
from jobs.limits import MAX_RENDERED_BYTES
from jobs.reuse.earlier import EarlierPictures
from jobs.storage import get_verified
from jobs.storage.base import is_segment
from jobs.task import Task
from worker.output.record import ModelInfo, names_of_files, names_of_inputs

log = logging.getLogger(__name__)

SHARDS_KEPT = 16
"""Earlier shards whose records are in mind: a grown sweep asks for them nearly in order."""


class ReusedPictures:
    """Copies pictures of earlier jobs into one job's folder.

    A picture is taken if it is the same task of the same weights, as its spec digest says, with the
    same labels and template, which are inside of its file, and of the same quality; for a job that
    is exact it must have been made so. What goes wrong is said once, and the rest is rendered.
    model: of those weights, as this job calls it.
    """

    def __init__(
        self,
        folder: JobFolder,
        described: JobFile,
        earlier: EarlierPictures,
        model: ModelInfo,
        input_names: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._described = described
        self._earlier = earlier
        self._model = model
        self._input_names = input_names
        self._records_of = lru_cache(maxsize=SHARDS_KEPT)(self._read_records)
        self._quality_of = lru_cache(maxsize=SHARDS_KEPT)(self._read_quality)
        self._refused = False

    def take(self, task: Task, spec: str) -> Record | None:
        """The record of the task's picture, once it is in the job's folder; None where there is
        none to take. spec: the task's digest, 64 hex digits.
        """
        if self._refused:
            return None
        try:
            for job, shard in self._earlier.find(spec):
                if job == self._folder.keys.job_id or not is_segment(job):
                    continue
                line = self._records_of(job, shard).get(spec)
                if line is not None and self._fits(task, job, line):
                    taken = self._copy(task, spec, JobKeys(job), line)
                    if taken is not None:
                        return taken
        except StoreError as error:
            self._refused = True
            log.warning("no pictures of earlier jobs are taken from now on: %s", error)
        return None

    def _read_records(self, job: str, shard: int) -> dict[str, Record]:
        """Records of a shard by spec digest, of those that are whole."""
        lines = read_lines(self._folder.store, JobKeys(job).records(shard), skip_damaged=True)
        needs = (*WHOLE, "spec")
        return {line["spec"]: line for line in lines if all(name in line for name in needs)}

    def _read_quality(self, job: str) -> int | None:
        try:
            return read_job_file(JobFolder(self._folder.store, JobKeys(job))).quality
        except (NotFoundError, DamagedError):
            return None

    def _fits(self, task: Task, job: str, line: Record) -> bool:
        """True if a picture of this spec is what would be made of the task."""
        exact = self._described.reproducible != "exact" or line.get("reproducible") == "exact"
        labels = line.get("meta", {}) == dict(task.meta) and line.get("template") == task.template
        if not (exact and labels) or task.format == "png":
            return exact and labels
        # Records of versions before do not say; their job does, as it was submitted last.
        quality = line["quality"] if "quality" in line else self._quality_of(job)
        return bool(quality == self._described.quality)

    def _copy(self, task: Task, spec: str, source: JobKeys, line: Record) -> Record | None:
        """The task's record; None if the picture is gone, or is not what its record says."""
        key = source(line["path"])
        info = self._folder.head(key)
        if (
            info is None
            or info.size_bytes != line["bytes"]
            or info.metadata.get("sha256", line["sha256"]) != line["sha256"]
        ):
            return None
        target = self._folder.keys.image(task.name, spec, task.format)
        try:
            if "sha256" in info.metadata:
                copied = self._folder.copy(key, target)
            else:  # the store does not note what was put
                store, limit = self._folder.store, MAX_RENDERED_BYTES
                data = get_verified(store, key, line["sha256"], limit_bytes=limit)
                copied = self._folder.put(target, data)
        except (NotFoundError, DamagedError):
            return None
        if not copied:
            return None  # something is in its place
        return self._line(task, source, target, line)

    def _line(self, task: Task, source: JobKeys, target: str, line: Record) -> Record:
        taken = {name: value for name, value in line.items() if name not in _OF_ITS_JOB}
        taken |= {"index": task.index, "name": task.name, "path": self._folder.keys.path(target)}
        taken |= {"model": self._model.to_json(), **names_of_files(task)}
        taken |= names_of_inputs(task, self._input_names)
        taken["reused_from"] = source.job_id
        if "thumbnail" in line and self._described.thumbnails:
            place = self._folder.keys.thumbnail(target)
            try:
                self._folder.copy(source(line["thumbnail"]), place)
            except NotFoundError:
                return taken
            taken["thumbnail"] = self._folder.keys.path(place)
        return taken


_OF_ITS_JOB = ("timings_s", "thumbnail", "init_image_name", "mask_name")
"""Fields of a record that say nothing of the picture in another job."""
