"""Writes `docs/reference.md` from the code: `make reference`.

Keys of a manifest come from `jobs.manifest.schema`, commands and options from `jobs.cli`, variables
from `jobs.variables`, exit codes from `jobs.errors`, limits from `jobs.limits`. A test fails while
the file is not what this module would write.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from jobs import limits
from jobs.cli.root import EXIT_CODES
from jobs.manifest.schema import json_schema
from jobs.variables import OTHERS, VARIABLES, Variable
from tests.commands import COMMANDS

PAGE = Path(__file__).parents[1] / "docs/reference.md"

HEAD = """\
# Reference

All keys of a manifest, all commands and all environment variables. This page is made from the code
by `make reference`; a test holds the two together. The [README](../README.md) says how to begin.
"""

ARGUMENTS = {
    "FILE": "a manifest",
    "FILE...": "manifests",
    "[FILE]": "a manifest that is not there yet",
    "IMAGE...": "pictures",
    "[USER]": "a user of the queue's server, or * for all without a quota of their own",
    "SHELL": "bash, zsh or fish",
    "JOB": "a job's name, or a beginning of it that no other job has",
    "[JOB...]": "names of jobs",
    "DEST": "a folder, made where it is not there",
}
"""Meanings by name, for not all versions of click that we take have help for arguments."""

SHARED_BY = 3
"""Commands that make an option one to be described once for all."""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *_manifest(), *_commands(), *_variables(), *_limits()])


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


# The manifest


def _manifest() -> Iterator[str]:
    schema = json_schema()
    parts: dict[str, Any] = schema["$defs"]
    output = schema["properties"]["output"]
    output.setdefault("description", parts["OutputFields"]["description"])  # left out where alike
    settings = parts["Settings"]["properties"]

    def own(part: str) -> dict[str, Any]:
        """Without the settings, which are described once."""
        keys = parts[part]["properties"].items()
        return parts[part] | {"properties": {k: v for k, v in keys if k not in settings}}

    yield "## A manifest\n"
    yield "`sdbatch schema` prints the same as JSON Schema, for editors.\n"
    yield from _keys(schema)
    yield "### Settings\n"
    yield (
        "These may stand in `defaults`, in a prompt, beside a `file`, and in a row of it. The "
        "nearest to the prompt wins; `matrix` wins over all.\n"
    )
    yield from _keys(parts["Settings"])
    yield "### `seeds` as a range\n"
    yield from _keys(parts["SeedRange"])
    for group in ("Variation", "Pag"):
        yield f"### `{group.lower()}`\n"
        yield f"{_words(parts[group]['description'])}\n"
        yield from _keys(parts[group])
    yield "### A LoRA in `loras`\n"
    yield from _keys(parts["LoraItem"])
    yield "At the top, `loras` names files:\n"
    yield from _keys(parts["LoraFile"])
    yield "In `matrix`, it is a list of such lists, or one LoRA and its weights:\n"
    yield from _keys(parts["LoraWeights"])
    yield "### `prompts`\n"
    yield (
        "A list. Each entry is a text, which is the prompt, or a mapping with settings and these:\n"
    )
    yield from _keys(own("PromptEntry"))
    yield "Or prompts from a file, with settings for those of its rows that do not say:\n"
    yield from _keys(own("FileEntry"))
    yield "### `matrix`\n"
    yield f"{_words(parts['Matrix']['description'])}\n"
    lists = ", ".join(f"`{key}`" for key in parts["Matrix"]["properties"])
    yield f"Each key has a list of at least one value, as in settings: {lists}.\n"
    yield "### `output`\n"
    yield from _keys(parts["OutputFields"])


def _keys(mapping: dict[str, Any]) -> Iterator[str]:
    required = mapping.get("required", [])
    rows = [
        (
            f"`{key}`" + (" (required)" if key in required else ""),
            allowed(node),
            node["description"],
        )
        for key, node in mapping["properties"].items()
    ]
    yield _table(("key", "value", "meaning"), rows)


def allowed(node: dict[str, Any]) -> str:
    """Values that a node of the schema accepts, in words."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return {"SeedRange": "a range"}.get(name, "a mapping")
    for several in ("oneOf", "anyOf"):
        if several in node:
            return ", or ".join(dict.fromkeys(allowed(one) for one in node[several]))
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    kind = node["type"]
    if kind == "array":
        return f"list of: {allowed(node['items'])}"
    if kind == "object":
        return "a mapping"
    if kind == "boolean":
        return "`true` or `false`"
    if kind in ("integer", "number"):
        return _number(node, "whole number" if kind == "integer" else "number")
    most = f" (at most {node['maxLength']:,} characters)" if "maxLength" in node else ""
    return f"text{most}"


