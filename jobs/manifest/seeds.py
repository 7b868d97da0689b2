"""Seeds of a prompt, in the form that entries have: a list, or the first and how many."""

from __future__ import annotations

from typing import Any

from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import Place, ProblemList
from sd_core.spec import SEED_LIMIT, Sampling


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
        if start + count > SEED_LIMIT:
            problems.at(place, path, f"the last seed is {start + count - 1}, over 2^64 - 1")
    elif len(set(seeds)) < len(seeds):
        seen: set[int] = set()
        for number, value in enumerate(seeds):
            if value in seen:
                message = f"seed {value} is in the list twice"
                problems.at(place, (*path, number), message)
            seen.add(value)
