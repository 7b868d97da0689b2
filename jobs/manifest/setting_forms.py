"""Settings of prompts, of rows of files, and of what all of them have (`defaults`)."""

from __future__ import annotations

from typing import Annotated, Literal, Required

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.image_settings import IMAGE_SETTINGS, PagLayers, PagScale, Seed, Share
from jobs.limits import MAX_IMAGES, MAX_LABELS
from jobs.manifest.file_forms import STRICT, LoraList, LoraText
from jobs.manifest.seeds import RANDOM
from jobs.manifest.text_forms import LabelName, LabelText, ModelName, NameTemplate, Path, Prompt
from sd_core.spec import MOST_EMBEDDINGS, SEED_LIMIT, Sampling


def _random_seed(value: object) -> object:
    return RANDOM if value == "random" else value


SeedOrRandom = Annotated[
    int,
    BeforeValidator(_random_seed),
    Field(ge=RANDOM, lt=SEED_LIMIT),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "exclusiveMaximum": SEED_LIMIT},
                {"enum": ["random", RANDOM]},
            ]
        }
    ),
]

Dynamic = Literal["none", "random", "combinatorial"]

NEGATIVE = "Negative prompt: what to steer away from. Default empty."


@with_config(STRICT)
class SeedRange(TypedDict, total=False):
    """Seeds start, start + 1, … as many as count."""

    start: Annotated[
        SeedOrRandom, Field(description=f"First seed, or random. Default {Sampling.seed}.")
    ]
    count: Required[
        Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many seeds.", examples=[8])]
    ]


def _seeds_form(value: object) -> str:
    return (
        "(range)" if isinstance(value, dict) else "(list)" if isinstance(value, list) else "(one)"
    )


Seeds = Annotated[
    Annotated[SeedOrRandom, Tag("(one)")]
    | Annotated[list[Seed], Field(min_length=1), Tag("(list)")]
    | Annotated[SeedRange, Tag("(range)")],
    Discriminator(_seeds_form),
]


@with_config(STRICT)
class Variation(TypedDict, total=False):
    """The same as variation_seed and variation_strength."""

    seed: Required[Annotated[Seed, Field(description="Seed of the noise that is mixed in.")]]
    strength: Required[Annotated[Share, Field(description="How far, 0 to 1.", examples=[0.2])]]


@with_config(STRICT)
class Pag(TypedDict, total=False):
    """The same as pag_scale and pag_layers."""

    scale: Required[Annotated[PagScale, Field(description="Scale, 0 to 100.", examples=[3])]]
    layers: Annotated[PagLayers, Field(description="Self-attentions.", examples=["mid"])]


_LORAS = (
    "LoRA to render with, added up: names, or mappings with weights. A name from loras at the top "
    "or from the model list, or a path relative to the file naming it. In a .csv file between "
    "spaces, as ink:0.8."
)


class _Seeds(TypedDict, total=False):
    """Settings that have a shape of their own."""

    negative: Annotated[Prompt, Field(description=NEGATIVE, examples=["blurry, lowres"])]
    seeds: Annotated[
        Seeds,
        Field(
            description="One image a seed: one seed, a list of seeds, or {start, count}. random, "
            "or -1, draws one for each prompt when the job is planned, so that every run is "
            "another job; plan and records have it. "
            f"Default {Sampling.seed}.",
            examples=[[1, 2, 3], {"start": 42, "count": 8}],
        ),
    ]
    seed: Annotated[
        SeedOrRandom, Field(description="The same as seeds, for one.", examples=[42, "random"])
    ]
    variation: Annotated[
        Variation, Field(description="variation_seed and variation_strength in one.")
    ]
    pag: Annotated[Pag, Field(description="pag_scale and pag_layers in one.")]
    loras: Annotated[
        LoraList,
        Field(description=_LORAS, examples=[["ink", {"name": "hollow", "weight": 0.5}]]),
    ]
    embeddings: Annotated[
        list[LoraText],
        Field(
            max_length=MOST_EMBEDDINGS,
            description="Embeddings (textual inversion) that the prompts name: where a name stands "
            "as a word, it is not read as text. Names from embeddings at the top or from the model "
            "list, or paths. With syntax a1111, prompts may have all of these names without it.",
            examples=[["easynegative"]],
        ),
    ]


_Image = TypedDict(  # type: ignore[misc]
    "_Image",
    {
        name: Annotated[setting.type, Field(description=setting.description)]
        for name, setting in IMAGE_SETTINGS.items()
    },
    total=False,
)


@with_config(STRICT)
class Settings(_Seeds, _Image, total=False):
    """Settings of defaults, prompts and rows. A prompt's own setting wins over the defaults."""

    init_image: Annotated[
        Path,
        Field(
            description="PNG, JPEG or WebP to start from (img2img), cropped about its centre to "
            "the aspect of width and height and resized. A path relative to the file naming it, or "
            "s3://bucket/key. A folder, or a pattern such as photos/*.png, is all of its pictures.",
            examples=["photos/ring.png", "photos/"],
        ),
    ]
    mask: Annotated[
        Path,
        Field(
            description="PNG, JPEG or WebP of the init image's size: white is drawn anew, black is "
            "kept (inpainting). Needs an init_image. Of a folder or a pattern, each init image has "
            "the mask whose file is called as its own.",
        ),
    ]
    meta: Annotated[
        dict[LabelName, LabelText],
        Field(
            max_length=MAX_LABELS,
            description="Labels: texts of your own, which are in the records and in the files of "
            "images. ${name} in a prompt, and {meta.name} in a name of images, stand for their "
            "values. In .csv and .jsonl files, columns meta.name.",
            examples=[{"sku": "A-100", "colour": "red"}],
        ),
    ]
    vae: Annotated[
        LoraText,
        Field(
            description="Autoencoder (VAE) that draws the picture instead of the model's own: a "
            "name from vaes at the top or from the model list, or a path. model stands for the "
            "model's own, which is the default.",
            examples=["mse-840000"],
        ),
    ]
    dynamic: Annotated[
        Dynamic,
        Field(
            description="Choices in prompts, such as {a|b}, {2$$a|b|c}, __wildcard__ and ${name}: "
            "random makes them for each seed, combinatorial renders all there are, none draws them "
            "as text. Default none.",
        ),
    ]


class PromptFields(Settings, total=False):
    """Settings of one prompt, and how its images are named."""

    name: Annotated[
        NameTemplate, Field(description="Name of this prompt's images, instead of output.name.")
    ]
    model: Annotated[
        ModelName,
        Field(
            description="Model of this prompt's images, instead of the manifest's. A job is "
            "rendered model by model."
        ),
    ]


class PromptEntry(PromptFields, total=False):
    """One prompt with settings of its own; also a row of a .csv or .jsonl file."""

    prompt: Required[
        Annotated[Prompt, Field(description="What to draw.", examples=["a green star"])]
    ]


class FileEntry(PromptFields, total=False):
    """Prompts from a file. Settings beside it are defaults for its rows."""

    file: Required[
        Annotated[
            Path,
            Field(
                description="A .txt file with one prompt a line, or options as the web UI reads "
                "them (--prompt …), or .csv or .jsonl with one prompt a row, whose columns are the "
                "keys of a prompt. A path relative to the manifest.",
                examples=["prompts.csv"],
            ),
        ]
    ]