def _number(node: dict[str, Any], kind: str) -> str:
    least, most = node.get("minimum"), node.get("maximum")
    if "exclusiveMaximum" in node:
        most = node["exclusiveMaximum"] - 1
    if least is None:
        return kind
    step = f", a multiple of {node['multipleOf']}" if "multipleOf" in node else ""
    return f"{kind} ({_figure(least)} to {_figure(most)}{step})"


def _figure(value: float) -> str:
    return "2^64 - 1" if value == 2**64 - 1 else f"{value:,}"


# The command line


def _commands() -> Iterator[str]:
    often = Counter(_told(option) for command in COMMANDS.values() for option in _options(command))
    shared = {told for told, count in often.items() if count >= SHARED_BY}
    yield "## Commands\n"
    yield (
        "`sdbatch --help` and `sdbatch COMMAND --help` say the same. Where `sdbatch` is not in "
        "PATH, `python -m jobs` does what it does.\n"
    )
    yield f"{_words(EXIT_CODES)}\n"
    yield "These options mean the same wherever a command has them:\n"
    yield _table(("option", "meaning"), sorted(shared))
    for name, command in COMMANDS.items():
        yield f"### sdbatch {name}\n"
        yield from _command(name, command, shared)


def _command(name: str, command: click.Command, shared: set[tuple[str, str]]) -> Iterator[str]:
    told = [_told(option) for option in _options(command)]
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    usage = " ".join(["sdbatch", name, *(["[OPTIONS]"] if told else []), *map(_metavar, arguments)])
    yield f"`{usage}`\n"
    yield from _prose(command.help or "")
    if arguments:
        says = "; ".join(f"{_metavar(a)}: {ARGUMENTS[_metavar(a)]}" for a in arguments)
        yield f"{says}.\n"
    own = [line for line in told if line not in shared]
    if own:
        yield _table(("option", "meaning"), own)
    others = [option for option, _ in told if (option, dict(told)[option]) in shared]
    if others:
        yield f"{'Also' if own else 'Options'}: {', '.join(others)}.\n"


def _options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


def _told(option: click.Option) -> tuple[str, str]:
    """An option with its value, and its help."""
    value = ""
    if isinstance(option.type, click.Choice):
        value = " " + "|".join(map(str, option.type.choices))
    elif isinstance(option.type, click.IntRange):
        value = f" {option.type.min}-{option.type.max}"
    elif not option.is_flag:
        value = f" {option.metavar or option.type.name.upper()}"
    shown = f" [default: {option.default}]" if option.show_default else ""
    return f"`{', '.join(option.opts)}{value}`", f"{option.help or ''}{shown}"


def _metavar(argument: click.Argument) -> str:
    return argument.metavar or str(argument.name).upper()


def _prose(text: str) -> Iterator[str]:
    """A command's help as Markdown: paragraphs, and what click leaves as it is as code."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\nExample:"):
            lines = [line.strip() for line in paragraph.splitlines()[2:]]
            yield "\n".join(["```sh", *lines, "```", ""])
        else:
            yield f"{_words(paragraph)}\n"


# Variables and limits


def _variables() -> Iterator[str]:
    yield "## Environment variables\n"
    yield "An empty variable is one that is not set. Options of a command win over variables.\n"
    yield _variable_table(VARIABLES)
    yield "Libraries read these:\n"
    yield _variable_table(OTHERS)


def _variable_table(variables: Sequence[Variable]) -> str:
    rows = [(f"`{v.name}`", f"`{v.default}`" if v.default else "", v.meaning) for v in variables]
    return _table(("variable", "default", "meaning"), rows)


def _limits() -> Iterator[str]:
    """From the constants of `jobs.limits` and the texts below them."""
    yield "## Limits of a manifest\n"
    statements = ast.parse(inspect.getsource(limits)).body
    rows = []
    for statement, after in itertools.pairwise(statements):
        if isinstance(statement, ast.Assign) and isinstance(after, ast.Expr):
            name = ast.unparse(statement.targets[0])
            title = name.removeprefix("MAX_").replace("_", " ").lower()
            text = str(ast.literal_eval(after.value))
            rows.append((title, f"{getattr(limits, name):,}", text))
    yield _table(("most", "number", "meaning"), rows)


# Markdown


def _words(text: str) -> str:
    return " ".join(text.split())


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    escaped = _words(text).replace("|", "\\|")
    # Outside of code, < would begin a tag.
    parts = re.split(r"(`[^`]*`)", escaped)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)


if __name__ == "__main__":
    main()
