"""The subcommand that looks at all that jobs need here."""

from __future__ import annotations

from dataclasses import asdict

import click

from jobs.cli.options import endpoint_option, json_option, redis_option
from jobs.client.opening import open_store_at, settings_with
from jobs.doctor.finding import State
from jobs.errors import ExitCode
from jobs.settings import Settings
from jobs.storage import Store
from jobs.terminal.console import Terminal


@click.command()
@click.option(
    "--store", metavar="URL", help="The store to look at. [default: SDBATCH_STORE, else out]"
)
@endpoint_option
@redis_option
@json_option
@click.pass_obj
def doctor(
    terminal: Terminal, store: str | None, endpoint: str | None, redis: str | None
) -> ExitCode:
    """Look at all that jobs need here: settings, queue and its clock, store, workers, device,
    models. Says what to do about what is missing; the exit code is that of the first bad thing.

    \b
    Example:
      sdbatch doctor
      sdbatch doctor --store s3://pictures/jobs --redis redis://queue:6379/0
    """
    from jobs.doctor.checks import examine

    def opened(settings: Settings) -> tuple[str, Store]:
        address = settings.job_store if store is None else store
        return address, open_store_at(settings, address, endpoint, given=store is not None)

    with terminal.status("looking"):
        findings = list(examine(lambda: settings_with(redis), opened))
    if terminal.json:
        terminal.document({"checks": [asdict(one) for one in findings]})
    else:
        terminal.table(
            ("CHECK", "STATE", "FOUND", "TO DO"),
            [(one.check, str(one.state), one.found, one.advice) for one in findings],
        )
    bad = [one.code for one in findings if one.state is State.BAD]
    return bad[0] if bad else ExitCode.DONE
