"""The boto3 clients of a store. Credentials and regions are found as boto3 always does."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from jobs.storage.s3.address import S3Access, check_endpoint
from jobs.storage.s3.errors import configuration_error

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60

CONNECTIONS = 32
"""Kept open at once; more threads than this wait for nothing, but connect again."""


class Clients:
    """Clients that differ in their patience. Nothing is contacted; for use from many threads."""

    def __init__(self, endpoint: str | None, access: S3Access | None = None) -> None:
        """endpoint: None leaves it to AWS_ENDPOINT_URL and the AWS configuration. access: goes
        before the endpoint and the environment's credentials.
        """
        self._endpoint = endpoint if access is None else access.endpoint
        self._access = access
        self._lock = threading.Lock()
        self._session: boto3.Session | None = None
        self._clients: dict[int, S3Client] = {}

    def get(self, retries: int) -> S3Client:
        """The client that tries again `retries` times after a failure that may pass.

        Raises `StoreError` if the configuration is no good.
        """
        with self._lock:
            if retries not in self._clients:
                try:
                    self._clients[retries] = self._make(retries)
                except (BotoCoreError, ValueError) as error:
                    raise configuration_error(error) from None
            return self._clients[retries]

    def _make(self, retries: int) -> S3Client:
        # Below, botocore writes whole requests with their signatures and session tokens.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        if self._session is None:
            self._session = boto3.Session(**_session_options(self._access))
        # Buckets are named in the path, not in the host, where the endpoint is not that of AWS:
        # botocore does so unless ~/.aws/config says otherwise.
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "adaptive", "max_attempts": retries},
            # Newer checksums than these are what many S3-compatible servers refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            proxies=None if self._access is None else {},  # it is on this machine
        )
        client = self._session.client("s3", endpoint_url=self._endpoint, config=config)
        check_endpoint(client.meta.endpoint_url)  # so that messages can name it
        return client


def _session_options(access: S3Access | None) -> dict[str, Any]:
    if access is None:
        return {}
    return {
        "aws_access_key_id": access.key_id,
        "aws_secret_access_key": access.secret,
        "region_name": "us-east-1",
    }


def is_aws(client: S3Client) -> bool:
    """True if the client talks to AWS itself rather than to a compatible server."""
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
