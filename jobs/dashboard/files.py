"""The page's own files: read once, from the package alone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.responses import Response

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """One file as it is served."""

    data: bytes
    media_type: str
    tag: str

    def response(self) -> Response:
        headers = {"content-type": self.media_type, "cache-control": "no-cache", "etag": self.tag}
        return Response(self.data, headers=headers)


@functools.cache
def page_files() -> Mapping[str, PageFile]:
    """All of them, by name."""
    found = {}
    for entry in (resources.files("jobs.dashboard") / "static").iterdir():
        suffix = entry.name.rpartition(".")[2]
        if suffix in _MEDIA_TYPES:
            data = entry.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            found[entry.name] = PageFile(data, _MEDIA_TYPES[suffix], tag)
    return found
