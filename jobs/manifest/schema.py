"""The manifest's format, version 1: what each key is, what it may be, and its JSON Schema.

Types are strict and unknown keys are refused. A text may also be written as a plain number or
true/false, which is then taken as it is written; the reader sees to that, so here it is a `str`.
What depends on more than one value (karras with plms, a mask without an init image) is checked in
`jobs.manifest.resolve`.
"""

from __future__ import annotations

from typing import Annotated, Any, Required

from pydantic import Field, TypeAdapter, with_config
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.manifest.file_forms import STRICT, LoraFiles, LoraItem
from jobs.manifest.matrix_forms import Matrix
from jobs.manifest.output_forms import BudgetFields, OutputFields
from jobs.manifest.setting_forms import FileEntry, Pag, PromptEntry, SeedRange, Settings, Variation
from jobs.manifest.text_forms import ModelName, Path, Prompt
from jobs.task import Reproducible

JobName = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

Version = Annotated[int, Field(ge=1, le=1, json_schema_extra={"const": 1})]  # Literal takes true


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
