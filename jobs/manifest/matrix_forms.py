"""A `matrix`: lists of values that every prompt is rendered with."""

from __future__ import annotations

from typing import Annotated, Required

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.image_settings import IMAGE_SETTINGS
from jobs.limits import MAX_MODELS
from jobs.manifest.file_forms import STRICT, LoraAxis, LoraText
from jobs.manifest.setting_forms import NEGATIVE, Seeds
from jobs.manifest.text_forms import ModelName, Prompt

_ImageLists = TypedDict(  # type: ignore[misc]
    "_ImageLists",
    {
        name: Annotated[
            list[setting.type],  # type: ignore[name-defined]
            Field(min_length=1, description=setting.description),
        ]
        for name, setting in IMAGE_SETTINGS.items()
    },
    total=False,
)


Replacement = TypedDict(  # by this form, as `from` is a word of Python
    "Replacement",
    {
        "from": Required[
            Annotated[Prompt, Field(min_length=1, description="A text in every prompt.")]
        ],
        "to": Required[
            Annotated[list[Prompt], Field(min_length=1, description="Texts to put there.")]
        ],
    },
)
Replacement.__pydantic_config__ = STRICT  # type: ignore[attr-defined]


class _TextAxes(TypedDict, total=False):
    model: Annotated[
        list[ModelName],
        Field(
            min_length=1,
            max_length=MAX_MODELS,
            description="Models of all prompts. A job is rendered model by model.",
            examples=[["sd-v1-4", "sd-v1-5"]],
        ),
    ]
    negative: Annotated[list[Prompt], Field(min_length=1, description=NEGATIVE)]
    seeds: Annotated[
        Seeds, Field(description="Seeds of all prompts, instead of their own.", examples=[[1, 2]])
    ]
    prompt: Annotated[
        Replacement,
        Field(
            description="A text that is replaced in every prompt, by each of several.",
            examples=[{"from": "red", "to": ["red", "blue"]}],
        ),
    ]
    loras: Annotated[
        LoraAxis,
        Field(
            description="Sets of LoRA, instead of those that prompts list; or one LoRA and a list "
            "of weights.",
            examples=[[[], ["ink"]], {"name": "ink", "weights": [0, 0.5, 1]}],
        ),
    ]
    vae: Annotated[
        list[LoraText],
        Field(
            min_length=1,
            description="VAEs, as a prompt names one.",
            examples=[["model", "mse-840000"]],
        ),
    ]


@with_config(STRICT)
class Matrix(_TextAxes, _ImageLists, total=False):
    """Lists of values; every prompt is rendered with every combination.

    The matrix wins over what a prompt and the defaults set, so all prompts have the same ones.
    """
