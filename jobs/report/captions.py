"""Captions of pictures: the settings that were swept, each with an image's own value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from jobs.folder.records import Record
from jobs.image_settings import IMAGE_SETTINGS
from jobs.manifest.labels import PREFIX
from jobs.report.fields import Value, index_row

_SETTINGS = tuple(name for name in IMAGE_SETTINGS if name not in ("width", "height"))

_FIELDS = (
    *(*_SETTINGS, "loras", "embeddings", "vae", "init_image_name", "mask_name"),
    *("model", "size"),
)

_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("sampler", "init_image_name", "model", "size"), ""),
    "loras": "LoRA",
    "vae": "VAE",
    "mask_name": "mask",
}
"""Names of fields in captions that are not their own; none where values say what they are."""

SEPARATOR = " · "


def swept_fields(records: Sequence[Record]) -> list[str]:
    """Fields in which these images differ, but for prompts and seeds, in the order of the page."""
    rows = list(map(index_row, records))
    labels = dict.fromkeys(name for row in rows for name in row if name.startswith(PREFIX))
    return [
        field for field in (*_FIELDS, *labels) if len({_known(row.get(field)) for row in rows}) > 1
    ]


def _known(value: Value | None) -> tuple[bool, Value | None]:
    return isinstance(value, bool), value  # True is 1 to a set, but not to a reader


def swept_values(record: Record, fields: Sequence[str]) -> list[str]:
    """An image's values of these fields, such as `steps 25`; nothing for those it has none of."""
    row = index_row(record)
    told = (_told(field, row[field]) for field in fields if field in row)
    return [text for text in told if text]


def _told(field: str, value: Value) -> str:
    """A value with its name; nothing for one that is off or empty."""
    name = _NAMES.get(field, field.removeprefix(PREFIX).replace("_", " "))
    if isinstance(value, bool):
        return name if value else ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if field == "size":
        text = text.replace("×", "x")  # which not every font has
    return f"{name} {text}".strip() if text else ""


def lines_within(
    facts: Sequence[str], room: float, most: int, length: Callable[[str], float]
) -> list[str]:
    """Facts as lines that fit into a room, at most so many; an ellipsis says that there is more.

    length: of a text, in the room's unit.
    """
    lines: list[str] = []
    for fact in facts:
        joined = f"{lines[-1]}{SEPARATOR}{fact}" if lines else fact
        if lines and length(joined) <= room:
            lines[-1] = joined
        elif len(lines) < most:
            lines.append(_cut(fact, room, length))
        else:
            lines[-1] = _cut(f"{joined}…", room, length)
            break
    return lines


def _cut(text: str, room: float, length: Callable[[str], float]) -> str:
    if length(text) <= room:
        return text
    kept = text.rstrip("…")
    while kept and length(f"{kept}…") > room:
        kept = kept[:-1]
    return f"{kept.rstrip(SEPARATOR)}…"
