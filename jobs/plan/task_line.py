"""Reading a line of a plan: text that anybody may have written, checked before it becomes a task.

The limits are those of the manifest, for anybody may have written the plan.
"""

from __future__ import annotations

from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic takes that of typing from 3.12 on
    cast,
)

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from jobs.formatting import shorten
from jobs.image_settings import TYPES
from jobs.limits import (
    MAX_FILE_NAME_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_MODEL_CHARS,
    MAX_PROMPT_CHARS,
)
from jobs.storage.base import MAX_KEY_BYTES, is_segment
from jobs.task import IMAGE_FORMATS, EmbeddingUse, LoraUse, Task, VaeUse, fits, input_digest
from sd_core.sampler_table import SAMPLERS
from sd_core.spec import ADDED_SETTINGS, MOST_EMBEDDINGS, MOST_LORA_WEIGHT, MOST_LORAS, Sampling

_MOST_FILES = MOST_LORAS + MOST_EMBEDDINGS + 1

_LABEL_CHARS = MAX_LABELS * (MAX_LABEL_CHARS + 40)

MAX_LINE_BYTES = (
    12 * (3 * MAX_PROMPT_CHARS + _MOST_FILES * MAX_FILE_NAME_CHARS + _LABEL_CHARS) + 2**16
)
"""Bytes of one task: three prompts, the names of files and labels, of characters that JSON escapes
in 12 bytes each, and all the rest.
"""

_SUFFIX = "-0123456789abcdef.webp"  # what an image's name is at most followed by


def _image_name(name: str) -> str:
    parts = name.split("/")
    if len(name) > MAX_KEY_BYTES or not all(map(is_segment, (*parts, parts[-1] + _SUFFIX))):
        raise ValueError(f"{name!r:.80} is no name of an image")
    return name


def _input_name(name: str) -> str:
    input_digest(name)
    return name


_Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
_InputName = Annotated[str, AfterValidator(_input_name)]


_LabelName = Annotated[str, Field(min_length=1, max_length=40)]
_Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
_FileName = Annotated[str, Field(min_length=1, max_length=MAX_FILE_NAME_CHARS)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Weight = Annotated[float, Field(ge=-MOST_LORA_WEIGHT, le=MOST_LORA_WEIGHT)]


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class _Lora(TypedDict):
    name: _FileName
    sha256: _Sha256
    weight: _Weight
    text_weight: _Weight
    file: NotRequired[_InputName]


@with_config(ConfigDict(strict=True, extra="forbid"))
class _File(TypedDict):
    name: _FileName
    sha256: _Sha256
    file: NotRequired[_InputName]


# What has its default is left out of a line, see `Task.to_json`.
_Added = TypedDict(  # type: ignore[misc]
    "_Added", {name: NotRequired[TYPES[name]] for name in ADDED_SETTINGS}
)


@with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class _Line(_Added):
    """Ranges that depend on nothing else are in `Sampling`."""

    index: int
    name: Annotated[str, AfterValidator(_image_name)]
    prompt: _Prompt
    negative: _Prompt
    sampler: Literal[SAMPLERS]  # type: ignore[valid-type]
    steps: int
    guidance: float
    width: int
    height: int
    seed: int
    strength: float | None
    eta: float
    karras: bool
    init_image: _InputName | None
    mask: _InputName | None
    format: Literal[IMAGE_FORMATS]  # type: ignore[valid-type]
    template: NotRequired[_Prompt]
    loras: NotRequired[Annotated[list[_Lora], Field(max_length=MOST_LORAS)]]
    embeddings: NotRequired[Annotated[list[_File], Field(max_length=MOST_EMBEDDINGS)]]
    vae: NotRequired[_File]
    model: NotRequired[Annotated[str, Field(max_length=MAX_MODEL_CHARS)]]
    meta: NotRequired[Annotated[dict[_LabelName, _Label], Field(max_length=MAX_LABELS)]]


_LINE: TypeAdapter[_Line] = TypeAdapter(_Line)


def read_task(line: bytes, index: int) -> Task:
    """The task of one line of a plan: the inverse of `Task.to_json`.

    index: of the image whose line it must be. Raises `ValueError` with what is wrong, and where.

    A field that is not known is refused: a plan says nothing but what a picture is made of, and
    what has its default is left out of it when it is new. So a worker that does not know a field
    would make another picture than was asked for; one that does is to render it.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"image {index}: longer than {MAX_LINE_BYTES:,} bytes")
    try:
        values = _LINE.validate_json(line)
        if values["index"] != index:
            raise ValueError("its index is that of another place in the plan")
        return _task(values)
    except ValidationError as error:
        flaw = _first(error)
    except ValueError as error:
        flaw = str(error)
    raise ValueError(f"image {index}: {flaw[:200]}")


def _task(values: _Line) -> Task:
    if values["mask"] is not None and values["init_image"] is None:
        raise ValueError("a mask without an init_image")
    loras = tuple(LoraUse(**lora) for lora in values.get("loras", ()))
    embeddings = tuple(EmbeddingUse(**one) for one in values.get("embeddings", ()))
    vae = VaeUse(**values["vae"]) if "vae" in values else None
    uses: list[LoraUse | EmbeddingUse | VaeUse] = [*loras, *embeddings]
    if vae is not None:
        uses.append(vae)
    for use in uses:
        if use.file is not None and input_digest(use.file) != use.sha256:
            raise ValueError(f"the file of {use.name!r:.80} has another name than its sha256")
    strength, given = values["strength"], cast(dict[str, Any], values)
    added = {name: given.get(name, default) for name, default in ADDED_SETTINGS.items()}
    plain = added["syntax"] == "plain" and not embeddings
    if plain and fits(values["prompt"], values["negative"], values["guidance"]):
        added["long_prompts"] = given.get("long_prompts", Sampling.long_prompts)
    return Task(
        index=values["index"],
        name=values["name"],
        prompt=values["prompt"],
        negative=values["negative"],
        sampling=Sampling(
            sampler=values["sampler"],
            steps=values["steps"],
            guidance=values["guidance"],
            width=values["width"],
            height=values["height"],
            seed=values["seed"],
            strength=Sampling.strength if strength is None else strength,
            eta=values["eta"],
            karras=values["karras"],
            **added,
        ),
        init_image=values["init_image"],
        mask=values["mask"],
        format=values["format"],
        template=values.get("template"),
        loras=loras,
        embeddings=embeddings,
        vae=vae,
        model=values.get("model"),
        meta=tuple(values.get("meta", {}).items()),
    )


def _first(error: ValidationError) -> str:
    """The first flaw, in a few words."""
    flaw = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(shorten(str(part)) for part in flaw["loc"])
    if flaw["type"] == "extra_forbidden":
        return (
            f"{place} is not known here: the job was submitted by a newer version, and takes "
            "workers of that"
        )
    return f"{place}: {flaw['msg']}" if place else flaw["msg"]
