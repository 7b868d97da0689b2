"""`output` and `budget` of a manifest: where its images go, and how many there may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.budget import MOST_HOURS, MOST_MONEY
from jobs.manifest.file_forms import STRICT
from jobs.manifest.text_forms import NameTemplate, Path
from jobs.webhook import MAX_URL_CHARS

WebhookUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
    ),
]

Money = Annotated[float, Field(gt=0, le=MOST_MONEY, allow_inf_nan=False)]


@with_config(STRICT)
class OutputFields(TypedDict, total=False):
    """Where images go, and as what."""

    store: Annotated[
        Path,
        Field(
            description="A folder, or s3://bucket/prefix. The job gets a folder of its own in it.",
            examples=["out", "s3://bucket/prefix"],
        ),
    ]
    format: Annotated[
        Literal["png", "jpeg", "jpg", "webp"], Field(description="Image format. Default png.")
    ]
    quality: Annotated[
        int, Field(ge=1, le=100, description="Quality of jpeg and webp, 1 to 100. Default 95.")
    ]
    name: Annotated[
        NameTemplate,
        Field(
            description="Name of each image. {index}, {seed}, {steps}, {width}, {height} (with a "
            "width such as {index:06d}), {prompt}, {sampler}, {guidance}, {strength}, {model}, "
            "{name} (of the job) and {meta.…} (a label) are filled in; / makes a folder. Default "
            "{index:06d}-s{seed}.",
            examples=["{prompt}/{index:06d}-s{seed}"],
        ),
    ]
    webhook: Annotated[
        WebhookUrl,
        Field(
            description="An http:// or https:// URL that is told, with a POST, when the job is "
            "done or cancelled. For jobs that are submitted; a run tells nobody.",
            examples=["https://example.com/hook"],
        ),
    ]
    thumbnails: Annotated[
        bool,
        Field(
            description="Whether images of more than 320 pixels get a WebP of at most 12 kB beside "
            "them, for the gallery. Default true."
        ),
    ]
    dataset: Annotated[
        Literal["webdataset"],
        Field(
            description="Also write a data set into the job's folder: webdataset, tar files of "
            "10,000 images each in img2dataset's layout, with a table of each."
        ),
    ]


@with_config(STRICT)
class BudgetFields(TypedDict, total=False):
    """How much of the job is rendered before it rests. A larger budget lets it go on."""

    hours: Annotated[
        float,
        Field(gt=0, le=MOST_HOURS, allow_inf_nan=False, description="Of all workers together."),
    ]
    money: Annotated[Money, Field(description="For workers, at price an hour. Needs price.")]
    price: Annotated[Money, Field(description="Of a worker an hour, in whatever currency.")]
    images: Annotated[int, Field(ge=1, description="Images that are done.")]
