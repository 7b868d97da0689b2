"""Errors of an S3 server, in words that say what to do about them.

The one place where errors of boto3 become ours. Credentials are in none of the messages: servers
are quoted by their error codes only, and credential helpers not at all.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from jobs.errors import NotFoundError, SdbatchError, StoreError, StoreFullError
from jobs.storage.s3.address import S3Address

FAILURES = (boto.ClientError, boto.BotoCoreError, ResponseParserError, RecursionError)
"""All that a request of boto3 raises; the last one if a server redirects whatever is asked."""

_RIGHTS = {
    "read": "s3:GetObject; without s3:ListBucket, AWS says so of objects that are not there, too",
    "write": "s3:PutObject; the bucket may be read-only",
    "delete": "s3:DeleteObject",
    "list": "s3:ListBucket",
}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"}
_READ_ONLY = {"MethodNotAllowed", "XMinioReadOnly", "ReadOnly"}
_FULL = {
    "InsufficientStorage",
    "QuotaExceeded",
    "XMinioStorageFull",
    "XMinioAdminBucketQuotaExceeded",
}
_THROTTLED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "BandwidthLimitExceeded",
}
_REGION = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
    "302",
    "307",
    "308",
}
_CREDENTIALS = {
    "InvalidAccessKeyId": "does not know this access key id; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": (
        "finds the signature wrong: the secret key does not belong to the access key id; check "
        "AWS_SECRET_ACCESS_KEY"
    ),
    "ExpiredToken": "finds the session token expired; get new credentials",
    "TokenRefreshRequired": "finds the session token expired; get new credentials",
    "InvalidToken": "finds the session token wrong; check AWS_SESSION_TOKEN",
}
_ELSEWHERE = "the server sends requests elsewhere; check the address, and whether it wants https"

_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}


@dataclass(frozen=True)
class Failure:
    """A request that failed, with what is needed to speak of it.

    action: read, write, delete or list. key: empty where no object was meant.
    """

    address: S3Address
    endpoint: str
    action: str
    key: str = ""

    def explained(self, error: Exception) -> SdbatchError:
        """`NotFoundError`, `StoreFullError` or `StoreError`."""
        where = f"{self.address}/{self.key}" if self.key else str(self.address)
        if not isinstance(error, boto.ClientError):
            return StoreError(f"{where}: {self._no_answer(error)}")
        if error_code(error) == "NoSuchKey":
            return NotFoundError(f"{where}: no such object")
        if error_code(error) in _FULL or status(error) == 507:
            return StoreFullError(
                f"{where}: the store is full or its quota is used up; free some space and run "
                "again; finished images are kept"
            )
        return StoreError(f"{where}: {self._refusal(error)}")

    def _refusal(self, error: boto.ClientError) -> str:
        """The server answered, but not as wanted."""
        code, number, endpoint = error_code(error), status(error), self.endpoint
        if code == "NoSuchBucket":
            return f"no such bucket at {endpoint}; create it or correct the address"
        if code in _CREDENTIALS:
            return f"{endpoint} {_CREDENTIALS[code]}"
        if code in _DENIED:
            return (
                f"access denied: these credentials may not {self.action} here "
                f"({_RIGHTS[self.action]})"
            )
        if code in _READ_ONLY and self.action in ("write", "delete"):
            return "the bucket is read-only; choose another one"
        if code in _REGION:
            return _region(error)
        if code in _CLOCK:
            return (
                f"this machine's clock and that of {endpoint} differ too much; set it, best by "
                "switching on its time synchronisation"
            )
        if code in _THROTTLED or number in (429, 503):
            return (
                f"{endpoint} is overloaded ({code}) and has been asked often enough; run again "
                "later or with fewer workers"
            )
        if code in ("", str(number)):  # all errors of S3 have a name
            return f"{endpoint} does not answer as an S3 server ({number}); check the address"
        if number >= 500:
            return f"{endpoint} fails ({number} {code}); its log says why; a full disk is one cause"
        return f"{endpoint} refuses to {self.action} ({number} {code})"

    def _no_answer(self, error: Exception) -> str:
        """There was no answer, or none that makes sense."""
        endpoint = self.endpoint
        if isinstance(error, boto.SSLError):
            return (
                f"no secure connection to {endpoint}: {_reason(error)}; check https against http, "
                "and the certificate (AWS_CA_BUNDLE)"
            )
        if isinstance(error, boto.ProxyConnectionError):
            return "the proxy does not answer; check HTTP_PROXY and HTTPS_PROXY"
        if isinstance(error, boto.EndpointConnectionError):
            if _caused_by(error, socket.gaierror):
                return f"the host of {endpoint} is not known; check the address and the network"
            return f"{endpoint} does not answer; is the server running, and is the address right?"
        if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError)):
            return f"{endpoint} does not answer in time; check the server and the network"
        if isinstance(error, (boto.HTTPClientError, boto.IncompleteReadError)):
            return f"the connection to {endpoint} broke; check the server and the network"
        if isinstance(error, RecursionError):
            return _ELSEWHERE
        if isinstance(error, ResponseParserError):
            return f"{endpoint} does not answer as an S3 server; check the address"
        return _configuration(error)


def error_code(error: boto.ClientError) -> str:
    """`NoSuchKey` and the like; the number of the status where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status(error: boto.ClientError) -> int:
    """The HTTP status; 0 if there is none."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def may_pass(error: Exception) -> bool:
    """True if a server that has worked before may be well again in a while."""
    if isinstance(error, boto.ClientError):
        return status(error) in (429, 500, 502, 503, 504) or error_code(error) in _THROTTLED
    if isinstance(error, (boto.SSLError, boto.ProxyConnectionError)):
        return False
    return isinstance(error, (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError))


def configuration_error(error: Exception) -> StoreError:
    """For errors met before there is a client."""
    return StoreError(f"S3: {_configuration(error)}")


def _configuration(error: Exception) -> str:
    if isinstance(error, boto.NoCredentialsError):
        return (
            "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, boto.PartialCredentialsError):
        return f"the credentials are incomplete: {error.kwargs['cred_var']} is missing"
    if isinstance(error, boto.ProfileNotFound):
        return f"{error}; check AWS_PROFILE and ~/.aws/config"
    if isinstance(error, (boto.ConfigParseError, boto.InvalidRegionError)):
        return str(error)
    if isinstance(error, boto.ParamValidationError):
        return f"a request that S3 cannot take: {error}"
    if isinstance(error, boto.BotoCoreError):
        # Others may repeat what a credential helper printed.
        return f"the credentials or the AWS configuration are no good ({type(error).__name__})"
    # A ValueError about an endpoint, which may hold a password.
    return (
        "the endpoint in AWS_ENDPOINT_URL or ~/.aws/config is not valid; expected http://host:port"
    )


def _region(error: boto.ClientError) -> str:
    """The server's region is another one; its name, if it is told."""
    detail: Mapping[str, Any] = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = detail.get("Region") or headers.get("x-amz-bucket-region")
    if region:
        return f"the bucket is in the region {region}; set AWS_DEFAULT_REGION={region}"
    if error_code(error).isdigit():
        return _ELSEWHERE
    return "the bucket is in another region; set AWS_DEFAULT_REGION to it"


def _reason(error: boto.SSLError) -> str:
    """The system's words, without those of the layers between."""
    cause: object = error.kwargs.get("error")
    while isinstance(cause, Exception) and cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    return str(cause)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False
