"""Models that live workers have. A job for any other one waits until somebody starts a worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from jobs.ledger import Ledger
from jobs.ledger.types import JobState, JobStatus, WorkerInfo


def served_models(workers: Iterable[WorkerInfo]) -> Counter[str]:
    """How many workers take shards of each model."""
    return Counter(worker.model for worker in workers if worker.serves)


def unserved(ledger: Ledger, job: JobStatus, served: Counter[str]) -> list[str]:
    """Models of a job that nobody has, though images are to be made with them. served: by
    `served_models`. Raises `LedgerError`.
    """
    if job.state is not JobState.ACTIVE or job.settled:
        return []
    return [part.model for part in ledger.parts(job) if waits_for_worker(part, served)]


def waits_for_worker(job: JobStatus, served: Counter[str]) -> bool:
    """True if a job, or a part of one model, has images to do and nobody to render them."""
    going = job.state is JobState.ACTIVE and not job.settled
    return going and not job.leased and not served[job.model]


def no_worker(model: str, served: Counter[str]) -> str:
    """Sentence about a model that no worker has: which models they have, and how to start one."""
    there = ", ".join(f"{name} ({count})" for name, count in sorted(served.items()) if count)
    have = f"workers have {there}" if there else "there are no workers"
    return f"no worker has model {model}; {have}; sdbatch worker --model {model} starts one"
