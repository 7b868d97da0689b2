"""`inputs.json`: what init images and masks were called where they came from, for records.

{"<sha256>.png": "ring.png", …}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from jobs.errors import DamagedError, NotFoundError
from jobs.folder.layout import JobFolder
from jobs.limits import MAX_PATH_CHARS

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20

_NAMES: TypeAdapter[dict[str, str]] = TypeAdapter(
    dict[
        Annotated[str, Field(max_length=100)],
        Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)],
    ],
    config=ConfigDict(strict=True),
)


def write_input_names(folder: JobFolder, names: Mapping[str, str]) -> None:
    """Replaces an earlier one. Raises `StoreError`."""
    if names:
        data = json.dumps(dict(names), indent=0).encode() + b"\n"
        folder.put(folder.keys.input_names, data, overwrite=True)


def read_input_names(folder: JobFolder) -> dict[str, str]:
    """By what they are called in `inputs/`; none where the file is missing or damaged, for no image
    depends on it. Raises `StoreError` if the store cannot be read.
    """
    try:
        return _NAMES.validate_json(folder.get(folder.keys.input_names, limit_bytes=MAX_BYTES))
    except NotFoundError:
        return {}
    except (DamagedError, ValidationError) as error:
        log.warning(
            "%s: names of inputs are left out: %s", folder.url_of(folder.keys.input_names), error
        )
        return {}
