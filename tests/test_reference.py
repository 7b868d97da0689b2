"""`docs/reference.md` is what the code says, and the code says something of everything in it."""

from __future__ import annotations

import click
import pytest

from jobs.manifest.schema import KEYS, PROMPT_KEYS, TOP_KEYS
from jobs.variables import VARIABLES
from sd_core.sampler_table import SCHEDULE_TABLE
from tests import reference
from tests.bench import samplers
from tests.commands import COMMANDS

MAKE = "run `make reference`: docs/reference.md is not what the code says any more"


def test_the_page_is_up_to_date():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), MAKE


def test_the_page_of_samplers_is_up_to_date():
    found = samplers.PAGE.read_text(encoding="utf-8")
    assert found == samplers.page(), "run `python -m tests.bench.samplers --page`"
    assert samplers.SPACINGS.keys() == SCHEDULE_TABLE.keys()


def test_everything_is_in_it():
    page = reference.page()
    keys = {*TOP_KEYS, *PROMPT_KEYS, *(key for part in KEYS.values() for key in part)}
    named = {
        *(f"`{key}`" for key in keys),
        *(f"`{variable.name}`" for variable in VARIABLES),
        *(f"### sdbatch {name}\n" for name in COMMANDS),
    }
    assert {text for text in named if text not in page} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_says_what_it_is(name):
    """More than its default."""
    command = COMMANDS[name]
    assert command.help
    assert "Example:" in command.help
    for option in (p for p in command.params if isinstance(p, click.Option)):
        assert (option.help or "").partition("[default")[0].strip(), option.opts


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 9000}, "whole number (1 to 9,000)"),
        (
            {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**64},
            "whole number (0 to 2^64 - 1)",
        ),
        ({"type": ["string", "number"], "maxLength": 10}, "text (at most 10 characters)"),
        ({"enum": ["a", "b"], "type": "string"}, "`a`, `b`"),
        ({"type": "array", "items": {"type": "boolean"}}, "list of: `true` or `false`"),
        ({"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}, "a mapping"),
    ],
)
def test_values_in_words(node, words):
    assert reference.allowed(node) == words


def test_cells_of_a_table_stay_cells():
    assert reference._cell("a|b <c>\n`d<e>`") == "a\\|b &lt;c> `d<e>`"
