"""First writer wins, by the header `If-None-Match: *`, and whether a server honours it.

Errors of boto3 pass through; `S3Store` explains them.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from jobs.errors import StoreError
from jobs.storage.base import TEMPORARY_PREFIX
from jobs.storage.s3.errors import error_code, status

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import PutObjectRequestTypeDef

PUT_ID = "put-id"
"""Metadata that tells one `put` from all others, also from those of the same bytes."""

CONFLICT_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 0.0)
"""Longest pauses after the tries of a put that others write or delete beside; 0 after the last."""

RACES = 4
RACERS = 2
"""How often, and how many threads at once write one object to find out whether one of them wins.

With more of them, SeaweedFS lets them wait for one another in steps of a second.
"""

PROBE_BYTES = 64 * 1024
"""More than a block, so that a full disk is found out too."""

_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}

_BUSY = "others keep writing or deleting it at the same moment; run again"
_PHANTOM = (
    "the server refuses it as being there already, but there is none; if the server keeps folders, "
    "as SeaweedFS does, one of this name is in the way: delete it or choose another name"
)


def new_put_id() -> str:
    """A value for `PUT_ID`."""
    return secrets.token_hex(8)


def put_first(client: S3Client, request: PutObjectRequestTypeDef) -> bool:
    """Write the object unless there is one; True if it was written. `Metadata` holds a `PUT_ID`.

    May be called again with the same request after a failure. A try whose answer was lost may have
    written the object all the same; then the next one is refused because of our own, which its id
    tells. Raises `StoreError` if that goes on for ever.
    """
    conditional: PutObjectRequestTypeDef = {**request, "IfNoneMatch": "*"}
    for pause_s in CONFLICT_PAUSES_S:
        try:
            client.put_object(**conditional)
            return True
        except ClientError as error:
            if status(error) == 412:
                there = _metadata(client, request["Bucket"], request["Key"])
                if there is not None:
                    return there.get(PUT_ID) == request.get("Metadata", {})[PUT_ID]
                cause = _PHANTOM  # unless it was just deleted, so once more
            elif error_code(error) in _CONFLICTS:
                cause = _BUSY
            else:
                raise
        time.sleep(random.uniform(0, pause_s))
    raise StoreError(f"s3://{request['Bucket']}/{request['Key']}: {cause}")


def _metadata(client: S3Client, bucket: str, name: str) -> dict[str, str] | None:
    try:
        return client.head_object(Bucket=bucket, Key=name)["Metadata"]
    except ClientError as error:
        if status(error) == 404:
            return None
        raise


def honours_if_none_match(client: S3Client, bucket: str, root: str) -> bool:
    """True if the first writer wins here, also in a race; found out with objects below `root`.

    root: empty, or it ends with a slash. Raises what boto3 raises if nothing can be written at all.
    """
    probe: PutObjectRequestTypeDef = {
        "Bucket": bucket,
        "Key": f"{root}{TEMPORARY_PREFIX}probe-{new_put_id()}",
        "Body": bytes(PROBE_BYTES),
    }
    client.put_object(**probe)
    if _read(client, probe) != probe["Body"]:
        raise ResponseParserError("a web server that is content with any request")
    races: list[PutObjectRequestTypeDef] = [
        {"Bucket": bucket, "Key": f"{probe['Key']}-{number}"} for number in range(RACES)
    ]
    try:
        return _is_refused(client, probe) and all(_one_wins(client, race) for race in races)
    finally:
        for name in (request["Key"] for request in (probe, *races)):
            with contextlib.suppress(ClientError):  # no right to delete: nobody lists them
                client.delete_object(Bucket=bucket, Key=name)


def _is_refused(client: S3Client, probe: PutObjectRequestTypeDef) -> bool:
    """True if the object, which is there, is not written again."""
    try:
        return not put_first(client, {**probe, "Metadata": {PUT_ID: new_put_id()}})
    except ClientError as error:
        # The same request was fine without the header, so this is about it: 400 and 501 are met.
        if status(error) in (400, 501):
            return False
        raise


def _one_wins(client: S3Client, race: PutObjectRequestTypeDef) -> bool:
    """True if exactly one of several concurrent writers is told that it wrote, and did."""
    start = threading.Barrier(RACERS)
    bodies = [f"racer {number}".encode() for number in range(RACERS)]

    def write(body: bytes) -> bool:
        start.wait()
        return put_first(client, {**race, "Body": body, "Metadata": {PUT_ID: new_put_id()}})

    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(write, bodies))
    if won.count(True) != 1:
        return False
    return _read(client, race) == bodies[won.index(True)]


def _read(client: S3Client, request: PutObjectRequestTypeDef) -> bytes:
    return client.get_object(Bucket=request["Bucket"], Key=request["Key"])["Body"].read()
