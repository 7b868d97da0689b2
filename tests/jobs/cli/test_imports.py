"""A command imports what it uses, and nothing that makes all others wait."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jobs.cli.root import COMMANDS as LISTED
from tests.commands import COMMANDS

HEAVY = {"PIL", "boto3", "celery", "kombu", "numpy", "pydantic", "redis", "torch", "yaml"}

RUN = """
import json, sys
from jobs.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

LEDGER = ("--redis", "redis://127.0.0.1:1/0")  # nobody answers there, which is known at once


@pytest.mark.parametrize(
    ("arguments", "used"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["no-such-command"], set()),
        (["status", "--help"], set()),
        (["run", "--help"], set()),
        (["worker", "--help"], set()),
        (["status", "shapes", *LEDGER], {"pydantic", "redis"}),
        (["jobs", *LEDGER], {"pydantic", "redis"}),
        (["cancel", "shapes", *LEDGER], {"pydantic", "redis"}),
        (["schema"], {"PIL", "numpy", "pydantic", "yaml"}),
    ],
)
def test_heavy_libraries(arguments, used):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(json.loads(done.stdout.splitlines()[-1])) <= used


def test_help_lists_every_command_in_a_line():
    for name, command in COMMANDS.items():
        assert command.name == name
        _, summary = LISTED[name]
        assert summary.endswith(".")
        assert len(summary) <= 62  # of 80 columns
