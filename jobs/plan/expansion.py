"""One pass over all tasks of a job: its cost, its digest, its shards and the parts of its plan.

A million tasks take some ten seconds to make, so code that needs them again takes them from here.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any

from jobs.errors import InputError
from jobs.formatting import reason
from jobs.plan.cost import CostFold, PlanSummary
from jobs.plan.part import PART_SIZE, dump, pack, unpacked
from jobs.plan.shards import ShardTable
from jobs.plan.task_line import read_task
from jobs.task import Task

IN_MEMORY_BYTES = 32 * 2**20
"""Bytes of compressed parts: a million ordinary prompts. More go to a temporary file."""


class Expansion:
    """Made of a job's tasks, which are taken one at a time, so memory does not grow with the job.

    cost: of all images.
    digest: 64 hex digits; the same for the same head, images and names.
    shards: where they end.
    """

    cost: PlanSummary
    digest: str
    shards: ShardTable

    def __init__(
        self,
        tasks: Iterable[Task],
        total: int,
        head: Mapping[str, Any],
        *,
        keep_parts: bool = True,
        part_size: int = PART_SIZE,
    ) -> None:
        """total: how many tasks there are. head: JSON values that the digest covers besides them.
        keep_parts: for `parts` and `tasks`, which a mere estimate does without.

        Raises `InputError` for prompts that are too long together for a plan, and where a temporary
        file cannot be written.
        """
        self._spool = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115
        weakref.finalize(self, self._spool.close)
        self._sizes: list[int] = []
        self._part_size = part_size
        cost, shards = CostFold(), ShardTable(total)
        digest = sha256(json.dumps(head, sort_keys=True).encode())
        source = iter(tasks)
        while part := list(islice(source, part_size)):
            for task in part:
                cost.add(task)
                shards.add(task)
                digest.update(f"\n{task.name}\n{task.canonical_json()}".encode())
                if task.meta:  # other labels are another job: records are not written again
                    digest.update(json.dumps(task.meta).encode())
            if keep_parts:
                self._keep(pack(dump(part), len(self._sizes)))
        self.cost, self.shards, self.digest = cost.summary(), shards, digest.hexdigest()

    def _keep(self, data: bytes) -> None:
        try:
            self._spool.write(data)
        except OSError as error:
            raise InputError(
                f"the plan of a large job needs a temporary file: {reason(error)}; TMPDIR names "
                "the folder for it"
            ) from None
        self._sizes.append(len(data))

    def parts(self) -> Iterator[bytes]:
        """The parts of the plan in order, as they are stored."""
        place = 0
        for size in self._sizes:
            self._spool.seek(place)  # every time: another reader may be at another place
            yield self._spool.read(size)
            place += size

    def tasks(self) -> Iterator[Task]:
        """The tasks again, read from the parts."""
        index = 0
        for data in self.parts():
            for line in unpacked(data, self._part_size):
                yield read_task(line, index)
                index += 1
