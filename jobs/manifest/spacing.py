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
"""Values of `karras` and `schedule`."""


def spacing_of(places: Iterable[Mapping[str, Any]]) -> Spacing:
    """The spacing that places come to, the outermost first, and their sampler.

    What one place says against itself is left as it is, for `Sampling` to refuse.
    """
    found = _spaced(_DEFAULT)
    before: Spacing | None = None  # what a sampler's name took the place of
    for values in places:
        if "sampler" in values:
            found, before = (found if before is None else before), None
            sampler, _, named = values["sampler"].partition(" ")
            if named and not values.keys() & {"karras", "schedule"}:
                found, before = _spaced(named), found
                found["sampler"] = sampler
            else:
                found["sampler"] = values["sampler"]
        stays = {"sampler": found["sampler"]} if "sampler" in found else {}
        if "schedule" in values:
            found = _spaced(values["schedule"]) | ({"karras": True} if values.get("karras") else {})
        elif values.get("karras"):
            found = _spaced("karras")
        elif "karras" in values and found["karras"]:
            found = _spaced(_DEFAULT)
        else:
            continue
        found, before = found | stays, None
    return found


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
