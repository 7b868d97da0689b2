"""Mappings of a prompt that stand for several settings: `variation` and `pag`."""

from __future__ import annotations

from typing import Any

from jobs.manifest.problems import Path as ValuePath
from jobs.manifest.problems import Place, ProblemList

_GROUPS = {"variation": ("seed", "strength"), "pag": ("scale", "layers")}


def take_groups(
    values: dict[str, Any], place: Place, prefix: ValuePath, problems: ProblemList
) -> None:
    """Replace each mapping by the settings that it stands for: `pag.scale` is `pag_scale`."""
    for group, names in _GROUPS.items():
        given = values.pop(group, None)
        if given is None:
            continue
        for name in names:
            if name not in given:
                continue
            key = f"{group}_{name}"
            if key in values:
                message = f"{group} and {key} are both given; take one of them out"
                problems.at(place, (*prefix, group), message, of_key=True)
            values[key] = given[name]
