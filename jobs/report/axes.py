"""Axes of a job: what its images differ in, and the values along it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import InputError
from jobs.formatting import quote, suggest
from jobs.image_settings import IMAGE_SETTINGS
from jobs.manifest.labels import PREFIX
from jobs.task import LoraUse, Task

MOST_VALUES = 200
"""Values along one axis; a longer one is no grid that anybody reads."""

Value = str | float | bool
"""Place of an image on an axis. Numbers are in their order, texts in that of the plan."""


@dataclass(frozen=True)
class Axis:
    """name: as people give it. values: in order."""

    name: str
    values: tuple[Value, ...]

    @property
    def labels(self) -> list[str]:
        """Texts of the values."""
        return [text_of(value) for value in self.values]


def text_of(value: Value) -> str:
    """A value as it stands beside a row or above a column."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _loras(uses: Sequence[LoraUse]) -> str:
    def one(use: LoraUse) -> str:
        text = "" if use.text_weight == use.weight else f":{use.text_weight:g}"
        plain = use.weight == use.text_weight == 1.0
        return use.name if plain else f"{use.name}:{use.weight:g}{text}"

    return " ".join(map(one, uses)) or "none"


_OF_TASKS: Mapping[str, Callable[[Task], Value]] = {
    "model": lambda task: task.model or "",
    "vae": lambda task: "model" if task.vae is None else task.vae.name,
    "loras": lambda task: _loras(task.loras),
    "init_image": lambda task: task.init_image or "none",
    "seed": lambda task: task.sampling.seed,
    "prompt": lambda task: task.prompt,
    "negative": lambda task: task.negative,
}

_SETTINGS = tuple(name for name in IMAGE_SETTINGS if name != "strength")

NAMES = (*_SETTINGS, "strength", *_OF_TASKS)
"""Axes that a job may have, beside its labels."""

_LAST = ("seed", "negative", "prompt")  # as an axis that nobody chose


def value_of(task: Task, axis: str) -> Value:
    """An image's value along an axis."""
    if axis.startswith(PREFIX):
        return dict(task.meta).get(axis.removeprefix(PREFIX), "")
    if axis == "strength":
        return "none" if task.init_image is None else task.sampling.strength
    if axis in _OF_TASKS:
        return _OF_TASKS[axis](task)
    value: Value = getattr(task.sampling, "spacing" if axis == "schedule" else axis)
    return value


def varying(tasks: Sequence[Task]) -> list[Axis]:
    """Axes along which these images differ."""
    labels = dict.fromkeys(f"{PREFIX}{name}" for task in tasks for name, _ in task.meta)
    found = []
    for name in (*NAMES, *labels):
        values = dict.fromkeys(value_of(task, name) for task in tasks)
        if len(values) > 1:
            found.append(Axis(name, _ordered(values)))
    return found


def _without_twin(axes: Sequence[Axis]) -> list[Axis]:
    """Leaves out one of `karras` and `schedule`, two names of one thing: what says less."""
    schedules = next((set(axis.values) for axis in axes if axis.name == "schedule"), set[Value]())
    twin = "schedule" if schedules == {"default", "karras"} else "karras"
    return [axis for axis in axes if not (schedules and axis.name == twin)]


def _ordered(values: Iterable[Value]) -> tuple[Value, ...]:
    """Numbers by their size; where there are texts, all as they came."""
    listed = tuple(values)
    numbers = [value for value in listed if not isinstance(value, str)]
    return tuple(sorted(numbers)) if len(numbers) == len(listed) else listed


def chosen(axes: Sequence[Axis], asked: Sequence[str | None]) -> list[Axis | None]:
    """The axes that were asked for, x, y and z; where none was, what suits the job.

    axes: of `varying`. Raises `InputError`.
    """
    known = {axis.name: axis for axis in axes}
    given = [name for name in asked if name is not None]
    for name in given:
        if name not in known:
            raise InputError(_unknown(name, list(known)))
        if len(known[name].values) > MOST_VALUES:
            count = len(known[name].values)
            raise InputError(f"{name} has {count:,} values; a grid has room for {MOST_VALUES}")
    if len(set(given)) < len(given):
        raise InputError("two axes are the same")
    if given:
        return [None if name is None else known[name] for name in asked]
    short = [axis for axis in _without_twin(axes) if len(axis.values) <= MOST_VALUES]
    short.sort(key=lambda axis: axis.name in _LAST)
    rest = [axis for axis in short if axis.name != "prompt"]
    rows = next((axis for axis in short if axis.name == "prompt"), None)
    x = rest.pop(0) if rest else None
    y = rows if rows is not None else rest.pop(0) if rest else None
    z = next((axis for axis in rest if axis.name not in _LAST), None)
    return [x, y, z]


def _unknown(name: str, known: Sequence[str]) -> str:
    differ = f"its images differ in {', '.join(known)}" if known else "its images differ in nothing"
    if name in NAMES or name.startswith(PREFIX):
        return f"{name} is the same in all images of the job; {differ}"
    close = suggest(name, known) or suggest(name, NAMES)
    hint = f"did you mean '{close}'?" if close else differ
    return f"{quote(name)} is no axis; {hint}"
