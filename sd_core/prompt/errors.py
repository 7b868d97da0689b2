"""The error of prompts that cannot be read."""

from __future__ import annotations


class PromptError(ValueError):
    """A prompt that breaks the rules of its syntax. offset: character where, from 0."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset
