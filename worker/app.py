"""The Celery app of a worker: configuration and the signals of its life. `celery -A worker.app`.

    celery -A worker.app worker --without-gossip --without-mingle --without-heartbeat

`sdbatch worker` starts the same.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import celery.apps.worker
import click
from celery import Celery, signals
from click.core import ParameterSource

from jobs.queue.messages import celery_settings, queue_name
from jobs.settings import Settings
from worker import kombu_guard, logs, process

settings = Settings.from_env(os.environ)
owner = process.new_owner()

kombu_guard.be_careful()
app = Celery("sdbatch", include=["worker.tasks"])
app.conf.update(celery_settings(settings.redis))
app.conf.update(
    task_default_queue=queue_name(settings.worker_model),
    worker_concurrency=process.SLOTS,
    worker_hijack_root_logger=False,
)


@signals.celeryd_init.connect
def _log(instance: Any, **_: object) -> None:
    """From the first moment on, every line is a log line: no start banner and no bare text."""
    logs.set_up(settings.log, owner)
    instance.quiet = True
    celery.apps.worker.safe_say = logs.say
    _end_by_hangup()


def _end_by_hangup() -> None:
    """Lets SIGHUP end this process as SIGTERM does, unless it is ignored, as under `nohup`.

    Celery would start itself again by it, without saving anything; on a terminal it would leave
    the process to end at once.
    """
    platform = celery.apps.worker
    on_term = platform.install_worker_term_handler
    heeded = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    def install(worker: Any) -> None:
        on_term(worker)
        if heeded:
            on_term(worker, sig="SIGHUP")

    platform.install_worker_restart_handler = lambda worker: None
    platform.install_worker_term_handler = install


@signals.setup_logging.connect
def _set_level(loglevel: int, **_: object) -> None:
    """Being connected keeps Celery from setting up handlers of its own."""
    # Celery's default is WARNING, at which a worker never says what it does.
    command = click.get_current_context(silent=True)
    given = command is not None and command.get_parameter_source("loglevel")
    logging.getLogger().setLevel(logging.INFO if given is ParameterSource.DEFAULT else loglevel)


@signals.worker_init.connect
def _start(**_: object) -> None:
    """The model first: a worker without one must not take messages."""
    process.start(settings, owner)


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    process.drain()


@signals.worker_shutdown.connect
def _stop(sender: Any, **_: object) -> None:
    process.stop(sender.exitcode)
