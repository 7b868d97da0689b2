"""Texts of a manifest: prompts, paths, names, and how long each may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jobs.limits import (
    MAX_LABEL_CHARS,
    MAX_MODEL_CHARS,
    MAX_PATH_CHARS,
    MAX_PROMPT_CHARS,
    MAX_TEMPLATE_CHARS,
)
from jobs.manifest.labels import NAME

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Path = Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)]
NameTemplate = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARS)]
ModelName = Annotated[
    str, Field(max_length=MAX_MODEL_CHARS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")
]

LabelName = Annotated[str, Field(pattern=f"^{NAME}$")]
LabelText = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
