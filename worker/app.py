"""The Celery app of a worker: configuration and the signals of its life. `celery -A worker.app`.

    celery -A worker.app worker --without-gossip --without-mingle

`sdbatch worker` starts the same.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import celery.apps.worker
from celery import Celery, signals

from jobs.queue import celery_settings, queue_name
from jobs.settings import Settings
from worker import lifecycle, logs

settings = Settings.from_env(os.environ)
owner = lifecycle.new_owner()

app = Celery("sdbatch", include=["worker.tasks"])
app.conf.update(celery_settings(settings.redis))
app.conf.update(
    task_default_queue=queue_name(settings.worker_model),
    worker_concurrency=lifecycle.SLOTS,
    worker_hijack_root_logger=False,
)


@signals.celeryd_init.connect
def _log(instance: Any, **_: object) -> None:
    """From the first moment on, every line is a log line: no start banner and no bare text."""
    logs.set_up(settings.log, owner)
    instance.quiet = True
    celery.apps.worker.safe_say = logs.say


@signals.setup_logging.connect
def _set_level(loglevel: int, **_: object) -> None:
    """Being connected keeps Celery from setting up handlers of its own."""
    logging.getLogger().setLevel(loglevel)


@signals.worker_init.connect
def _start(**_: object) -> None:
    """The model first: a worker without one must not take messages."""
    lifecycle.start(settings, owner)


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    lifecycle.drain()


@signals.worker_shutdown.connect
def _stop(**_: object) -> None:
    lifecycle.stop()
