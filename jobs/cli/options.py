"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

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
redis_option = click.option(
    "--redis",
    metavar="URL",
    help="The Redis server that holds queue and ledger. "
    "[default: SDBATCH_REDIS, else that of a running `sdbatch local`, else "
    "redis://127.0.0.1:6379/0]",
)
endpoint_option = click.option(
    "--endpoint",
    metavar="URL",
    help="The server of an s3:// store, http://host:port, for this command. A worker goes by its "
    "own AWS_ENDPOINT_URL. [default: AWS_ENDPOINT_URL, else what the AWS configuration says]",
)
job_argument = click.argument("job", metavar="JOB")
job_store_option = click.option(
    "--store",
    metavar="URL",
    help="Where the job is, so that no ledger is asked; JOB is then its whole name.",
)
no_reuse_option = click.option(
    "--no-reuse",
    is_flag=True,
    help="Render also what earlier jobs of the store have made.",
)
