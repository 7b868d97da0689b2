"""The subcommand that serves the live page, and the same for `sdbatch local`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import click

from jobs.cli.estimate import check_price
from jobs.cli.options import json_option, redis_option
from jobs.client.opening import open_store_at, settings_with
from jobs.errors import InputError, SdbatchError
from jobs.ledger import open_ledger
from jobs.settings import Settings
from jobs.storage import Store
from jobs.storage.addresses import is_within
from jobs.supervise.signals import Interrupts
from jobs.terminal.console import Terminal

if TYPE_CHECKING:
    from jobs.dashboard.server import Running

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8484

LOOK_S = 0.1
"""Between two looks at signals."""


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port to listen on; 0 for any that is free.",
)
@click.option(
    "--host",
    metavar="HOST",
    default=DEFAULT_HOST,
    show_default=True,
    help="Address to listen on. Others than this machine then need the token to read, too.",
)
@click.option(
    "--price",
    type=float,
    metavar="EUR",
    help="Euros for an hour of one worker: the page says what each job has cost so far.",
)
@redis_option
@json_option
@click.pass_obj
def dashboard(
    terminal: Terminal, port: int, host: str, price: float | None, redis: str | None
) -> None:
    """Serve a page that shows jobs, workers and pictures as they come, until Ctrl-C. Whoever has
    the whole address that is printed can pause, cancel and retry jobs there.

    \b
    Example:
      sdbatch dashboard
      sdbatch dashboard --port 9000 --price 1.10
    """
    check_price(price)
    settings = settings_with(redis)
    interrupts = Interrupts()
    with interrupts.counting(), serving_page(settings, host, port, price) as running:
        if terminal.json:
            click.echo(json.dumps({"address": running.address}))
        else:
            terminal.say(f"dashboard  {running.address}")
            terminal.note(_notes(running))
        while not interrupts.count:
            if not running.alive():
                raise SdbatchError("the page's server ended by itself")
            time.sleep(LOOK_S)


def _notes(running: Running) -> Iterator[str]:
    if not running.on_loopback:
        yield "other machines can ask here; nothing is encrypted, so trust the network between"
    yield "Ctrl-C ends it; jobs go on"


def serving_page(
    settings: Settings, host: str, port: int, price: float | None = None
) -> AbstractContextManager[Running]:
    """Serves the page of the settings' ledger meanwhile. Raises `InputError`."""
    server = _server()
    place = server.Place(host, port, settings.dashboard_token)
    page: AbstractContextManager[Running] = server.serving(
        place, open_ledger(settings.redis), opener_of(settings), price
    )
    return page


def opener_of(settings: Settings) -> Callable[[str], Store]:
    """Opens the store of a job, where the settings allow it; else it raises `InputError`."""

    def open_store(address: str) -> Store:
        if settings.stores and not any(is_within(address, place) for place in settings.stores):
            raise InputError(f"SDBATCH_STORES does not allow the store {address}")
        return open_store_at(settings, address, None, given=False)

    return open_store


@contextmanager
def page_address(settings: Settings) -> Iterator[str]:
    """Serves the page on loopback meanwhile, on the usual port if that is free; its address."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(serving_page(settings, DEFAULT_HOST, DEFAULT_PORT))
        except InputError:  # another dashboard is there, perhaps
            running = stack.enter_context(serving_page(settings, DEFAULT_HOST, 0))
        yield running.address


def installed() -> bool:
    """True if the packages are there that the page needs."""
    try:
        _server()
    except InputError:
        return False
    return True


def _server() -> ModuleType:
    """The module that serves the page. Raises `InputError` that says what to install."""
    try:
        from jobs.dashboard import server
    except ModuleNotFoundError as error:
        raise InputError(
            f"`sdbatch dashboard` needs {error.name}, which is not installed: "
            "pip install 'sdbatch[dashboard]'"
        ) from None
    return server
