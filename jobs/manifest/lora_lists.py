"""Lists of LoRA: those of a prompt, the sets of a matrix, and tags inside of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.manifest.lora_tags import split_tags
from jobs.manifest.loras import Use, lora_use
from jobs.manifest.named_files import NamedFiles
from jobs.manifest.problems import Path as ValuePath
from sd_core.spec import MOST_LORAS

Problem = Callable[[ValuePath, str], None]
"""Called with where, inside of the list, and with what is wrong."""


def uses_of(
    loras: NamedFiles, given: Sequence[Any], folder: Path, problem: Problem
) -> tuple[Use, ...]:
    """The LoRA of a list, without those that cannot be used. folder: of their paths."""
    uses = []
    for number, item in enumerate(given):
        try:
            uses.append(lora_use(loras, item, folder))
        except ValueError as error:
            problem((number,), str(error))
    return tuple(uses)


def sets_of(loras: NamedFiles, given: Any, folder: Path, problem: Problem) -> list[tuple[Use, ...]]:
    """The sets of a matrix: those that are listed, or one LoRA at several weights.

    given: of `jobs.manifest.schema.LoraAxis`.
    """
    if not isinstance(given, dict):
        sets = []
        for number, one in enumerate(given):
            listed = one if isinstance(one, list) else [one]
            sets.append(uses_of(loras, listed, folder, inside(number, problem)))
        return sets
    try:
        return [
            (lora_use(loras, {"name": given["name"], "weight": weight}, folder),)
            for weight in given["weights"]
        ]
    except ValueError as error:
        problem(("name",), str(error))
        return []


def tag_flaws(loras: NamedFiles, prompt: str, used: Sequence[Use]) -> tuple[str, list[str]]:
    """A prompt without its tags, and why these cannot be used. used: LoRA besides them."""
    try:
        text, tags = split_tags(prompt)
    except ValueError as error:
        return prompt, [str(error)]
    flaws = []
    for tag in tags:
        try:
            loras.find(tag.name)
        except ValueError as error:
            flaws.append(str(error))
    if len(used) + len(tags) > MOST_LORAS:
        flaws.append(f"{len(used) + len(tags)} LoRA are more than {MOST_LORAS}")
    return text, flaws


def inside(number: int, problem: Problem) -> Problem:
    """Takes the problems of an item of the list."""
    return lambda path, message: problem((number, *path), message)
