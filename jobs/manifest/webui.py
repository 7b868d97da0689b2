"""Lines of options in a prompt file, as AUTOMATIC1111's web UI reads them.

    --prompt "a blue star" --negative_prompt "blurry" --seed 5 --steps 20

What has an equivalent here is read as the keys of a prompt; what has none is a problem, for a
picture without it would be another one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.formatting import quote
from jobs.manifest.scalars import scalar
from sd_core.sampler_table import SAMPLER_TABLE, SCHEDULES, sampler_called

_OPTION_LINE = re.compile(r"\s*--[A-Za-z]")

_KEYS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "guidance",
    "width": "width",
    "height": "height",
    "sampler_name": "sampler",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
}
"""Option -> key of a prompt."""

_TEXTS = ("prompt", "negative_prompt")

_COUNTS = ("batch_size", "n_iter")
"""Options whose product is how many seeds follow each other."""

_SWITCHES = ("restore_faces", "tiling", "do_not_save_samples", "do_not_save_grid")
"""Options of true or false that have no equivalent, so only false can be read."""

_REFUSED = {
    "sd_model": "a job has one model, which is under model in the manifest",
    "outpath_samples": "where images go is under output in the manifest",
    "outpath_grids": "where images go is under output in the manifest",
    "prompt_for_display": "an image's record has the prompt that it was made from",
    "styles": "write their words into the prompt",
    "sampler_index": "give the sampler's name, with --sampler_name",
    "seed_resize_from_h": "take it out",
    "seed_resize_from_w": "take it out",
}
"""Option without an equivalent -> what to do about it."""

_READ = ", ".join(f"--{name}" for name in (*_KEYS, *_COUNTS))


@dataclass
class OptionLine:
    """A line of options that was read.

    values: keys of a prompt, as they are written: types are not checked. columns: where in the line
    the option of each key is, counted from 1. problems: (column, message) of what cannot be read.
    """

    values: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def is_option_line(text: str) -> bool:
    return _OPTION_LINE.match(text) is not None


def read_options(text: str) -> OptionLine:
    """Read a line for which `is_option_line` holds."""
    line = OptionLine()
    try:
        words = shlex.split(text.strip())  # of a form feed it would make a word
    except ValueError:
        message = "a quote is opened and not closed; a text with a quote in it goes in quotes"
        line.problems.append((1, message))
        return line
    options: dict[str, str | None] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            if name in options:
                line.problems.append((_column(text, name), f"--{name} is there twice"))
            options[name] = None
        elif (before := options[name]) is None:
            options[name] = word
        elif name in _TEXTS:  # these go on up to the next option
            options[name] = f"{before} {word}"
        else:
            message = f"{quote(word)} follows the value of --{name}; an option has one"
            line.problems.append((_column(text, name), message))
    for name, value in options.items():
        _take(name, value, text, line)
    _take_seeds(options, text, line)
    return line


def _take(name: str, value: str | None, text: str, line: OptionLine) -> None:
    """Read one option; the counts are left to `_take_seeds`."""
    key = _KEYS.get(name)
    column = _column(text, name)
    message = None
    if key is None and name not in _COUNTS:
        message = _why_not(name, value)
    elif value is None or (not value and name not in _TEXTS):
        message = f"--{name} has no value"
    elif key == "sampler":
        known = sampler_called(value)
        if known is None:
            names = ", ".join(sampler.webui for sampler in SAMPLER_TABLE.values())
            message = f"sampler {quote(value)} is not here; expected one of {names}"
        else:
            line.values["sampler"], schedule = known
            if schedule != SCHEDULES[0]:
                line.values["schedule"] = schedule
                line.columns["schedule"] = column
    elif key is not None:
        line.values[key] = value if name in _TEXTS else scalar(value)
    if key is not None:
        line.columns[key] = column
    if message is not None:
        line.problems.append((column, message))


def _why_not(name: str, value: str | None) -> str | None:
    """Why an option cannot be read; None if it changes nothing."""
    if name in _SWITCHES:
        if value is not None and value.lower() == "false":
            return None
        return f"--{name} has no equivalent here; take it out"
    if name in _REFUSED:
        return f"--{name} has no equivalent here; {_REFUSED[name]}"
    return f"unknown option {quote(f'--{name}')}; expected one of {_READ}"


def _take_seeds(options: Mapping[str, str | None], text: str, line: OptionLine) -> None:
    """Make one range of seeds of a seed and of how many images there are to be."""
    count = 1
    for name in _COUNTS:
        written = options.get(name)
        if not written:
            continue
        value = scalar(written)
        if type(value) is int and value >= 1:
            count *= value
        else:
            message = f"--{name}: found {quote(written)}, expected a whole number from 1 on"
            line.problems.append((_column(text, name), message))
    if count > 1:
        line.values["seeds"] = {"count": count}
        line.columns["seeds"] = _column(text, next(n for n in _COUNTS if n in options))
        if "seed" in line.values:
            line.values["seeds"]["start"] = line.values.pop("seed")


def _column(text: str, name: str) -> int:
    found = re.search(rf"(?<!\S)--{re.escape(name)}(?!\S)", text)
    return 1 if found is None else found.start() + 1
