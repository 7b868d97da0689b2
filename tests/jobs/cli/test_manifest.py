"""`sdbatch validate`, `plan` and `schema`, as a shell sees them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import jobs.examples
from jobs.cli import root as cli
from jobs.errors import (
    ExitCode,
    InputError,
    Interrupted,
    JobConflictError,
    LedgerError,
    ManifestError,
    ModelError,
    NotFoundError,
    SdbatchError,
    StoreError,
    StoreFullError,
    exit_code,
)
from jobs.formatting import size
from jobs.terminal.console import Terminal
from tests.jobs.manifests import picture, write

EXAMPLES = Path(jobs.examples.__file__).parent
GOOD = "version: 1\nname: two\nprompts: [a ring, a star]\n"


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def shell(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *map(str, arguments)],
        capture_output=True,
        check=False,
        **{"text": True, **options},
    )


class TestValidate:
    def test_good(self, run, tmp_path):
        path = write(tmp_path, GOOD)
        assert run("validate", path, path) == (0, f"{path}: ok, 2 images\n" * 2, "")

    def test_good_as_json(self, run, tmp_path):
        path = write(tmp_path, GOOD)
        code, out, err = run("validate", "--json", path)
        assert (code, err) == (0, "")
        assert json.loads(out) == {"files": [{"file": str(path), "name": "two", "images": 2}]}

    def test_all_problems_of_all_files(self, run, tmp_path):
        good = write(tmp_path, GOOD, "good.yaml")
        first = write(tmp_path, "version: 1\nprompts: [{prompt: a, steps: 0}]\n", "first.yaml")
        second = write(tmp_path, "version: 1\nprompts: [{prmpt: a}]\n", "second.yaml")
        code, out, err = run("validate", first, good, second)
        assert code == ExitCode.BAD_INPUT
        assert out == f"{good}: ok, 2 images\n"
        assert err.splitlines() == [
            f"{first}:2:30: prompts[0].steps: found 0, expected a whole number within 1 to 1000",
            f"{second}:2:11: prompts[0]: prompt is missing; expected a text of at most 10,000 "
            "characters",
            f"{second}:2:12: prompts[0].prmpt: unknown key 'prmpt'; did you mean 'prompt'?",
            "3 problems",
        ]

    def test_problems_as_json(self, run, tmp_path):
        path = write(tmp_path, "version: 1\nprompts: [{prompt: a, steps: 0}]\n")
        code, out, err = run("validate", path, "--json")
        assert (code, err) == (2, "")
        assert json.loads(out) == {
            "error": "1 problem",
            "exit_code": 2,
            "problems": [
                {
                    "file": str(path),
                    "line": 2,
                    "column": 30,
                    "path": "prompts[0].steps",
                    "message": "found 0, expected a whole number within 1 to 1000",
                }
            ],
        }

    def test_allow_outside(self, run, tmp_path):
        picture(tmp_path / "a.png")
        path = write(
            tmp_path, "version: 1\nprompts: [{prompt: a, init_image: ../a.png}]", "sub/job.yaml"
        )
        assert run("validate", path)[0] == 2
        assert run("validate", "--allow-outside", path)[0] == 0

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("nope.yaml", "no such file or directory"),
            (".", "it is a folder"),
            ("/dev/zero", "it is not a regular file"),
            ("pipe", "it is not a regular file"),
            ("x" * 300, "file name too long"),
            ("good.yaml/x", "not a directory"),
        ],
    )
    def test_unreadable(self, run, tmp_path, monkeypatch, path, why):
        monkeypatch.chdir(tmp_path)
        os.mkfifo("pipe")
        write(tmp_path, GOOD, "good.yaml")
        code, _, err = run("validate", path)
        assert code == 2
        assert f"cannot be read: {why}" in err
        assert "Traceback" not in err

    def test_no_permission(self, run, tmp_path, monkeypatch):
        path = write(tmp_path, GOOD)

        def refuse(*_args, **_options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)  # root may read everything
        assert "cannot be read: permission denied" in run("validate", path)[2]


class TestPlan:
    def test_human(self, run, tmp_path):
        code, out, err = run("plan", write(tmp_path, GOOD))
        assert (code, err) == (0, "")
        lines = {line[:12].strip(): line[12:].strip() for line in out.splitlines()}
        assert lines["job"].startswith("two-")
        assert lines["images"] == "2"
        assert lines["evaluations"] == "102 of the model, 204 batch rows"
        assert lines["shapes"] == "128×128: 2"
        assert lines["last"] == "000001-s42  a star"

    def test_json(self, run, tmp_path):
        code, out, _ = run("plan", "--json", write(tmp_path, GOOD))
        plan = json.loads(out)
        assert code == 0
        assert (plan["images"], plan["evaluations"], plan["rows"]) == (2, 102, 204)
        assert plan["job"].startswith("two-")
        assert plan["last"]["prompt"] == "a star"

    def test_problems(self, run, tmp_path):
        code, _, err = run("plan", write(tmp_path, "version: 1"))
        assert code == 2
        assert "prompts is missing" in err


class TestSchema:
    @pytest.fixture
    def schema(self, run):
        return json.loads(run("schema")[1])

    def test_dialect(self, schema):
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == {"version", "prompts"}

    def test_every_field_is_described(self, schema):
        for part in (schema, *schema["$defs"].values()):
            for name, field in part["properties"].items():
                target = schema["$defs"].get(field.get("$ref", "").removeprefix("#/$defs/"), {})
                assert field.get("description") or target.get("description"), name

    def test_every_reference_is_there(self, schema):
        text = json.dumps(schema)
        for name in schema["$defs"]:
            assert f"#/$defs/{name}" in text
        assert text.count("#/$defs/") >= len(schema["$defs"])

    def test_its_example_is_a_manifest(self, run, schema, tmp_path):
        write(tmp_path, "prompt\na\n", "prompts.csv")
        for example in schema["examples"]:
            assert run("validate", write(tmp_path, json.dumps(example)))[0] == 0


class TestExamples:
    @pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.stem)
    def test_is_good(self, run, path):
        code, _, err = run("plan", path)
        assert (code, err) == (0, "")
        assert f"sdbatch run {path.name}" in path.read_text()

    def test_all_are_there(self):
        found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.yaml")}
        assert found == {
            *("quickstart.yaml", "sweep.yaml", "img2img.yaml", "sd-v1.yaml"),
            *("few-steps.yaml", "starter.yaml"),
            "from-csv/shapes.yaml",
        }

    def test_few_steps_are_four_evaluations_of_one_row(self, run):
        plan = json.loads(run("plan", "--json", EXAMPLES / "few-steps.yaml")[1])
        assert (plan["images"], plan["evaluations"], plan["rows"]) == (8, 32, 32)

    def test_quickstart_is_a_dozen_of_both_kinds(self, run):
        plan = json.loads(run("plan", "--json", EXAMPLES / "quickstart.yaml")[1])
        assert plan["images"] == 12
        assert plan["inputs"] > 0
        assert (plan["loras"], plan["embeddings"]) == (["hollow"], [])
        assert "loras        hollow" in run("plan", EXAMPLES / "quickstart.yaml")[1]


class TestCommandLine:
    def test_version(self, run):
        code, out, _ = run("--version")
        assert code == 0
        assert out.startswith("sdbatch, version ")

    @pytest.mark.parametrize("command", ["validate", "plan", "schema"])
    def test_help_has_an_example(self, run, command):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"Example:\n    sdbatch {command}" in out

    def test_help_tells_the_exit_codes(self, run):
        out = " ".join(run("--help")[1].split())
        for code in ExitCode:
            assert f"{int(code)} " in out.partition("Exit codes:")[2]

    @pytest.mark.parametrize(
        "arguments",
        [("plan",), ("validate",), ("nope",), ("plan", "--nope", "x"), ("plan", "a", "b"), ()],
    )
    def test_usage_errors(self, run, arguments):
        code, _, err = run(*arguments)
        assert code == 2
        assert "Usage:" in err

    def test_usage_errors_as_json(self, run):
        code, out, _ = run("plan", "--json", "--nope", "x")
        assert code == 2
        assert "--nope" in json.loads(out)["error"]

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (SdbatchError("x"), 1),
            (InputError("x"), 2),
            (ManifestError([]), 2),
            (ModelError("x"), 4),
            (StoreError("x"), 5),
            (StoreFullError("x"), 5),
            (JobConflictError("x"), 6),
            (NotFoundError("x"), 7),
            (LedgerError("x"), 9),
            (Interrupted("x"), 130),
            (KeyboardInterrupt(), 130),
            (RuntimeError("x"), 1),
        ],
    )
    @pytest.mark.parametrize("flags", [(), ("--json",)])
    def test_exit_codes(self, run, monkeypatch, tmp_path, error, code, flags):
        def fail(*_args, **_options):
            raise error

        monkeypatch.delenv("SDBATCH_DEBUG", raising=False)
        monkeypatch.setattr("jobs.manifest.load.load_manifest", fail)
        found, out, err = run("plan", *flags, write(tmp_path, GOOD))
        assert found == exit_code(error) == code
        assert "Traceback" not in err
        if flags:
            assert json.loads(out)["exit_code"] == code

    def test_debug_shows_where(self, run, monkeypatch, tmp_path):
        def fail(*_args, **_options):
            raise RuntimeError("oops")

        monkeypatch.setenv("SDBATCH_DEBUG", "1")
        monkeypatch.setattr("jobs.manifest.load.load_manifest", fail)
        with pytest.raises(RuntimeError, match="oops"):
            run("plan", write(tmp_path, GOOD))

    def test_control_characters_do_not_reach_the_terminal(self, run, tmp_path):
        path = write(tmp_path, 'version: 1\nprompts: [{prompt: a, "\\e[2J": 1}]', "\x1b[2J.yaml")
        _, _, err = run("validate", path)
        assert "\x1b" not in err

    def test_names_that_are_no_unicode(self, run, tmp_path):
        path = write(tmp_path, GOOD, os.fsdecode(b"caf\xe9.yaml"))
        assert run("validate", "--json", path)[0] == 0


class TestProgress:
    @pytest.fixture
    def terminal(self):
        terminal = Terminal(json=False)
        terminal.err = Console(file=io.StringIO(), force_terminal=True, width=80)
        return terminal

    def test_shown_on_a_terminal_for_what_takes_long(self, terminal, monkeypatch):
        monkeypatch.setattr("jobs.terminal.console.SHOW_PROGRESS_AFTER_S", 0.0)
        with terminal.counting("reading", total=10) as tick:
            tick(4)
        assert "reading" in terminal.err.file.getvalue()
        assert "4/10" in terminal.err.file.getvalue()

    def test_not_shown_for_what_is_quick(self, terminal, monkeypatch):
        monkeypatch.setattr("jobs.terminal.console.SHOW_PROGRESS_AFTER_S", 1e9)
        with terminal.counting("reading", total=10) as tick:
            tick(4)
        assert terminal.err.file.getvalue() == ""

    def test_not_shown_in_a_pipe(self, monkeypatch):
        monkeypatch.setattr("jobs.terminal.console.SHOW_PROGRESS_AFTER_S", 0.0)
        terminal = Terminal(json=False)
        terminal.err = Console(file=io.StringIO())
        with terminal.counting("reading", total=10) as tick, terminal.status("waiting"):
            tick(4)
        assert terminal.err.file.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (29_200, "29.2 kB"), (3e6, "3 MB"), (5e15, "5e+03 TB")],
)
def test_size(count, text):
    assert size(count) == text


class TestProcess:
    """What needs a process of its own."""

    def test_no_colour_in_a_pipe(self, tmp_path):
        done = shell("validate", write(tmp_path, "version: 1"))
        assert done.returncode == 2
        assert "\x1b" not in done.stderr

    def test_reader_that_goes_away(self, tmp_path):
        command = f"{sys.executable} -m jobs.cli schema | head -c 1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.stdout.endswith("0\n")
        assert done.stderr == ""

    def test_full_disk_behind_stdout(self):
        with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
            done = subprocess.run(
                [sys.executable, "-m", "jobs.cli", "schema"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == "error: the output cannot be written: no space left on device\n"

    @pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
    def test_texts_that_the_terminal_cannot_show(self, tmp_path, encoding):
        path = write(tmp_path, GOOD.replace("a star", "größer 猫"), os.fsdecode(b"caf\xe9.yaml"))
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        for command in ("validate", "plan"):
            done = shell(command, path, env=environment, encoding="utf-8", errors="replace")
            assert (done.returncode, done.stderr) == (0, "")
