"""How far a job is and how fast it goes: the figures that everybody who looks at it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.ledger.base import JobState, JobStatus


@dataclass(frozen=True)
class Figures:
    """images, settled: all of them, and those that need no more work. evaluations, evaluated: the
    same of the model's evaluations. images_per_s, remaining_s: None while they are not known.
    rests: why nothing is being rendered, or None.
    """

    images: int
    settled: int
    evaluations: int
    evaluated: int
    images_per_s: float | None
    remaining_s: float | None
    rests: str | None = None


def figures_of(job: JobStatus) -> Figures:
    """Figures of a job in a ledger, from its status alone: so all who watch it see the same ones,
    whenever they began.

    Neither count goes back, nor over its total, when a worker dies: the speed is that of all
    evaluations, also of those that are lost with it, over the time in which the job was rendered.
    """
    settled = min(job.total, job.done + job.failed)
    per_image = job.evaluations / max(1, job.total)
    of_settled = per_image * settled
    evaluated = max(round(of_settled), min(job.evaluated, job.evaluations))
    if not job.settled:
        evaluated = min(evaluated, job.evaluations - 1)
    per_s = job.evaluated / job.rendering_s if job.rendering_s > 0 else 0.0
    rests = _rests(job)
    known = per_s > 0 and per_image > 0 and rests is None
    return Figures(
        images=job.total,
        settled=settled,
        evaluations=job.evaluations,
        evaluated=max(0, evaluated),
        images_per_s=per_s / per_image if known else None,
        remaining_s=max(0.0, job.evaluations - of_settled - _under_way(job)) / per_s
        if known
        else None,
        rests=rests,
    )


def _under_way(job: JobStatus) -> float:
    """Evaluations of images that are not settled yet, so far as their shards are held: the others
    begin anew.
    """
    per_image = job.evaluations / max(1, job.total)
    held = per_image * job.leased * job.total / max(1, job.shards)
    return min(held, max(0.0, job.evaluated - per_image * (job.done + job.failed)))


def _rests(job: JobStatus) -> str | None:
    if job.state is not JobState.ACTIVE:
        return str(job.state)
    if job.settled:
        return "its gallery is being made"
    return None if job.leased else "waiting for a worker"
