"""Compares what a job's folder holds with its plan and its records, byte by byte. No torch here."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import DamagedError, ForeignImageError, NotFoundError
from jobs.folder.check import AT_ONCE, THREADS, chunks
from jobs.folder.job_file import JobFile
from jobs.folder.layout import JobFolder
from jobs.folder.model_file import read_pin
from jobs.folder.plan import read_plan
from jobs.folder.records import WHOLE, Record, read_failures, read_lines
from jobs.limits import MAX_RENDERED_BYTES
from jobs.plan.shards import ShardTable
from jobs.task import Task, spec_digest
from worker.output.stored import record_in_store

MOST_FINDINGS = 10_000
"""Findings that are listed one by one; of more, only the counts are told."""


class Kind(enum.StrEnum):
    """A way in which a job's folder is not as it should be."""

    MISSING = "missing"  # neither image nor failure
    DAMAGED = "damaged"  # not the bytes that its record says, or not to be decoded
    FOREIGN = "foreign"  # a whole picture, of something else
    UNRECORDED = "unrecorded"  # an image without a record of its own
    EXTRA = "extra"  # an object that the plan does not name
    DIFFERENT = "different"  # not what the model draws


MENDED_BY_RENDERING = (Kind.MISSING, Kind.DAMAGED, Kind.UNRECORDED, Kind.DIFFERENT)
"""Foreign pictures are somebody's, and extra ones in nobody's way."""


@dataclass(frozen=True)
class Finding:
    """Something that is not right. path: inside the job's folder. index: of the image, if the plan
    has one there.
    """

    kind: Kind
    path: str
    why: str
    index: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "index": self.index, "why": self.why}


@dataclass
class Checked:
    """Result of a comparison. images: of the job. right: those that are as their records say.
    failed: those that could not be made, and are not expected. findings: the first so many. counts:
    of all, by kind.
    """

    images: int
    right: int = 0
    failed: int = 0
    findings: list[Finding] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] = self.counts.get(finding.kind, 0) + 1
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)

    def to_mend(self) -> list[int]:
        """Images that rendering would mend, in order."""
        return sorted(
            {
                finding.index
                for finding in self.findings
                if finding.index is not None and finding.kind in MENDED_BY_RENDERING
            }
        )


@dataclass(frozen=True)
class _Expected:
    """An image of the plan, and its record, if it has one."""

    task: Task
    spec: str
    key: str
    line: Record | None


def check(folder: JobFolder, described: JobFile, tick: Callable[[int], None]) -> Checked:
    """Reads every image of a job. described: its `job.json`. tick: called with the number of images
    looked at.

    Some hundred bytes an image are kept. Raises `NotFoundError` if no image of it was begun yet,
    `StoreError`.
    """
    checked = Checked(described.images)
    failed = {failure.index for failure in read_failures(folder)}
    planned: set[int] = set()  # hashes of keys, as a million keys would take more memory
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sdbatch-verify") as pool:
        done = 0
        for some in chunks(_expected(folder, described), AT_ONCE):
            planned.update(hash(one.key) for one in some)
            for one, finding in zip(some, pool.map(lambda e: _look(folder, e), some), strict=True):
                if finding is None:
                    checked.right += 1
                elif finding.kind is Kind.MISSING and one.task.index in failed:
                    checked.failed += 1
                else:
                    checked.add(finding)
            done += len(some)
            tick(done)
    for info in folder.list(folder.keys.images_prefix):
        if hash(info.key) not in planned:
            path = folder.keys.path(info.key)
            checked.add(Finding(Kind.EXTRA, path, "no image of the plan is called so"))
    return checked


def _digests_of(folder: JobFolder, described: JobFile) -> dict[str | None, str]:
    """By the model that tasks name, the digest of its weights; without those not begun yet.

    Raises `NotFoundError` if there is none, `StoreError`.
    """
    names: list[str | None] = [part.name for part in described.models]
    found: dict[str | None, str] = {}
    for name in names or [None]:
        try:
            found[name] = read_pin(folder, name)["digest"]
        except NotFoundError:
            continue
    if not found:
        raise NotFoundError(f"{folder.url} has no images yet: none was begun")
    return found


def _expected(folder: JobFolder, described: JobFile) -> Iterator[_Expected]:
    """The plan's images in order, each with its record."""
    digests = _digests_of(folder, described)
    shards = ShardTable.of(read_plan(folder), described.images)
    number, lines = -1, dict[int, Record]()
    for task in read_plan(folder):
        if (shard := shards.shard_of(task.index)) != number:
            number, key = shard, folder.keys.records(shard)
            found = read_lines(folder.store, key, skip_damaged=True)
            lines = {line["index"]: line for line in found if all(name in line for name in WHOLE)}
        # Of a model that was not begun no image has a name yet; none is there, whatever it is.
        spec = spec_digest(task, digests.get(task.model, ""))
        key = folder.keys.image(task.name, spec, task.format)
        yield _Expected(task, spec, key, lines.get(task.index))


def _look(folder: JobFolder, expected: _Expected) -> Finding | None:
    """The flaw of one image; None if it is as it should be. Raises `StoreError`."""
    path = folder.keys.path(expected.key)

    def found(kind: Kind, why: str) -> Finding:
        return Finding(kind, path, why, expected.task.index)

    try:
        data = folder.get(expected.key, limit_bytes=MAX_RENDERED_BYTES)
    except NotFoundError:
        why = "there is no such image" if expected.line is None else "recorded, but not there"
        return found(Kind.MISSING, why)
    except DamagedError as error:
        return found(Kind.DAMAGED, str(error))
    line = expected.line
    recorded = line is not None and line["path"] == path
    if recorded and line is not None and hashlib.sha256(data).hexdigest() == line["sha256"]:
        return None
    try:
        record_in_store(folder, expected.key, expected.spec)
    except NotFoundError:
        return found(Kind.MISSING, "it went while it was looked at")
    except ForeignImageError as error:
        return found(Kind.FOREIGN, str(error))
    except DamagedError as error:
        return found(Kind.DAMAGED, str(error))
    if recorded:
        return found(Kind.DAMAGED, "its sha256 is not that of its record")
    return found(Kind.UNRECORDED, "its records name no such image")
