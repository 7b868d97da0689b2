"""`sdbatch verify`: its options, and its result for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.errors import InputError
from jobs.folder.job_file import read_job_file
from jobs.folder.layout import JobFolder
from jobs.formatting import counted
from jobs.settings import Settings, check_device
from jobs.terminal.console import Terminal
from worker.checkpoint.load import ModelChoice
from worker.progress import RunProgress
from worker.run_command import model_source, stopping_on_signals
from worker.verify.check import Kind
from worker.verify.job import Verified, Wanted, verify_job

MOST_SHOWN = 20
"""Findings that people are shown; --json has them all."""

_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%")


@dataclass(frozen=True)
class VerifyOptions:
    """Options as the command line gave them; None where the settings decide."""

    wanted: Wanted
    model: str | None
    device: str | None
    dtype: str | None

    @classmethod
    def of(
        cls,
        *,
        sample: str | None,
        repair: bool,
        model: str | None,
        device: str | None,
        dtype: str | None,
    ) -> VerifyOptions:
        """Raises `InputError`."""
        if device is not None:
            check_device(device, "--device")
        share = None if sample is None else read_share(sample)
        return cls(Wanted(share, repair), model, device, dtype)


def read_share(text: str) -> float:
    """`1%` as 0.01. Raises `InputError` for what is no share above 0 % and up to 100 %."""
    match = _SHARE.fullmatch(text.strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise InputError(f"--sample: found {text!r:.60}, expected more than 0% and up to 100%")
    return share


def verify_folder(
    folder: JobFolder, options: VerifyOptions, settings: Settings, terminal: Terminal
) -> Verified:
    """Verifies a job with progress on the terminal. Raises like `verify_job`."""

    def choose(name: str) -> ModelChoice:
        given = None if options.model is None else model_source(options.model, settings)
        source = settings.model(name) if given is None else given[1]
        device, dtype = options.device, options.dtype
        return ModelChoice.of(name, source, settings, device=device, dtype=dtype)

    with stopping_on_signals(terminal) as stop:
        return verify_job(
            folder,
            read_job_file(folder),
            options.wanted,
            choose,
            settings,
            counting=terminal.counting,
            status=terminal.status,
            observe=lambda images, evaluations: RunProgress(images, evaluations, terminal.err),
            stop=stop,
        )


def result_lines(verified: Verified) -> Iterator[str]:
    """The result, for people."""
    checked, sampled = verified.checked, verified.sampled
    failed = f", {checked.failed:,} failed when they were made" if checked.failed else ""
    yield f"images    {checked.right:,} of {checked.images:,} are right{failed}"
    for kind in Kind:
        if count := checked.counts.get(kind, 0):
            yield f"{kind:9} {count:,}"
    for finding in checked.findings[:MOST_SHOWN]:
        yield f"  {finding.kind}: {finding.path}: {finding.why}"
    if (more := sum(checked.counts.values()) - MOST_SHOWN) > 0:
        yield f"  and {more:,} more"
    if sampled is not None:
        close = f", {sampled.close:,} nearly so" if sampled.close else ""
        if sampled.least_psnr_db is not None:
            close += f" ({sampled.least_psnr_db:.1f} dB or more)"
        drawn = counted(sampled.images, "image")
        yield f"sample    {drawn} rendered again: {sampled.same:,} the same{close}"
    if verified.mended:
        yield f"repaired  {counted(verified.mended, 'image')}"
