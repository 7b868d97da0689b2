"""Docstrings open with a verb or a concrete noun, and say things in plain words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for package in ("jobs", "sd_core", "worker") for path in (ROOT / package).rglob("*.py")
)

OPENINGS = re.compile(r"(What|Whether|Of|As|And)\b")
WORDS = re.compile(r"\b(anew|theirs|whoever)\b", re.IGNORECASE)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text, also of the strings below assignments; not those that a command shows."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list) or is_command(node):
            continue
        for before, this in zip([None, *body], body, strict=False):
            if not (isinstance(this, ast.Expr) and isinstance(this.value, ast.Constant)):
                continue
            first = before is None and not isinstance(node, ast.If | ast.For | ast.With | ast.Try)
            if isinstance(this.value.value, str) and (
                first or isinstance(before, ast.Assign | ast.AnnAssign)
            ):
                yield this.lineno, this.value.value


def is_command(node: ast.AST) -> bool:
    """True for a function whose docstring is the help of a command."""
    decorators = getattr(node, "decorator_list", [])
    return any("click." in ast.unparse(decorator) for decorator in decorators)


def comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings(path: Path):
    source = path.read_text("utf-8")
    found = list(docstrings(ast.parse(source)))
    odd = [(line, text[:60]) for line, text in found if OPENINGS.match(text.strip())]
    odd += [
        (line, word[0])
        for line, text in (*found, *comments(source))
        for word in WORDS.finditer(text)
    ]
    assert not odd
