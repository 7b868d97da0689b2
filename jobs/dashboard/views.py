"""Values of the ledger as the page gets them: plain JSON, its texts bounded."""

from __future__ import annotations

from typing import Any

from jobs.ledger.types import JobStatus, News, WorkerInfo
from jobs.terminal.figures import figures_of

MAX_CHARS = 2000
"""Longest text that a page gets of a prompt, a reason or an error."""

View = dict[str, Any]


def job_view(job: JobStatus, price: float | None) -> View:
    """A job with its figures. price: of a worker's hour in euros, or None."""
    figures = figures_of(job)
    return {
        "id": job.job_id,
        "name": short(job.name),
        "state": job.state,
        "reason": job.reason,
        "model": short(job.model),
        "total": job.total,
        "done": job.done,
        "failed": job.failed,
        "leased": job.leased,
        "queued": job.published,
        "waiting": job.waiting,
        "evaluations": figures.evaluations,
        "evaluated": figures.evaluated,
        "images_per_s": figures.images_per_s,
        "remaining_s": figures.remaining_s,
        "rests": figures.rests,
        "worker_s": job.worker_s,
        "cost": None if price is None else price * job.worker_s / 3600,
        "created_s": job.created_s,
        "ended_s": job.ended_s,
        "priority": job.priority,
        "store": short(job.store),
        "error": None if job.error is None else short(job.error),
    }


def worker_view(worker: WorkerInfo) -> View:
    """A worker as it last reported itself."""
    return {
        "name": short(worker.name),
        "host": short(worker.host),
        "device": short(worker.device),
        "model": short(worker.model),
        "state": short(worker.state),
        "images": worker.images,
        "leases": worker.leases,
        "rows": worker.rows,
        "rows_used": worker.rows_used,
        "seen_s": worker.seen_s,
        "images_per_s": worker.images_per_s,
    }


def failure_view(news: News) -> View | None:
    """An image that failed; None if the event is not as it must be."""
    index = news.event.values.get("index", "")
    if not (index.isascii() and index.isdigit() and len(index) <= 10):
        return None
    reason = short(news.event.values.get("reason", ""))
    return {
        "job": news.job_id,
        "index": int(index),
        "reason": reason,
        "time_s": news.event.time_s,
    }


def short(text: str) -> str:
    """At most `MAX_CHARS` of a text."""
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
