"""`sdbatch quota`: how many images a submitter may have to do at a time."""

from __future__ import annotations

from collections import Counter

import click

from jobs.cli.options import json_option, redis_option
from jobs.client.opening import ledger_at
from jobs.ledger.quotas import OTHERS, quota_of
from jobs.terminal.console import Terminal

NONE = "none"


class _MostImages(click.ParamType):
    name = "images"

    def convert(
        self, value: str | int, param: click.Parameter | None, context: click.Context | None
    ) -> str | int:
        if isinstance(value, int) or value == NONE:
            return value
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            self.fail(f"{value!r:.40} is not a number of images, or {NONE}", param, context)
        return int(value)


@click.command()
@click.argument("user", metavar="[USER]", required=False)
@click.option(
    "--max-images",
    metavar="N",
    type=_MostImages(),
    help=f"Images that USER may have to do at a time, over all jobs; {NONE} for no quota.",
)
@redis_option
@json_option
@click.pass_obj
def quota(
    terminal: Terminal, user: str | None, max_images: str | int | None, redis: str | None
) -> None:
    """List submitters with what they have to do and may have, or set what USER may have: a user of
    the queue's server, or "*" for all without a quota of their own. A job that would be too many is
    refused; those that are there go on.

    \b
    Example:
      sdbatch quota
      sdbatch quota anna --max-images 20000
      sdbatch quota anna --max-images none
    """
    if (user is None) != (max_images is None):
        raise click.UsageError("USER and --max-images go together; without both, quotas are listed")
    ledger = ledger_at(redis)
    if user is not None:
        ledger.set_quota(user, max_images if isinstance(max_images, int) else None)
    quotas, to_do = ledger.quotas(), Counter[str]()
    for job in ledger.jobs():
        to_do[job.submitter] += job.to_do
    everybody = {*quotas, *to_do, ledger.user} - {""}
    names = sorted(everybody) if user is None else [user]
    rows = [(name, to_do[name], quota_of(quotas, name)) for name in names]
    if terminal.json:
        terminal.document(
            {"quotas": [{"user": n, "to_do": count, "max_images": most} for n, count, most in rows]}
        )
    else:
        terminal.table(("USER", "IMAGES TO DO", "AT MOST"), [_cells(*row) for row in rows])


def _cells(name: str, to_do: int, most: int | None) -> tuple[str, ...]:
    return name, "" if name == OTHERS else f"{to_do:,}", NONE if most is None else f"{most:,}"
