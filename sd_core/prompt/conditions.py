"""A prompt as the model is asked with it: what each row of the batch is told, step by step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sd_core.prompt.emphasis import Fragment, Section, parse_emphasis
from sd_core.prompt.errors import PromptError
from sd_core.prompt.scheduling import parse_schedule

MOST_PARTS = 8
"""Parts of a prompt that `AND` combines; each is a row of the batch."""

MOST_TEXTS = 64
"""Different texts that a prompt may go through."""

_AND = re.compile(r"\bAND\b")
_PART = re.compile(r"(?P<text>.*?)(?:\s*:\s*(?P<weight>[-+]?(?:\d+\.?|\d*\.\d+)))?\s*", re.DOTALL)


class PromptText(NamedTuple):
    """Text of a prompt, as the text encoder reads it at one time.

    sections: each begins a chunk of tokens. commas: a chunk rather ends at a comma. cut: nothing
    is read beyond the first chunk. emphasis: how weights count, of `sd_core.spec.EMPHASES`.
    clip_skip: the layer that is read, 1 being the last.
    """

    sections: tuple[Section, ...]
    commas: bool
    cut: bool
    emphasis: str
    clip_skip: int


class UntilStep(NamedTuple):
    """Text that holds up to a step, the first being 1."""

    step: int
    text: PromptText


class Condition(NamedTuple):
    """One row of the batch. texts: the last one holds up to the end. weight: of what the row is
    away from the negative prompt's (Liu et al. 2022, "Compositional Visual Generation").
    """

    texts: tuple[UntilStep, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts by these settings, which are those of `sd_core.spec.Sampling`."""

    syntax: str
    steps: int
    long_prompts: str
    emphasis: str
    clip_skip: int

    def negative(self, prompt: str) -> Condition:
        """The row of a negative prompt. Raises `PromptError`."""
        return Condition(self._texts(prompt, 0))

    def prompt(self, prompt: str) -> tuple[Condition, ...]:
        """The rows of a prompt, one for each part. Raises `PromptError`."""
        if self.syntax == "plain" or "AND" not in prompt:
            return (Condition(self._texts(prompt, 0)),)
        conditions = []
        for begin, part in _parts(prompt):
            match = _PART.fullmatch(part)
            assert match is not None  # it takes anything
            weight = 1.0 if match["weight"] is None else float(match["weight"])
            conditions.append(Condition(self._texts(match["text"], begin), weight))
        if len(conditions) > MOST_PARTS:
            message = f"{len(conditions)} parts are combined by AND; at most {MOST_PARTS} may be"
            raise PromptError(message, 0)
        return tuple(conditions)

    def _texts(self, prompt: str, begin: int) -> tuple[UntilStep, ...]:
        """begin: of this part in the whole prompt."""
        if self.syntax == "plain":
            return (UntilStep(self.steps, self._text(((Fragment(prompt),),))),)
        try:
            schedule = parse_schedule(prompt, self.steps)
            if len({one.text for one in schedule}) > MOST_TEXTS:
                message = f"the prompt goes through more than {MOST_TEXTS} different texts"
                raise PromptError(message, 0)
            read = {one.text: self._text(parse_emphasis(one.text)) for one in schedule}
        except PromptError as error:
            raise PromptError(str(error), begin + error.offset) from None
        return tuple(UntilStep(one.step, read[one.text]) for one in schedule)

    def _text(self, sections: tuple[Section, ...]) -> PromptText:
        plain = self.syntax == "plain"
        return PromptText(
            sections,
            commas=not plain,
            cut=self.long_prompts == "cut",
            emphasis="none" if plain else self.emphasis,
            clip_skip=self.clip_skip,
        )


def _parts(prompt: str) -> Iterator[tuple[int, str]]:
    """Each part between `AND`s, and where it begins."""
    begin = 0
    for found in _AND.finditer(prompt):
        yield begin, prompt[begin : found.start()]
        begin = found.end()
    yield begin, prompt[begin:]
