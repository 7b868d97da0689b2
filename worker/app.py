"""The Celery app of a worker: configuration and the signals of its life. `celery -A worker.app`.

    celery -A worker.app worker --without-gossip --without-mingle

`sdbatch worker` starts the same.
"""

from __future__ import annotations

import os

from celery import Celery, signals

from jobs.queue import CELERY_SETTINGS, queue_name
from jobs.settings import Settings
from worker import lifecycle

settings = Settings.from_env(os.environ)

app = Celery("sdbatch", broker=settings.redis, include=["worker.tasks"])
app.conf.update(CELERY_SETTINGS)
app.conf.update(
    task_default_queue=queue_name(settings.worker_model),
    worker_concurrency=lifecycle.SLOTS,
    worker_hijack_root_logger=False,
)


@signals.worker_init.connect
def _start(**_: object) -> None:
    """The model first: a worker without one must not take messages."""
    lifecycle.start(settings)


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    lifecycle.drain()


@signals.worker_shutdown.connect
def _stop(**_: object) -> None:
    lifecycle.stop()
