"""Settings from the environment. Nothing else reads it. `jobs.variables` says what each means."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Required, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic takes that of typing from 3.12 on

from jobs.errors import InputError, StoreError
from jobs.explain import NodePlace, plain
from jobs.job_file import Reproducible
from jobs.local.address import LocalCluster, running_cluster
from jobs.problems import ProblemList, found, one_of, quote, suggest
from jobs.sources import read_file, reason
from jobs.storage.folders import check_folder
from jobs.storage.s3_address import S3Access
from jobs.yaml_reader import YamlFile
from sd_core.spec import EXECUTIONS

DTYPES = ("auto", "float32", "bfloat16", "float16")
LOG_FORMATS = ("text", "json")

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_ADDRESS = re.compile(r"(?P<host>[^\s:]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")
_MAX_LIST_BYTES = 2**20
_AWS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, as `sd_core.load_model` takes it, and its digest if it is pinned.

    digest: sha256 of the weights, 64 hex digits.
    """

    source: str
    digest: str | None = None


@dataclass(frozen=True)
class Settings:
    """What the environment configures; every field has a default."""

    models: Mapping[str, ModelSource] = field(default_factory=dict)
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
        models = values.get("SDBATCH_MODELS")
        elsewhere = "SDBATCH_REDIS" in values or "SDBATCH_STORE" in values
        local = None if elsewhere else running_cluster(values)
        return cls(
            models={} if models is None else load_models(models),
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
        """What opens the local cluster's bucket; None for all other stores.

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
            return ModelSource("demo")
        close = suggest(name, self.models)
        known = ", ".join(["demo", *self.models])
        hint = f"did you mean '{close}'?" if close else f"known are {known}"
        raise InputError(
            f"model {quote(name)} is not in the model list; {hint} (SDBATCH_MODELS names the list; "
            "--model gives a checkpoint for one run)"
        )


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
    """Whether unexpected errors show their traceback. Never fails: it is asked after a failure."""
    return environ.get("SDBATCH_DEBUG", "0") not in ("", "0")


@with_config(ConfigDict(extra="forbid", strict=True))
class _Pinned(TypedDict, total=False):
    source: Required[Annotated[str, Field(min_length=1)]]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


_SOURCE: TypeAdapter[Any] = TypeAdapter(Annotated[str, Field(min_length=1)] | _Pinned)


def load_models(given: Path | str) -> dict[str, ModelSource]:
    """A model list, YAML or JSON. Paths in it are relative to it.

    given: its path; or, as a text that begins with {, the list itself, whose paths are relative to
    the working directory.
    Raises `InputError`, for mistakes in the list as `ManifestError` with their places.
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        name, folder, source = "SDBATCH_MODELS", Path(), given.encode()
    else:
        path = Path(given)
        with contextlib.suppress(RuntimeError):  # nobody knows whose home: it is not there
            path = path.expanduser()
        name, folder, source = str(path), path.parent, _read_list(path)
    problems = ProblemList()
    top, _ = YamlFile(source, name, problems).mapping()
    models = {}
    for model, listed in plain(top).items():
        try:
            value = _SOURCE.validate_python(listed)
        except ValidationError:
            message = (
                f"found {found(listed)}, expected a source (demo, a checkpoint, a diffusers "
                "folder, hf:owner/name, s3://bucket/key) or {source: …, digest: 64 hex digits}"
            )
            problems.at(NodePlace(name, "", top), (model,), message)
            continue
        pinned = {"source": value} if isinstance(value, str) else value
        models[model] = ModelSource(_located(pinned["source"], folder), pinned.get("digest"))
    problems.raise_if_any()
    return models


def _read_list(path: Path) -> bytes:
    try:
        return read_file(path, _MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"SDBATCH_MODELS: {path} cannot be read: {why}") from None


def _located(source: str, folder: Path) -> str:
    """A path relative to the list, or a source that is no path."""
    below_home = source.startswith("~") and "/" in source  # what reads it knows whose
    if source == "demo" or source.startswith(("hf:", "s3://")) or below_home:
        return source
    return str(folder / source)
