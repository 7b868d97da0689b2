"""The spacing of steps that a prompt has, of `schedule`, `karras` and names such as DPM++ 2M Karras
in several places of a manifest.

All three are one thing. So the innermost place that says any of them decides, and in settings it is
`karras` or another `schedule`, as `Sampling` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sd_core.sampler_table import SCHEDULES

_DEFAULT = SCHEDULES[0]

Spacing = dict[str, Any]
"""Values of `karras` and `schedule`, and of `sampler` where that is known."""


def spacing_of(places: Iterable[Mapping[str, Any]]) -> Spacing:
    """The spacing that places come to, the outermost first, and the sampler without a schedule.

    What one place says against itself is left as it is, for `Sampling` to refuse.
    """
    found, sampler, named = _spaced(_DEFAULT), None, ""
    for values in places:
        says = values.keys() & {"karras", "schedule"}
        if "sampler" in values:
            sampler, _, named = values["sampler"].partition(" ")
            if says:
                sampler = values["sampler"]
        if not says:
            continue
        named = ""  # a schedule in a name counts until another place says one
        if "schedule" in values:
            found = _spaced(values["schedule"]) | ({"karras": True} if values.get("karras") else {})
        elif values["karras"] or found["karras"]:
            found = _spaced("karras" if values["karras"] else _DEFAULT)
    found = _spaced(named) if named else found
    return found if sampler is None else found | {"sampler": sampler}


def changed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a matrix, with all that they say of the spacing."""
    if "karras" in values and "schedule" in values:
        return dict(values)
    if "schedule" in values:
        return {**values, **_spaced(values["schedule"])}
    if values.get("karras"):
        return {**values, **_spaced("karras")}
    sampler, _, named = values.get("sampler", "").partition(" ")
    if named and "karras" not in values:
        return {**values, "sampler": sampler, **_spaced(named)}
    return dict(values)


def _spaced(schedule: str) -> Spacing:
    karras = schedule == "karras"
    return {"karras": karras, "schedule": _DEFAULT if karras else schedule}
