"""What the command line of `sdbatch run` means. Whole runs: tests/worker/test_run.py."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from jobs.cli.root import main
from jobs.errors import ExitCode, InputError
from jobs.models import ModelSource
from jobs.settings import Settings
from worker.run import RunSummary
from worker.run_command import model_source, summary_lines

SETTINGS = Settings(models={"sd-v1-4": ModelSource("/models/sd-v1-4.ckpt", "ab" * 32)})


@pytest.mark.parametrize(
    ("given", "name", "source"),
    [
        ("demo", "demo", ModelSource("demo")),
        ("sd-v1-4", "sd-v1-4", SETTINGS.models["sd-v1-4"]),
        ("files/mine.safetensors", "mine", ModelSource("files/mine.safetensors")),
        ("mine.ckpt", "mine", ModelSource("mine.ckpt")),
        ("hf:owner/name@abc", "name", ModelSource("hf:owner/name@abc")),
    ],
)
def test_model_is_a_name_or_a_checkpoint(given, name, source):
    assert model_source(given, SETTINGS) == (name, source)


def test_unknown_model_name_says_which_are_known():
    with pytest.raises(InputError, match="did you mean 'sd-v1-4'"):
        model_source("sd-v14", SETTINGS)


@pytest.mark.parametrize(
    ("images", "rendered", "reused", "equal", "failed", "said"),
    [
        (1, 1, 0, 0, 0, ["1 of 1 image rendered in 0:02 (0.50 images/s)"]),
        (3, 3, 0, 0, 0, ["3 of 3 images rendered in 0:02 (1.50 images/s)"]),
        (3, 2, 1, 0, 0, ["2 of 3 images rendered in 0:02 (1.00 images/s), 1 was there already"]),
        (3, 1, 2, 0, 0, ["1 of 3 images rendered in 0:02 (0.50 images/s), 2 were there already"]),
        (
            *(3, 2, 1, 1, 0),
            ["2 of 3 images rendered in 0:02 (1.00 images/s), 1 is the same as another"],
        ),
        (
            *(6, 2, 4, 3, 0),
            [
                "2 of 6 images rendered in 0:02 (1.00 images/s), 1 was there already, "
                "3 are the same as others"
            ],
        ),
        (1, 0, 1, 0, 0, ["nothing to do: 1 of 1 image was there already"]),
        (2000, 0, 2000, 0, 0, ["nothing to do: 2,000 of 2,000 images were there already"]),
        (
            *(2, 0, 1, 0, 1),
            [
                "0 of 2 images rendered in 0:02, 1 was there already",
                "1 failed: see failures.jsonl; run again to retry it",
            ],
        ),
        (
            *(2, 0, 0, 0, 2),
            [
                "0 of 2 images rendered in 0:02",
                "2 failed: see failures.jsonl; run again to retry them",
            ],
        ),
    ],
)
def test_the_end_of_a_run_is_said(images, rendered, reused, equal, failed, said):
    summary = RunSummary("job", "out/job", images, rendered, reused, failed, 1.0, 2.0, equal)
    assert list(summary_lines(summary))[: len(said)] == said


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("version: 1\nprompts: [a red circle]\n")
    return path


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model", "nowhere.ckpt"], ExitCode.MODEL, "nowhere.ckpt"),
        (["--model", "nowhere"], ExitCode.BAD_INPUT, "not in the model list"),
        (["--device", "abacus"], ExitCode.BAD_INPUT, "abacus"),
        (["--device", "cuda:99"], ExitCode.BAD_INPUT, "cuda:99"),
        (["--job", "a/b"], ExitCode.BAD_INPUT, "'a/b' is not a folder name"),
        (["--store", "s3://My_Bucket"], ExitCode.STORE, "'My_Bucket' is no bucket name"),
    ],
)
def test_what_cannot_be_run_ends_with_its_own_code(
    manifest, tmp_path, monkeypatch, capsys, options, code, said
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(manifest), *options]) == code
    output = capsys.readouterr()
    assert said in output.err
    assert "Traceback" not in output.err


def test_a_store_that_is_a_file_is_a_store_error(manifest, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(["run", str(manifest), "--store", str(tmp_path / "taken")]) == ExitCode.STORE
    assert "taken" in capsys.readouterr().err


LONG_STEP = """
import threading
from jobs.terminal.console import Terminal
from worker.run_command import stopping_on_signals

with stopping_on_signals(Terminal(json=False)) as stop:
    print("running", flush=True)
    stop.wait()
    print("stopping", flush=True)
    threading.Event().wait(600)
"""


def test_the_second_signal_does_not_wait_for_the_step():
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_STEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    assert "Ctrl-C again ends at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in said
