"""The manifest's format where it names files of weights: LoRA and how much of them, and places."""

from __future__ import annotations

from typing import Annotated, Required

from pydantic import ConfigDict, Discriminator, Field, Tag, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.limits import MAX_COMBINATIONS, MAX_PATH_CHARS
from sd_core.spec import MOST_LORA_WEIGHT, MOST_LORAS

STRICT = ConfigDict(extra="forbid", strict=True)

LoraText = Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)]
Weight = Annotated[float, Field(ge=-MOST_LORA_WEIGHT, le=MOST_LORA_WEIGHT, allow_inf_nan=False)]


@with_config(STRICT)
class LoraItem(TypedDict, total=False):
    """A LoRA and how much of it."""

    name: Required[
        Annotated[
            LoraText,
            Field(description="A name from loras or the model list, or a path.", examples=["ink"]),
        ]
    ]
    weight: Annotated[
        Weight,
        Field(description="How much of it: 1 is all, 0 nothing, less the opposite. Default 1."),
    ]
    text_weight: Annotated[
        Weight, Field(description="The same for the text encoder. Default the weight.")
    ]


def _item_form(value: object) -> str:
    return "(one)" if isinstance(value, str) else "(range)"


def _set_form(value: object) -> str:
    return "(list)" if isinstance(value, list) else _item_form(value)


def _axis_form(value: object) -> str:
    return "(range)" if isinstance(value, dict) else "(list)"


LoraEntry = Annotated[
    Annotated[LoraText, Tag("(one)")] | Annotated[LoraItem, Tag("(range)")],
    Discriminator(_item_form),
]
LoraList = Annotated[list[LoraEntry], Field(max_length=MOST_LORAS)]
LoraSet = Annotated[
    Annotated[LoraText, Tag("(one)")]
    | Annotated[LoraItem, Tag("(range)")]
    | Annotated[LoraList, Tag("(list)")],
    Discriminator(_set_form),
]


@with_config(STRICT)
class LoraWeights(TypedDict, total=False):
    """One LoRA at several weights."""

    name: Required[
        Annotated[LoraText, Field(description="A name from loras or the model list, or a path.")]
    ]
    weights: Required[
        Annotated[
            list[Weight],
            Field(min_length=1, max_length=MAX_COMBINATIONS, description="Its weights."),
        ]
    ]


LoraAxis = Annotated[
    Annotated[list[LoraSet], Field(min_length=1), Tag("(list)")]
    | Annotated[LoraWeights, Tag("(range)")],
    Discriminator(_axis_form),
]


_Path = Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)]


@with_config(STRICT)
class LoraFile(TypedDict, total=False):
    """Place of a LoRA or an embedding that a manifest gives a name to."""

    path: Annotated[
        _Path, Field(description="A path relative to the manifest, or s3://bucket/key.")
    ]
    sha256: Annotated[
        str,
        Field(
            pattern="^[0-9a-f]{64}$",
            description="Digest of the file. Without a path, workers have it in their model list.",
        ),
    ]


LoraFiles = dict[
    str,
    Annotated[
        Annotated[_Path, Tag("(one)")] | Annotated[LoraFile, Tag("(range)")],
        Discriminator(_item_form),
    ],
]
