"""From what the Redis ledger's scripts answer to the values of `jobs.ledger.base`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.ledger.base import Event, Expired, JobState, JobStatus, Shard


def shards(job_id: str, numbers: Sequence[int]) -> list[Shard]:
    """numbers: number, start and stop of each."""
    flat = iter(numbers)
    return [Shard(job_id, *shard) for shard in zip(flat, flat, flat, strict=True)]


def status(job_id: str, record: Mapping[bytes, bytes], published: int, leased: int) -> JobStatus:
    """record: the job's hash."""
    text = _text(record)
    return JobStatus(
        job_id=job_id,
        name=text["name"],
        state=JobState(text["state"]),
        plan=text["plan"],
        store=text["store"],
        model=text["model"],
        priority=int(text["priority"]),
        webhook=text["webhook"] or None,
        quality=int(text["quality"]),
        total=int(text["total"]),
        done=int(text["done"]),
        failed=int(text["failed"]),
        shards=int(text["shards"]),
        waiting=int(text["waiting"]),
        published=published,
        leased=leased,
        evaluations=int(text["evaluations"]),
        evaluated=int(text["evaluated"]),
        created_s=int(text["created"]) / 1e6,
        ended_s=int(text["ended"]) / 1e6 if "ended" in text else None,
        error=text.get("error"),
    )


def expired(
    job_id: bytes, number: int, start: int, stop: int, owner: bytes, deaths: int, *failed: int
) -> Expired:
    return Expired(Shard(job_id.decode(), number, start, stop), owner.decode(), deaths, failed)


def event(id: str, fields: Mapping[bytes, bytes]) -> Event:
    """id: begins with the time in milliseconds, as the server makes them."""
    values = _text(fields)
    kind = values.pop("kind")
    return Event(id, int(id.partition("-")[0]) / 1000, kind, values)


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
