"""Text as it is found in files: what characters are let in, and what a plain scalar means."""

from __future__ import annotations

import codecs
import re

from jobs.manifest.problems import ProblemList

Scalar = str | int | float | bool | None

# What YAML 1.2 calls printable; also keeps control characters out of prompts and file names.
_UNREADABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CHUNK_BYTES = 2**20

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Longer integers are read as (infinite) floats: int() is slow for them and refuses thousands of
# digits.
_INT = re.compile(r"[-+]?[0-9]{1,400}|0x[0-9a-fA-F]{1,300}|0o[0-7]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def scalar(text: str) -> Scalar:
    """The value of a plain (unquoted) scalar by YAML 1.2's core schema.

    So `no`, `1:30`, `1_000` and `2024-01-01` are texts, as they look.
    """
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "0123456789+-.":  # most texts end here
        return text
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def unreadable(text: str) -> str | None:
    """The first character that no text here may hold, as `U+0007`; None if there is none."""
    bad = _UNREADABLE.search(text)
    return f"U+{ord(bad[0]):04X}" if bad else None


def check_text(source: bytes, file: str, problems: ProblemList) -> None:
    """Raise `ManifestError` at the first byte that is not UTF-8 or character that is not allowed.

    Done in pieces: the whole text decoded would take up to four times the file's size.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, column = 1, 1
    for start in range(0, len(source), _CHUNK_BYTES):
        end = start + _CHUNK_BYTES
        message = None
        try:
            text = decoder.decode(source[start:end], final=end >= len(source))
        except UnicodeDecodeError as error:
            # error.object also holds the begun character at the end of the piece before.
            text = error.object[: error.start].decode("utf-8")
            message = not_utf8(error)
        bad = _UNREADABLE.search(text, 1 if start == 0 and text.startswith("\ufeff") else 0)
        if bad:
            text = text[: bad.start()]
            message = f"character U+{ord(bad[0]):04X} is not allowed"
        newlines = text.count("\n")
        line += newlines
        column = len(text) - text.rfind("\n") if newlines else column + len(text)
        if message is not None:
            problems.fatal(file, line, column, "", message)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Message about a file in another encoding."""
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
