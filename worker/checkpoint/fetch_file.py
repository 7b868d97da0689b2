"""Files of weights from wherever a model list says that they are."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import InputError, ModelError
from jobs.manifest.sources import S3
from sd_core.weights import hub
from sd_core.weights.errors import CheckpointError


def fetched(source: str, cache: Path) -> Path:
    """The file of a source on this machine; what is elsewhere is downloaded, once.

    cache: a folder for what comes from buckets. Raises `InputError` and `StoreError`.
    """
    try:
        if source.startswith(S3):
            from worker.checkpoint.s3_cache import fetch  # boto3 takes a while to import

            return fetch(source, cache, pinned=True)
        if source.startswith(hub.PREFIX):
            return hub.fetch_file(source)
        return Path(source).expanduser()
    except (CheckpointError, ModelError) as error:
        raise InputError(str(error)) from None
    except RuntimeError:  # nobody knows whose home
        return Path(source)
