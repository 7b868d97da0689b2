"""Counts what is left of a plan once the pictures of earlier jobs are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from jobs.plan.cost import CostFold, PlanSummary
from jobs.reuse.earlier import EarlierPictures
from jobs.task import ModelPart, Task, spec_digest


class LeftToRender:
    """Adds up tasks that no earlier job of the store has made.

    A plan knows no weights, only names of models: a picture counts as made if a model of the task's
    name drew it in an earlier job. Whether labels and quality are the same, a worker looks.
    made: how many tasks have been.
    """

    def __init__(self, earlier: EarlierPictures, models: Sequence[ModelPart]) -> None:
        self._earlier = earlier
        self._digests = {part.name: earlier.digests_of(part.name) for part in models}
        self._only = models[0].name  # which tasks of a job of one model do not name
        self._cost = CostFold()
        self.made = 0

    def watch(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The same tasks, counted as they pass."""
        if not any(self._digests.values()):  # a million tasks take their time
            yield from tasks
            return
        for task in tasks:
            if self._is_made(task):
                self.made += 1
            else:
                self._cost.add(task)
            yield task

    def cost(self, whole: PlanSummary) -> PlanSummary:
        """The cost of those that are left. whole: that of all."""
        return self._cost.summary() if self.made else whole

    def _is_made(self, task: Task) -> bool:
        digests = self._digests[task.model or self._only]
        return any(
            any(True for _ in self._earlier.find(spec_digest(task, digest))) for digest in digests
        )
