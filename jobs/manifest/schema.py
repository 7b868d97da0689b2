"""The manifest's format, version 1: what each key is, what it may be, and its JSON Schema.

Types are strict and unknown keys are refused. A text may also be written as a plain number or
true/false, which is then taken as it is written; the reader sees to that, so here it is a `str`.
What depends on more than one value (karras with plms, a mask without an init image) is checked in
`jobs.manifest.resolve`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    WithJsonSchema,
    with_config,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.budget import MOST_HOURS, MOST_MONEY
from jobs.image_settings import IMAGE_SETTINGS, PagLayers, PagScale, Seed, Share
from jobs.limits import (
    MAX_IMAGES,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_MODEL_CHARS,
    MAX_MODELS,
    MAX_PATH_CHARS,
    MAX_PROMPT_CHARS,
    MAX_TEMPLATE_CHARS,
)
from jobs.manifest.file_forms import STRICT, LoraAxis, LoraFiles, LoraItem, LoraList, LoraText
from jobs.manifest.labels import NAME
from jobs.manifest.seeds import RANDOM
from jobs.task import Reproducible
from jobs.webhook import MAX_URL_CHARS
from sd_core.spec import MOST_EMBEDDINGS, SEED_LIMIT, Sampling

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Path = Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)]
NameTemplate = Annotated[str, Field(min_length=1, max_length=MAX_TEMPLATE_CHARS)]
JobName = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
WebhookUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        json_schema_extra={"format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
    ),
]
ModelName = Annotated[
    str, Field(max_length=MAX_MODEL_CHARS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")
]

LabelName = Annotated[str, Field(pattern=f"^{NAME}$")]
LabelText = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]

Version = Annotated[int, Field(ge=1, le=1, json_schema_extra={"const": 1})]  # Literal takes true


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

_NEGATIVE = "Negative prompt: what to steer away from. Default empty."


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

    negative: Annotated[Prompt, Field(description=_NEGATIVE, examples=["blurry, lowres"])]
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
    negative: Annotated[list[Prompt], Field(min_length=1, description=_NEGATIVE)]
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


Money = Annotated[float, Field(gt=0, le=MOST_MONEY, allow_inf_nan=False)]


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


@with_config(STRICT)
class Head(TypedDict, total=False):
    """A batch of images to render: prompts, their settings, and where the images go."""

    version: Required[Annotated[Version, Field(description="Version of this format: 1.")]]
    name: Annotated[
        JobName,
        Field(description="Name of the job. Default the file's name.", examples=["shapes"]),
    ]
    model: Annotated[
        ModelName,
        Field(description="A name from the model list, or demo. Default demo.", examples=["demo"]),
    ]
    reproducible: Annotated[
        Reproducible,
        Field(
            description="exact: the same bytes whatever else is rendered beside an image, on every "
            "worker of the same kind. fast: the quickest batches, and pictures that look the same. "
            "Default exact, or what SDBATCH_REPRODUCIBLE says."
        ),
    ]
    defaults: Annotated[Settings, Field(description="Settings of all prompts.")]
    matrix: Annotated[Matrix, Field(description="Every prompt with every combination of these.")]
    output: Annotated[OutputFields, Field(description="Where images go, and as what.")]
    wildcards: Annotated[
        Path,
        Field(
            description="Folder of wildcard files: a .txt with a value a line, or YAML with lists. "
            "A path relative to the manifest.",
            examples=["wildcards"],
        ),
    ]
    budget: Annotated[
        BudgetFields,
        Field(
            description="How much is rendered before the job rests, paused by its budget; what is "
            "in the middle then is finished. Submitted again with a larger one, it goes on.",
            examples=[{"hours": 8, "images": 5000}, {"money": 20, "price": 1.1}],
        ),
    ]
    loras: Annotated[
        LoraFiles,
        Field(
            description="Names for LoRA of this manifest: name to path, relative to the manifest. "
            "They go with the job.",
            examples=[{"ink": "loras/ink.safetensors"}],
        ),
    ]
    embeddings: Annotated[
        LoraFiles,
        Field(description="Names for embeddings of this manifest, as loras has them."),
    ]
    vaes: Annotated[
        LoraFiles, Field(description="Names for VAEs of this manifest, as loras has them.")
    ]


class ManifestFile(Head, total=False):
    """A batch of images to render: prompts, their settings, and where the images go."""

    prompts: Required[
        Annotated[
            list[Prompt | PromptEntry | FileEntry],
            Field(min_length=1, description="What to draw: texts, or mappings with settings."),
        ]
    ]


HEAD: TypeAdapter[Any] = TypeAdapter(Head)
PROMPT: TypeAdapter[Any] = TypeAdapter(PromptEntry)
FILE: TypeAdapter[Any] = TypeAdapter(FileEntry)


class _JsonSchema(GenerateJsonSchema):
    """Lets texts be plain numbers and booleans, as the reader does."""

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        return super().str_schema(schema) | {"type": ["string", "number", "boolean"]}


def json_schema() -> dict[str, Any]:
    """The format as JSON Schema (draft 2020-12), for editors."""
    schema = TypeAdapter(ManifestFile).json_schema(schema_generator=_JsonSchema)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **schema,
        "title": "sdbatch manifest, version 1",
        "examples": [EXAMPLE],
    }


EXAMPLE: dict[str, Any] = {
    "version": 1,
    "name": "shapes",
    "model": "demo",
    "defaults": {"steps": 30},
    "prompts": [
        "a red circle on a blue background",
        {"prompt": "a green star", "seeds": [1, 2, 3]},
        {"file": "prompts.csv"},
    ],
    "matrix": {"guidance": [5, 7.5]},
    "output": {"store": "out", "format": "png"},
}

TEXT_KEYS = frozenset(
    (
        *(
            "name",
            "model",
            "reproducible",
            "negative",
            "sampler",
            "init_image",
            "mask",
            "prompt",
            "file",
        ),
        *("store", "webhook", "dynamic", "wildcards", "from", "to"),
        *("loras", "embeddings", "vae", "vaes", "path", "sha256"),
    )
)
"""Keys whose plain numbers and booleans are taken as the text they are written as."""

TEXT_MAPPINGS = frozenset(("meta",))
"""Keys of mappings all of whose values are taken so."""

KEYS: dict[str, tuple[str, ...]] = {
    "defaults": tuple(Settings.__annotations__),
    "matrix": tuple(Matrix.__annotations__),
    "output": tuple(OutputFields.__annotations__),
    "seeds": tuple(SeedRange.__annotations__),
    "loras": tuple(LoraItem.__annotations__),
    "variation": tuple(Variation.__annotations__),
    "pag": tuple(Pag.__annotations__),
}
"""The keys of each mapping inside a manifest, a prompt or a row."""

TOP_KEYS = tuple(ManifestFile.__annotations__)
PROMPT_KEYS = tuple(PromptEntry.__annotations__)
FILE_KEYS = tuple(FileEntry.__annotations__)
