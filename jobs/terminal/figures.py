"""How far a job is and how fast it goes: the figures that everybody who looks at it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.formatting import counted
from jobs.ledger.types import JobState, JobStatus


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
    begin again.
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


def live_text(figures: Figures, room: int) -> str:
    """`12/40 images · 1.30 images/s · step 620/2040 · 0:21 left`, or less of it: at most `room`
    characters, but always the images.
    """
    images = f"{figures.settled:,}/{counted(figures.images, 'image')}"
    step = f"step {figures.evaluated:,}/{figures.evaluations:,}"
    rate, rate_in_short, left = [], [], []
    if figures.rests is not None:
        rate = rate_in_short = [figures.rests]
    elif figures.images_per_s is not None:
        rate = [f"{figures.images_per_s:.2f} images/s"]
        rate_in_short = [f"{figures.images_per_s:.2f}/s"]
    if figures.remaining_s is not None:
        left = [f"{duration(figures.remaining_s)} left"]
    choices = (
        [images, *rate, step, *left],
        [images, *rate_in_short, step, *left],
        [images, *rate_in_short, *left],
        [images, *left],
    )
    texts = (" · ".join(parts) for parts in choices)
    shortest = f"{figures.settled:,}/{figures.images:,}"
    return next((text for text in texts if len(text) <= room), shortest)


def plain_line(figures: Figures) -> str:
    """For logs: `12/40 images, 1.30 images/s, 620/2040 steps, 0:21 left`."""
    parts = [f"{figures.settled:,}/{counted(figures.images, 'image')}"]
    if figures.images_per_s is not None:
        parts.append(f"{figures.images_per_s:.2f} images/s")
    parts.append(f"{figures.evaluated:,}/{counted(figures.evaluations, 'step')}")
    if figures.remaining_s is not None:
        parts.append(f"{duration(figures.remaining_s)} left")
    if figures.rests is not None:
        parts.append(figures.rests)
    return ", ".join(parts)


def speed_text(figures: Figures) -> str:
    """`1.30 images/s, 0:21 left`."""
    parts = [] if figures.images_per_s is None else [f"{figures.images_per_s:.2f} images/s"]
    if figures.remaining_s is not None:
        parts.append(f"{duration(figures.remaining_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as `1:02:03`; under an hour as `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
