"""Pictures that earlier jobs of a store made, found by what names a picture: its spec digest.

Without rights to the index, or with a store that fails at it, images are rendered as if there were
none.
"""

from __future__ import annotations

import logging

from jobs.errors import StoreError
from jobs.folder.layout import JobFolder
from jobs.reuse.earlier import EarlierPictures
from jobs.reuse.index import write_index
from jobs.storage import Store

__all__ = ["EarlierPictures", "earlier_pictures", "index_pictures"]

log = logging.getLogger(__name__)


def earlier_pictures(store: Store) -> EarlierPictures:
    """Pictures that can be taken now; none, with a warning, where the store does not give them."""
    earlier = EarlierPictures(store)
    refresh(earlier)
    return earlier


def refresh(earlier: EarlierPictures) -> None:
    """Read what is new, or warn."""
    try:
        earlier.refresh()
    except StoreError as error:
        log.warning("pictures of earlier jobs are not known: %s", error)


def index_pictures(folder: JobFolder) -> None:
    """Index a job's pictures for later jobs, or warn: a job is to end in any case."""
    try:
        write_index(folder)
    except (StoreError, ValueError) as error:  # the latter of records that no index can hold
        log.warning("later jobs will not find these pictures: %s", error)
