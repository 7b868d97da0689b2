"""Where the files of our images keep their record: a PNG in a text chunk, others in XMP."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.sax.saxutils import escape, unescape

from jobs.pictures.rules import PictureError, opened

RECORD_CHUNK = "sdbatch"
"""Keyword of the iTXt chunk of a PNG."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:sdbatch="urn:sdbatch">'
    "<sdbatch:record>{record}</sdbatch:record>"
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)
_XMP_RECORD = re.compile(rb"<sdbatch:record>(.*?)</sdbatch:record>", re.DOTALL)


def xmp_of(record: str) -> bytes:
    """An XMP packet with a record, which is JSON in ASCII."""
    return _XMP.format(record=escape(record)).encode()


def read_record(data: bytes) -> dict[str, Any]:
    """The full record in an image file of ours. Raises `ValueError` if there is none."""
    try:
        with opened(data) as image:
            info = image.info
    except PictureError as error:
        raise ValueError(f"no readable image: it {error}") from error
    text = info.get(RECORD_CHUNK)
    if text is None:
        match = _XMP_RECORD.search(info.get("xmp", b""))
        text = unescape(match[1].decode()) if match else None
    if text is None:
        raise ValueError("the image holds no record of sdbatch")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError("the image's record is damaged")
    return record
