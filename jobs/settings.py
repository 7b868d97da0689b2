"""Settings from the environment. Nothing else reads it. `jobs.variables` says what each means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jobs.errors import InputError, StoreError
from jobs.formatting import one_of, quote, unknown_model
from jobs.limits import MAX_LORA_BYTES
from jobs.local.address import LocalCluster, running_cluster
from jobs.storage.folders import check_folder
from jobs.storage.s3.address import S3Access
from jobs.task import Reproducible
from sd_core.spec import DTYPES, EXECUTIONS

if TYPE_CHECKING:
    from jobs.models import ModelSource

LOG_FORMATS = ("text", "json")

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_ADDRESS = re.compile(r"(?P<host>[^\s:]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")
_TOKEN = re.compile(r"[!-~]{16,200}")
_AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")


@dataclass(frozen=True)
class Settings:
    """Configuration by the environment; every field has a default."""

    models: Mapping[str, ModelSource] = field(default_factory=dict)
    loras: Mapping[str, ModelSource] = field(default_factory=dict)
    embeddings: Mapping[str, ModelSource] = field(default_factory=dict)
    vaes: Mapping[str, ModelSource] = field(default_factory=dict)
    lora_bytes: int = 512 * 2**20  # most of one file, and of a VAE's
    store: str = "out"
    device: str = "auto"
    dtype: str = "auto"
    execution: str = EXECUTIONS[0]
    redis: str = field(default="redis://127.0.0.1:6379/0", repr=False)  # may hold a password
    worker_model: str = "demo"
    stores: tuple[str, ...] = ()
    lease_s: float = 60.0
    reproducible: Reproducible = "exact"
    grace_s: float = 10.0
    metrics: tuple[str, int] | None = None  # host and port
    log: str = "text"
    cache: Path = Path("~/.cache/sdbatch")
    webhook_secret: str | None = field(default=None, repr=False)
    webhook_private: bool = False
    dashboard_token: str | None = field(default=None, repr=False)
    local: LocalCluster | None = None  # the running one, if jobs go to it
    aws_configured: bool = False  # the environment leads boto3 to some server

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Raises `InputError` that names the variable and what is allowed. Empty means not set."""
        values = {name: value for name, value in environ.items() if value}
        device = values.get("SDBATCH_DEVICE", cls.device)
        check_device(device, "SDBATCH_DEVICE")
        dtype = values.get("SDBATCH_DTYPE", cls.dtype)
        if dtype not in DTYPES:
            raise InputError(f"SDBATCH_DTYPE: found {quote(dtype)}, expected {one_of(DTYPES)}")
        execution = values.get("SDBATCH_EXECUTION", cls.execution)
        if execution not in EXECUTIONS:
            expected = one_of(EXECUTIONS)
            raise InputError(f"SDBATCH_EXECUTION: found {quote(execution)}, expected {expected}")
        log = values.get("SDBATCH_LOG", cls.log)
        if log not in LOG_FORMATS:
            raise InputError(f"SDBATCH_LOG: found {quote(log)}, expected {one_of(LOG_FORMATS)}")
        models, loras, embeddings, vaes = _listed(values.get("SDBATCH_MODELS"))
        elsewhere = "SDBATCH_REDIS" in values or "SDBATCH_STORE" in values
        local = None if elsewhere else running_cluster(values)
        return cls(
            models=models,
            loras=loras,
            embeddings=embeddings,
            vaes=vaes,
            lora_bytes=_mebibytes(values, "SDBATCH_LORA_MIB", cls.lora_bytes),
            store=values.get("SDBATCH_STORE", cls.store),
            device=device,
            dtype=dtype,
            execution=execution,
            redis=values.get("SDBATCH_REDIS", cls.redis if local is None else local.redis),
            worker_model=values.get("SDBATCH_MODEL", cls.worker_model),
            stores=tuple(values.get("SDBATCH_STORES", "").split()),
            lease_s=_seconds(values, "SDBATCH_LEASE_S", cls.lease_s, least=1),
            reproducible=_reproducible(values.get("SDBATCH_REPRODUCIBLE", cls.reproducible)),
            grace_s=_seconds(values, "SDBATCH_GRACE_S", cls.grace_s, least=0),
            metrics=_address(values.get("SDBATCH_METRICS")),
            log=log,
            cache=_folder(values, "SDBATCH_CACHE", cls.cache),
            webhook_secret=values.get("SDBATCH_WEBHOOK_SECRET"),
            webhook_private=values.get("SDBATCH_WEBHOOK_PRIVATE", "0") != "0",
            dashboard_token=_token(values, "SDBATCH_DASHBOARD_TOKEN"),
            local=local,
            aws_configured=any(name.startswith(_AWS) for name in values),
        )

    @property
    def job_store(self) -> str:
        """Where submitted jobs are written unless told otherwise. `sdbatch run` keeps to `store`:
        its pictures are to be looked at, and a local cluster keeps its own in a bucket.
        """
        return self.store if self.local is None else self.local.store

    def access(self, store: str, *, given: bool) -> S3Access | None:
        """Access to the local cluster's bucket; None for all other stores.

        given: a person named the store; then AWS_* in the environment tell where it is.
        """
        if self.local is None or (given and self.aws_configured):
            return None
        return self.local.access(store)

    def model(self, name: str) -> ModelSource:
        """The source of a model that a manifest names. Raises `InputError`."""
        if name in self.models:
            return self.models[name]
        if name == "demo":
            from jobs.models import ModelSource

            return ModelSource("demo")
        raise InputError(unknown_model(name, self.models))


