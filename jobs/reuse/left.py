"""Counts what is left of a plan once the pictures of earlier jobs are taken, model by model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from jobs.plan.cost import CostFold, PlanSummary
from jobs.reuse.earlier import EarlierPictures
from jobs.task import ModelPart, Task, spec_digest


class LeftToRender:
    """Adds up tasks that no earlier job of the store has made.

    A plan knows no weights, only names of models: a picture counts as made if a model of the task's
    name drew it in an earlier job. Whether labels and quality are the same, a worker looks.
    earlier: None where the store is not known. made: how many tasks have been.
    """

    def __init__(self, earlier: EarlierPictures | None, models: Sequence[ModelPart]) -> None:
        names = [part.name for part in models]
        self._earlier = earlier
        self._digests = {
            name: set[str]() if earlier is None else earlier.digests_of(name) for name in names
        }
        self._only = names[0]  # which tasks of a job of one model do not name
        self._costs = {name: CostFold() for name in names}
        self.made = 0

    def watch(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The same tasks, counted as they pass."""
        for task in tasks:
            model = task.model or self._only
            if self._is_made(task, self._digests[model]):
                self.made += 1
            else:
                self._costs[model].add(task)
            yield task

    def costs(self) -> Mapping[str, PlanSummary]:
        """The cost of those that are left, by their models."""
        return {name: cost.summary() for name, cost in self._costs.items()}

    def _is_made(self, task: Task, digests: Iterable[str]) -> bool:
        earlier = self._earlier
        return earlier is not None and any(
            any(True for _ in earlier.find(spec_digest(task, digest))) for digest in digests
        )
