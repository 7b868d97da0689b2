"""What several subcommands share."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.console import Terminal
from jobs.manifest import Manifest, load_manifest

json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,  # `main` has seen it: a bad command line is answered in JSON too
    help="Print one JSON document to stdout, also for errors.",
)
allow_outside_option = click.option(
    "--allow-outside",
    is_flag=True,
    help="Let manifests name files outside their own folder.",
)
manifest_argument = click.argument("manifest", metavar="FILE", type=click.Path(path_type=Path))


def read_manifest(
    terminal: Terminal, path: Path, *, allow_outside: bool, model: str | None = None
) -> Manifest:
    """`load_manifest` with progress, for commands. Raises `ManifestError`."""
    with terminal.counting(f"reading {path.name}") as tick:
        return load_manifest(path, allow_outside=allow_outside, model=model, tick=tick)
