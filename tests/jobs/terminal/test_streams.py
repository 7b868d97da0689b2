"""Standard streams that are closed, full, read by nobody, or ASCII: the exit code is the work's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys

import pytest

from jobs.folder.layout import JobKeys
from jobs.folder.records import dump_lines
from jobs.storage import LocalStore
from jobs.terminal.streams import Unfailing
from tests.jobs.manifests import picture, write

WARNED = "version: 1\nname: w\nprompts: ['a (hat:1.2)']\n"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line, *arguments, **environment):
    """A line of bash, in which `sdbatch` is $0 and the arguments are $1, $2, …"""
    command = ["bash", "-c", line.replace("sdbatch", f"{sys.executable} -m jobs.cli"), "bash"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("sdbatch validate $1 >&-", 0),
        ("sdbatch validate $1 <&- >&- 2>&-", 0),
        ("sdbatch validate $1 2>/dev/full", 0),
        ("sdbatch validate nope.yaml 2>/dev/full", 2),
        ("sdbatch validate --nope >&- 2>/dev/full", 2),
        ("sdbatch validate --json nope.yaml >/dev/full", 2),
        ("sdbatch validate $1 >/dev/full", 1),
    ],
)
def test_the_exit_code_is_that_of_the_work(tmp_path, line, code):
    done = shell(line, write(tmp_path, WARNED))
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stream", "arguments", "code"),
    [("stderr", ["job.yaml"], 0), ("stdout", ["--json", "nope.yaml"], 2)],
)
def test_a_reader_that_went_away(tmp_path, stream, arguments, code):
    write(tmp_path, WARNED)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "validate", *arguments],
        cwd=tmp_path,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer},
    )
    os.close(writer)
    assert done.returncode == code
    assert not done.stderr


def test_a_full_stdout_is_told_even_if_the_answer_was_to_be_json(tmp_path):
    done = shell("sdbatch validate --json $1 >/dev/full", write(tmp_path, WARNED))
    assert done.stderr == "error: the output cannot be written: no space left on device\n"


def test_what_is_opened_later_does_not_become_stdout(tmp_path):
    """Else what a library writes to its standard output ends up in somebody's file."""
    code = (
        "import os, sys; from jobs.terminal.streams import open_closed; open_closed();"
        "file = open(sys.argv[1], 'w'); print('lost'); print('lost', file=sys.stderr);"
        "os.write(1, b'lost'); os.write(2, b'lost'); file.write('kept')"
    )
    path = tmp_path / "file"
    done = subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code, path], check=False
    )
    assert (done.returncode, path.read_text()) == (0, "kept")


class TestAsciiLocale:
    def test_names_in_a_manifest(self, tmp_path):
        picture(tmp_path / "größe.png")
        text = (
            'version: 1\nname: e\noutput: {name: "{prompt}"}\n'
            "prompts: [{prompt: ein Kreis ü, init_image: größe.png}, 猫]\n"
        )
        done = shell("sdbatch plan $1", write(tmp_path, text, "straße.yaml"), **ASCII)
        assert (done.returncode, done.stderr) == (0, "")
        assert "first        ein-kreis-ü  ein Kreis ü\nlast         猫  猫\n" in done.stdout

    def test_names_of_pictures(self, tmp_path):
        store, keys = LocalStore(tmp_path / "store"), JobKeys("job")
        path = "images/ein-kreis-ü.png"
        store.put(keys(path), b"picture")
        digest = hashlib.sha256(b"picture").hexdigest()
        record = {"index": 0, "path": path, "sha256": digest, "prompt": "ü"}
        store.put(keys.records(0), dump_lines([record]))
        line = "sdbatch collect job $1 --store $2 --containing ü --json"
        done = shell(line, tmp_path / "größe", store.root, **ASCII)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["copied"] == 1
        assert (tmp_path / "größe" / "job" / path).read_bytes() == b"picture"


class Full(io.StringIO):
    """A stream that takes a few characters and no more."""

    def write(self, text):
        if len(self.getvalue()) > 5:
            raise OSError(28, "No space left on device")
        return super().write(text)

    def flush(self):
        if len(self.getvalue()) > 5:
            raise BrokenPipeError


def test_a_stream_that_fails_is_silent():
    full = Full()
    stream = Unfailing(full)
    for _ in range(5):
        stream.write("word ")
        stream.flush()
    assert full.getvalue() == "word word "
    assert not stream.isatty()
