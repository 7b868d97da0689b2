"""A manifest that was read: all that is known of its job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.budget import Budget
from jobs.manifest.entries import Combination, EntryLogs, expand
from jobs.manifest.named_files import KnownFile
from jobs.manifest.output import Output
from jobs.manifest.sources import Source
from jobs.task import ModelPart, Reproducible, Task

if TYPE_CHECKING:
    from jobs.plan.expansion import Expansion


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read and found good.

    path: of the file. source: its bytes. models: in the order of work. inputs: name in the job's
    `inputs/` -> its source. input_names: the same -> what an image was called. matrix: as it is
    written, which gives the combinations. loras, embeddings, vaes: that prompts use, by name.
    named_in_texts: embeddings that prompts with syntax a1111 name. reproducible: None leaves it to
    the settings.
    """

    path: Path
    source: bytes
    name: str
    models: Sequence[ModelPart]
    output: Output
    inputs: Mapping[str, Source]
    input_names: Mapping[str, str]
    entries: EntryLogs
    combinations: Sequence[Combination]
    matrix: Mapping[str, Any] = field(default_factory=dict)
    loras: Mapping[str, KnownFile] = field(default_factory=dict)
    embeddings: Mapping[str, KnownFile] = field(default_factory=dict)
    vaes: Mapping[str, KnownFile] = field(default_factory=dict)
    named_in_texts: Mapping[str, KnownFile] = field(default_factory=dict)
    reproducible: Reproducible | None = None
    budget: Budget | None = None

    def tasks(self) -> Iterator[Task]:
        """Every image of the job in order: model by model, prompt by prompt, combination by
        combination, seed by seed. The same at every call.
        """
        first = 0
        for part in self.models:
            yield from expand(
                *(self.entries.of(part.name), self.combinations, self.name, self.output.format),
                *(self.loras, self.named_in_texts),
                first=first,
                model=part.name if len(self.models) > 1 else None,
            )
            first += part.images

    @property
    def model(self) -> str:
        """Names of all models, in one text."""
        return ", ".join(part.name for part in self.models)

    @property
    def total(self) -> int:
        """Images that `tasks` gives."""
        return sum(part.images for part in self.models)

    @cached_property
    def expansion(self) -> Expansion:
        """All tasks, expanded once; see `Expansion` for what is known of them then, and raised."""
        return self.expand(self.tasks())

    def expand(self, tasks: Iterable[Task], *, keep_parts: bool = True) -> Expansion:
        """An expansion of one's own, such as one without parts. tasks: those of `tasks`."""
        from jobs.plan.expansion import Expansion  # and numpy, which a mere check does without

        head: dict[str, Any] = {"name": self.name, "model": self.model}
        head["quality"] = self.output.quality
        if len(self.models) > 1:
            head["models"] = [[part.name, part.images] for part in self.models]
        return Expansion(tasks, self.total, head, keep_parts=keep_parts)

    @property
    def digest(self) -> str:
        """64 hex digits: the same for the same images under the same names, however written."""
        return self.expansion.digest

    def job_id(self) -> str:
        """`<name>-<12 hex digits>`: the job's folder."""
        return self.job_id_of(self.digest)

    def job_id_of(self, digest: str) -> str:
        """See `job_id`. digest: of the plan, which must be the manifest's."""
        return f"{self.name}-{digest[:12]}"
