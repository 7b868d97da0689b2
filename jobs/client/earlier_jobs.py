"""Earlier jobs of a manifest's name, and what differs: one changed seed makes another job, in a
folder of its own, which is easily taken for a mistake.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from jobs.errors import NotFoundError, StoreError
from jobs.folder.job_file import JobFile, read_job_file
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import read_plan
from jobs.formatting import agreeing, counted, found
from jobs.manifest.manifest import Manifest
from jobs.plan.part import PART_SIZE
from jobs.storage import Store
from jobs.storage.base import MOST_FOLDERS
from jobs.task import Task

log = logging.getLogger(__name__)

MOST_LOOKED_AT = 20
"""Folders whose age is asked for, each by a request of its own."""

MOST_SHOWN = 4
"""Differences that are named; nobody reads more in a line."""

_DIGESTS = ("init_image", "mask", "loras", "embeddings", "vae")  # names that tell a person nothing


def earlier_job_lines(
    store: Store, manifest: Manifest, job_id: str, tasks: Iterable[Task]
) -> list[str]:
    """For people: the latest folder of the manifest's name, and how its job differs; empty if the
    manifest's own folder is there already, or there is no other.

    job_id, tasks: the manifest's; of the tasks the first few are taken.

    Little is read: names of folders, a few heads, and the first part of one plan. What goes wrong
    is left to who works with the store.
    """
    try:
        if store.head(JobKeys(job_id).job) is not None:
            return []
        names = _names(store, manifest.name, job_id)
        keys = _latest(store, names)
        if keys is None:
            return []
        url = store.url(keys.prefix.rstrip("/"))
        lines = [f"a new job: it differs from {url}{_and_others(len(names) - 1)}"]
        differences = list(_differences(JobFolder(store, keys), manifest, tasks))
    except (StoreError, NotFoundError) as error:
        log.debug("earlier jobs are not known: %s", error)
        return []
    more = len(differences) - MOST_SHOWN
    shown = differences[:MOST_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    return [*lines, f"  {'; '.join(shown)}"] if shown else lines


def _names(store: Store, name: str, job_id: str) -> list[str]:
    """Folders that are called as jobs of this name are, other than the one itself."""
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}")
    found = store.folders(f"{name}-", MOST_FOLDERS)
    return [folder for folder in found if pattern.fullmatch(folder) and folder != job_id]


def _latest(store: Store, names: Sequence[str]) -> JobKeys | None:
    """Keys of the job that was written last, of the first few names."""
    written: list[tuple[float, str]] = []
    for name in names[:MOST_LOOKED_AT]:
        info = store.head(JobKeys(name).job)
        if info is not None:
            written.append((info.modified_s or 0.0, name))
    return JobKeys(max(written)[1]) if written else None


def _and_others(count: int) -> str:
    return f" (and {counted(count, 'other')} of this name)" if count else ""


def _differences(folder: JobFolder, manifest: Manifest, tasks: Iterable[Task]) -> Iterator[str]:
    """Each as `steps: 50, now 30`."""
    before = read_job_file(folder)
    now = JobFile(manifest.name, manifest.model, "", manifest.total, manifest.output.quality)
    for field in ("model", "quality"):
        old, new = getattr(before, field), getattr(now, field)
        if old != new:
            yield _changed(field, old, new)
    if before.images != now.images:
        yield f"{counted(before.images, 'image')}, now {now.images:,}"
    earlier = list(islice(read_plan(folder), PART_SIZE))
    first = list(islice(tasks, PART_SIZE))
    among = "" if now.images <= PART_SIZE >= before.images else f" of the first {PART_SIZE:,}"
    yield from _of_tasks(earlier, first, among)


def _of_tasks(earlier: Sequence[Task], tasks: Sequence[Task], among: str) -> Iterator[str]:
    gone, new = _without(earlier, tasks), _without(tasks, earlier)
    if len(gone) != len(new) or not new:
        if new:
            yield f"{counted(len(new), 'image')}{among} {agreeing(len(new), 'is', 'are')} new"
        if gone:
            yield f"{counted(len(gone), 'image')}{among} {agreeing(len(gone), 'is', 'are')} gone"
        if not new and not gone and [t.name for t in earlier] != [t.name for t in tasks]:
            yield f"names or order of images{among}"
        return
    pairs = [(old.canonical(), task.canonical()) for old, task in zip(gone, new, strict=True)]
    for field in dict.fromkeys(name for _, values in pairs for name in values):
        changes = [(old.get(field), values.get(field)) for old, values in pairs]
        changes = [(old, value) for old, value in changes if old != value]
        if changes:
            whose = "" if len(changes) == len(tasks) else f" of {counted(len(changes), 'image')}"
            yield _changed(f"{field}{whose}{among}", *_only(changes, field))


def _without(tasks: Sequence[Task], others: Sequence[Task]) -> list[Task]:
    """Those of `tasks` whose picture is not among the others, in order."""
    left = Counter(other.canonical_json() for other in others)
    rest = []
    for task in tasks:
        text = task.canonical_json()
        if left[text]:
            left[text] -= 1
        else:
            rest.append(task)
    return rest


def _only(changes: Sequence[tuple[Any, Any]], field: str) -> tuple[Any, Any]:
    """The one change that all have in common, if there is one that says something."""
    if field in _DIGESTS or any(change != changes[0] for change in changes):
        return None, None
    return changes[0]


def _changed(what: str, old: Any, new: Any) -> str:
    return what if old is None is new else f"{what}: {found(old)}, now {found(new)}"
