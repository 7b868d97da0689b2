"""The `sdbatch` command."""

from jobs.cli.root import main

__all__ = ["main"]
