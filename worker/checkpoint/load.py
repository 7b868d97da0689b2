"""Loads the model that a worker or a run is to use, and says what is wrong with it in our terms."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import InputError, ModelError
from jobs.manifest.sources import S3
from jobs.models import MergedLora, ModelSource
from jobs.settings import Settings
from sd_core.weights import hub
from sd_core.weights.errors import CheckpointError
from sd_core.weights.paths import require_there
from worker.checkpoint.fetch_file import fetched

if TYPE_CHECKING:
    from sd_core.model.diffusion import LatentDiffusion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, and how. loras: merged into it. name: what records call it. cache: a
    folder for what comes from a bucket, and for what is made of it once: laid-out weights, compiled
    programs.
    """

    name: str
    source: str
    digest: str | None = None
    config: Path | None = None
    vae: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    execution: str = "auto"
    cache: Path = Settings.cache
    loras: tuple[MergedLora, ...] = ()
    prediction: str = "auto"
    zero_snr: bool | None = None

    @classmethod
    def of(
        cls,
        name: str,
        source: ModelSource,
        settings: Settings,
        *,
        device: str | None = None,
        dtype: str | None = None,
        config: Path | None = None,
        vae: str | None = None,
    ) -> ModelChoice:
        """A model of this name. device, dtype: instead of what the settings say."""
        return cls(
            name=name,
            source=source.source,
            digest=source.digest,
            config=config,
            vae=vae,
            device=device or settings.device,
            dtype=dtype or settings.dtype,
            execution=settings.execution,
            cache=settings.cache,
            loras=source.loras,
            prediction=source.prediction,
            zero_snr=source.zero_snr,
        )


def check_there(choice: ModelChoice) -> None:
    """Raises `ModelError` for a path that does not exist: loading says so only seconds later."""
    for source, expected in (
        (choice.source, "model weights"),
        (choice.vae, "model weights"),
        (choice.config, "a model configuration"),
        *((lora.source, "weights to merge") for lora in choice.loras),
    ):
        given = "" if source is None else str(source)
        is_path = given not in ("", "demo") and not given.startswith((hub.PREFIX, S3))
        if is_path:
            try:
                require_there(given, expected)
            except CheckpointError as error:
                raise ModelError(str(error)) from None


def load(choice: ModelChoice) -> LatentDiffusion:
    """The model, checked against its digest where one is named, and made ready for its device.

    What comes from a bucket and is not what its digest says is downloaded once more.
    Raises `ModelError`, and `StoreError` if it is in a bucket whose server is unreachable.
    """
    if not choice.source.startswith(S3):
        return _load(choice, choice.source)
    from worker.checkpoint.s3_cache import fetch  # boto3 takes a while to import

    pinned = choice.digest is not None
    try:
        return _load(choice, fetch(choice.source, choice.cache, pinned=pinned))
    except ModelError as error:
        if not pinned:
            raise
        log.warning("%s; it is downloaded once more", error)
    return _load(choice, fetch(choice.source, choice.cache, pinned=pinned, again=True))


def _load(choice: ModelChoice, source: str | Path) -> LatentDiffusion:
    """source: where the choice's is on this machine. Raises `ModelError` and `InputError`."""
    # Here, for importing torch takes longer than all that can be found out without it.
    from sd_core.engine.request import Lora
    from sd_core.execution import ExecutionError
    from sd_core.loading import load_model

    try:
        loras = [
            Lora.of(fetched(one.source, choice.cache), one.weight, one.text_weight)
            for one in choice.loras
        ]
        model = load_model(
            source,
            device=choice.device,
            dtype=choice.dtype,
            config=choice.config,
            vae=choice.vae,
            execution=choice.execution,
            cache=choice.cache.expanduser(),
            loras=loras,
            prediction=choice.prediction,
            zero_snr=choice.zero_snr,
        )
    except CheckpointError as error:
        where = "" if source == choice.source else f"{choice.source}: "
        raise ModelError(f"{where}{error}") from error
    except (ExecutionError, OSError) as error:  # no such kernels here; a cache of another's
        raise InputError(f"SDBATCH_EXECUTION: {error}") from error
    except ValueError as error:  # a device or dtype that this machine has not
        raise InputError(str(error)) from error
    if choice.digest is not None and model.digest != choice.digest:
        raise ModelError(
            f"model {choice.name}: {choice.source} has digest {model.digest}, "
            f"the model list says {choice.digest}"
        )
    return model
