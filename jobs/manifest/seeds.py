"""Seeds of a prompt, in the form that entries have: a list, or the first and how many."""

from __future__ import annotations

import secrets
from typing import Any

from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import Place, ProblemList
from sd_core.spec import SEED_LIMIT, Sampling

RANDOM = -1
"""Stands for a seed that is drawn when the job is planned."""

RANDOM_LIMIT = 2**32
"""Random seeds are below: more bits give no other noise of CPUs (`jobs.manifest.seed_warnings`)."""

Seeds = list[int] | tuple[int, int]


def take_seeds(
    values: dict[str, Any], place: Place, prefix: ValuePath, problems: ProblemList
) -> None:
    """Replace `seed` or `seeds` by the form that entries have."""
    path = (*prefix, "seeds")
    if "seed" in values and "seeds" in values:
        message = "seed and seeds are both given; take one of them out"
        problems.at(place, path, message, of_key=True)
    seeds = values.get("seeds")
    seed = values.pop("seed", None)
    if seeds is None or isinstance(seeds, int):
        values["seeds"] = [seed if seeds is None else seeds]
    elif isinstance(seeds, dict):
        start, count = seeds.get("start", Sampling.seed), seeds["count"]
        values["seeds"] = (start, count)
        if start != RANDOM and start + count > SEED_LIMIT:
            problems.at(place, path, f"the last seed is {start + count - 1}, over 2^64 - 1")
    elif len(set(seeds)) < len(seeds):
        seen: set[int] = set()
        for number, value in enumerate(seeds):
            if value in seen:
                message = f"seed {value} is in the list twice"
                problems.at(place, (*path, number), message)
            seen.add(value)


def random_in(seeds: Seeds) -> bool:
    """True for seeds in the form of entries that are still to be drawn."""
    return seeds[0] == RANDOM


def drawn(seeds: Seeds) -> Seeds:
    """Seeds in the form of entries, with what is random drawn."""
    if not random_in(seeds):
        return seeds
    first = secrets.randbelow(RANDOM_LIMIT)
    return [first] if isinstance(seeds, list) else (first, seeds[1])
