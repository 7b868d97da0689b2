"""The subcommand that makes a manifest of pictures."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.cli.options import json_option
from jobs.cli.show import content
from jobs.errors import InputError, ManifestError
from jobs.formatting import counted, reason
from jobs.terminal.console import Terminal


@click.command("import")
@click.argument(
    "images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--name", default="imported", metavar="NAME", help="Of the job. [default: imported]")
@click.option("--model", metavar="NAME", help="Of the model list. [default: demo]")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the manifest goes; one that is there already stays. [default: stdout]",
)
@json_option
@click.pass_obj
def import_(
    terminal: Terminal, images: tuple[Path, ...], name: str, model: str | None, output: Path | None
) -> None:
    """Make a manifest of pictures that say how they were made: those of sdbatch, AUTOMATIC1111,
    ComfyUI, InvokeAI and others. What a manifest cannot say of them stands in comments.

    \b
    Example:
      sdbatch import pictures/*.png --output again.yaml
    """
    from jobs.importing.manifest import manifest_of
    from jobs.importing.read import read_picture

    found, problems = [], []
    for path in images:
        try:
            found.append((path.name, read_picture(content(path))))
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise InputError("\n".join(problems))
    text = manifest_of(found, name, model)
    notes = sum(len(imported.notes) for _, imported in found)
    lacking = _lacking(text)
    if output is not None:
        _write(output, text)
    if terminal.json:
        entries = [
            {"file": file, "by": one.by, "model": one.model, "entry": one.entry, "notes": one.notes}
            for file, one in found
        ]
        file = None if output is None else str(output)
        terminal.document({"file": file, "images": entries, "lacking": lacking})
        return
    terminal.say(text.rstrip("\n") if output is None else str(output))
    terminal.note([f"{counted(len(found), 'picture')}, {counted(notes, 'note')} in comments"])
    terminal.note(f"before it can be run: {problem}" for problem in lacking)


def _lacking(text: str) -> list[str]:
    """Problems of a manifest that its reader has to solve, such as a LoRA without a file."""
    from jobs.manifest.load import load_manifest  # takes long to import

    try:
        load_manifest(Path("manifest"), source=text.encode())
    except ManifestError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path} is there already; name another file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from None
