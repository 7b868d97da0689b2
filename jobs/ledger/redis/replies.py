"""From what the Redis ledger's scripts answer to the values of `jobs.ledger.base`.

Older and newer versions share a ledger: fields that this one does not know are ignored, and what it
cannot read is said of that one job, worker or image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, NotRequired

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Json,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from jobs.budget import Budget
from jobs.ledger.types import (
    Event,
    Expired,
    JobState,
    JobStatus,
    ModelShards,
    NewJob,
    News,
    Shard,
    WorkerInfo,
    unreadable,
)
from jobs.task import Failure


def shards(job_id: str, numbers: Sequence[int]) -> list[Shard]:
    """numbers: number, start and stop of each."""
    flat = iter(numbers)
    return [Shard(job_id, *shard) for shard in zip(flat, flat, flat, strict=True)]


MOST_PER_S = 1e6
"""Images a second that no worker reaches; NaN and infinity, which JSON has not, are beyond too."""

_Count = Annotated[int, Field(ge=0, le=2**53)]


@with_config(ConfigDict(extra="ignore"))  # a newer version may have written more
class _Job(TypedDict):
    """A job's hash. What has a default may have come with a later version."""

    state: JobState
    plan: str
    store: str
    model: str
    total: _Count
    done: _Count
    failed: _Count
    shards: _Count
    created: _Count
    name: NotRequired[str]
    priority: NotRequired[_Count]
    webhook: NotRequired[str]
    quality: NotRequired[_Count]
    waiting: NotRequired[_Count]
    evaluations: NotRequired[_Count]
    evaluated: NotRequired[_Count]
    rendering: NotRequired[_Count]
    worked: NotRequired[_Count]
    ended: NotRequired[_Count]
    error: NotRequired[str]
    budget: NotRequired[Json[Budget | None]]
    reason: NotRequired[Annotated[str, Field(max_length=100)]]
    submitter: NotRequired[Annotated[str, Field(max_length=1000)]]
    models: NotRequired[Json[Annotated[list[tuple[str, _Count, _Count]], Field(max_length=1000)]]]


def _with_speed(worker: WorkerInfo) -> WorkerInfo:
    if worker.images_per_s is not None and not 0 <= worker.images_per_s <= MOST_PER_S:
        raise ValueError("images_per_s is no speed")
    return worker


_JOB = TypeAdapter(_Job)
_WORKER = TypeAdapter(Annotated[WorkerInfo, AfterValidator(_with_speed)])
_SEEN = re.compile(rb"[0-9]{1,16}")
_QUOTA = re.compile(rb"[0-9]{1,15}")
_FAILURE = TypeAdapter(Failure)


def status(job_id: str, record: Mapping[bytes, bytes], published: int, leased: int) -> JobStatus:
    """record: the job's hash. With the state UNKNOWN if it is not as it must be."""
    try:
        job = _JOB.validate_python({_decoded(name): value for name, value in record.items()})
    except ValidationError as error:
        return unreadable(job_id, _first_flaw(error))
    if job["state"] is JobState.UNKNOWN:
        return unreadable(job_id, "state is unknown")
    ended = job.get("ended")
    return JobStatus(
        job_id=job_id,
        name=job.get("name", job_id),
        state=job["state"],
        plan=job["plan"],
        store=job["store"],
        model=job["model"],
        priority=job.get("priority", NewJob.priority),
        webhook=job.get("webhook") or None,
        quality=job.get("quality", NewJob.quality),
        total=job["total"],
        done=job["done"],
        failed=job["failed"],
        shards=job["shards"],
        waiting=job.get("waiting", 0),
        published=published,
        leased=leased,
        evaluations=job.get("evaluations", 0),
        evaluated=job.get("evaluated", 0),
        rendering_s=job.get("rendering", 0) / 1e6,
        created_s=job["created"] / 1e6,
        ended_s=None if ended is None else ended / 1e6,
        error=job.get("error"),
        models=tuple(ModelShards(*part) for part in job.get("models", ())),
        worker_s=job.get("worked", 0) / 1e6,
        budget=job.get("budget"),
        reason=job.get("reason") or None,
        submitter=job.get("submitter", ""),
    )


def dump_models(models: Sequence[ModelShards]) -> str:
    """Text that a job's hash has of its models."""
    return json.dumps([[part.name, part.shards, part.images] for part in models])


def state(text: bytes) -> JobState:
    """UNKNOWN for one that this version does not know."""
    try:
        return JobState(text.decode())
    except ValueError:
        return JobState.UNKNOWN


def quotas(found: Mapping[bytes, bytes]) -> dict[str, int]:
    """By submitter; 0 for one that is no number, as the scripts take it: nothing passes by it."""
    return {
        _decoded(name): int(value) if _QUOTA.fullmatch(value) else 0
        for name, value in found.items()
    }


def worker(name: bytes, entry: bytes, seen: bytes) -> WorkerInfo:
    """entry: its JSON. seen: microseconds. With the state unknown if the entry is not as it must
    be.
    """
    try:
        seen_s = int(seen) / 1e6 if _SEEN.fullmatch(seen) else None
        return replace(_WORKER.validate_json(entry), seen_s=seen_s)
    except ValidationError as error:
        return WorkerInfo(
            name=_decoded(name),
            host="",
            pid=0,
            device="",
            model="",
            leases=0,
            images=0,
            state=f"unknown: its entry in the ledger cannot be read: {_first_flaw(error)}",
        )


def failure(index: int, line: bytes) -> Failure:
    """line: its JSON."""
    try:
        return replace(_FAILURE.validate_json(line), index=index)
    except ValidationError as error:
        reason = f"why is not known: its entry in the ledger cannot be read: {_first_flaw(error)}"
        return Failure(index=index, name="", prompt="", seed=0, reason=reason)


def _first_flaw(error: ValidationError) -> str:
    """Which field of an entry is not as it must be, without its value: it may be a secret."""
    flaw = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, flaw["loc"]))
    if flaw["type"] == "missing":
        return f"{place} is missing"
    return f"{place}: {flaw['msg']}" if place else str(flaw["msg"])


def expired(
    job_id: bytes, number: int, start: int, stop: int, owner: bytes, deaths: int, *failed: int
) -> Expired:
    shard = Shard(_decoded(job_id), number, start, stop)
    return Expired(shard, _decoded(owner), deaths, failed)


def event(id: str, fields: Mapping[bytes, bytes]) -> Event:
    """id: begins with the time in milliseconds, as the server makes them."""
    values = _text(fields)
    kind = values.pop("kind", "unknown")
    return Event(id, int(id.partition("-")[0]) / 1000, kind, values)


def news(id: str, fields: Mapping[bytes, bytes]) -> News:
    """id: as `event` takes it."""
    found = event(id, fields)
    values = dict(found.values)
    return News(values.pop("job", ""), replace(found, values=values))


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {_decoded(name): _decoded(value) for name, value in fields.items()}


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")