def _listed(given: str | None) -> tuple[Mapping[str, ModelSource], ...]:
    """The models, LoRA, embeddings and VAEs of a model list."""
    if given is None:
        return {}, {}, {}, {}
    from jobs.models import load_models  # pydantic and YAML, which a command without models spares

    listed = load_models(given)
    return listed.models, listed.loras, listed.embeddings, listed.vaes


def _reproducible(text: str) -> Reproducible:
    for allowed in get_args(Reproducible):
        if text == allowed:
            return allowed
    expected = one_of(get_args(Reproducible))
    raise InputError(f"SDBATCH_REPRODUCIBLE: found {quote(text)}, expected {expected}")


def _folder(values: Mapping[str, str], name: str, default: Path) -> Path:
    path = Path(values.get(name, default))
    try:
        check_folder(path)
    except StoreError as error:
        raise InputError(f"{name}: {error}") from None
    return path


def _seconds(values: Mapping[str, str], name: str, otherwise: float, *, least: int) -> float:
    text = values.get(name, str(otherwise))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= 3600.0:
        raise InputError(f"{name}: found {quote(text)}, expected seconds within {least} to 3600")
    return seconds


def _mebibytes(values: Mapping[str, str], name: str, otherwise_bytes: int) -> int:
    """Bytes of what is given in MiB."""
    text = values.get(name)
    if text is None:
        return otherwise_bytes
    most = MAX_LORA_BYTES // 2**20
    if not re.fullmatch("[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise InputError(f"{name}: found {quote(text)}, expected MiB within 1 to {most}")
    return int(text) * 2**20


def _token(values: Mapping[str, str], name: str) -> str | None:
    text = values.get(name)
    if text is not None and not _TOKEN.fullmatch(text):  # which is not repeated: it is a secret
        raise InputError(
            f"{name}: expected 16 to 200 letters, digits and signs of ASCII, no spaces"
        )
    return text


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 2**16:
        expected = "host:port, such as 127.0.0.1:9400"
        raise InputError(f"SDBATCH_METRICS: found {quote(text)}, expected {expected}")
    return match["host"].strip("[]"), int(match["port"])


def check_device(text: str, where: str) -> None:
    """Raises `InputError` for what names no device. where: it was given, as the message says it."""
    if not _DEVICE.fullmatch(text):
        expected = "auto, cpu, cuda or cuda:<number>"
        raise InputError(f"{where}: found {quote(text)}, expected {expected}")


def debugging(environ: Mapping[str, str]) -> bool:
    """True if unexpected errors show their traceback. Never fails: it is asked after a failure."""
    return environ.get("SDBATCH_DEBUG", "0") not in ("", "0")
