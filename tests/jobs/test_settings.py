"""Settings from the environment."""

from __future__ import annotations

import pytest

import jobs.models
from jobs.errors import ExitCode, InputError, ManifestError
from jobs.models import MergedLora, ModelSource, load_models
from jobs.settings import Settings, debugging
from tests.jobs.manifests import write

DIGEST = "ab" * 32


def test_defaults():
    assert Settings.from_env({}) == Settings(models={}, store="out", device="auto", dtype="auto")


def test_values(tmp_path):
    path = write(tmp_path, f"a: hf:owner/a\nb: {{source: b.ckpt, digest: {DIGEST}}}\n")
    settings = Settings.from_env(
        {
            "SDBATCH_MODELS": str(path),
            "SDBATCH_STORE": "jobs",
            "SDBATCH_DEVICE": "cuda:1",
            "SDBATCH_DTYPE": "bfloat16",
            "SDBATCH_EXECUTION": "eager",
            "OTHER": "x",
        }
    )
    assert (settings.store, settings.device, settings.dtype) == ("jobs", "cuda:1", "bfloat16")
    assert settings.execution == "eager"
    assert settings.model("a") == ModelSource("hf:owner/a")
    assert settings.model("b") == ModelSource(str(tmp_path / "b.ckpt"), DIGEST)
    assert settings.model("demo") == ModelSource("demo")


def test_paths_below_a_home_in_the_model_list(tmp_path, monkeypatch):
    """They are relative to nothing, and what loads models knows whose home it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, "a: ~/a.ckpt\nb: {source: ~/b/}\nc: ~c.ckpt\n")
    settings = Settings.from_env({"SDBATCH_MODELS": f"~/{path.name}"})
    assert settings.model("a") == ModelSource("~/a.ckpt")
    assert settings.model("b") == ModelSource("~/b/")
    assert settings.model("c") == ModelSource(str(tmp_path / "~c.ckpt"))
    with pytest.raises(InputError, match="cannot be read: no such file"):
        Settings.from_env({"SDBATCH_MODELS": "~nobody-of-this-name/list.yaml"})


def test_what_a_worker_tells_the_world():
    settings = Settings.from_env(
        {
            "SDBATCH_METRICS": "[::1]:9400",
            "SDBATCH_LOG": "json",
            "SDBATCH_CACHE": "/var/cache/models",
            "SDBATCH_WEBHOOK_SECRET": "s3cret",
            "SDBATCH_WEBHOOK_PRIVATE": "1",
        }
    )
    assert settings.metrics == ("::1", 9400)
    assert (settings.log, str(settings.cache)) == ("json", "/var/cache/models")
    assert (settings.webhook_secret, settings.webhook_private) == ("s3cret", True)
    assert "s3cret" not in repr(settings)


def test_empty_is_not_set():
    assert Settings.from_env({"SDBATCH_STORE": "", "SDBATCH_MODELS": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SDBATCH_DEVICE", "gpu", "found 'gpu', expected auto, cpu, cuda or cuda:<number>"),
        ("SDBATCH_DTYPE", "fp16", "found 'fp16', expected one of auto, float32, bfloat16, float16"),
        (
            "SDBATCH_EXECUTION",
            "fast",
            "found 'fast', expected one of auto, eager, packed, fused, graphed, compiled",
        ),
        ("SDBATCH_LORA_MIB", "0", "found '0', expected MiB within 1 to 1024"),
        ("SDBATCH_LORA_MIB", "1e3", "found '1e3', expected MiB within 1 to 1024"),
        ("SDBATCH_LOG", "xml", "found 'xml', expected one of text, json"),
        ("SDBATCH_METRICS", "9400", "found '9400', expected host:port, such as 127.0.0.1:9400"),
        ("SDBATCH_METRICS", "h:0", "found 'h:0', expected host:port, such as 127.0.0.1:9400"),
        ("SDBATCH_MODELS", "nope.yaml", "nope.yaml cannot be read: no such file or directory"),
        ("SDBATCH_MODELS", "/dev/zero", "/dev/zero cannot be read: it is not a regular file"),
        ("SDBATCH_MODELS", "/", "/ cannot be read: it is a folder"),
        (
            "SDBATCH_CACHE",
            "s3://bucket/cache",
            "a folder named s3: is an address that lost a slash (pathlib takes it away); give "
            "s3:// as a text",
        ),
    ],
)
def test_errors_name_the_variable(variable, value, expected):
    with pytest.raises(InputError) as caught:
        Settings.from_env({variable: value})
    assert str(caught.value) == f"{variable}: {expected}"
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 5", ":1:4: a: found 5, expected a source"),
        ("a:", ":1:3: a: found nothing, expected a source"),
        ("a: x\nb: {digest: y}", ":2:4: b: found a mapping, expected a source"),
        (f"a: {{source: x, digest: {'AB' * 32}}}", "digest: 64 hex digits"),
        ("a: {source: x, url: y}", "a: found a mapping"),
        ("- a", ":1:1: a list is at the top level"),
        ("a: x\na: y", ":2:1: a: key 'a' is already there"),
        ("a: [", "is not YAML"),
        ("loras: [a]", ":1:8: loras: found a list, expected a mapping of names to files, or a "),
        ("loras: gone", ":1:8: loras: 'gone' cannot be read: it is no folder"),
        (
            "a: {source: x, loras: y}",
            ":1:4: a: its loras are 'y'; expected a list of files, or of {s",
        ),
        ("a: {source: x, prediction: x0}", "zero_snr: true or false}"),
        ("a: {source: x, zero_snr: 1}", "prediction: auto, epsilon or v, zero_snr: true or false}"),
        ("loras: {a: {source: x, prediction: v}}", "loras.a: found a mapping, expected a source"),
        ("a: {source: x, loras: [{weight: 1}]}", ":1:4: a: its loras are a list; expected a list"),
        ("a: {source: x, loras: [{source: y, weight: 101}]}", "a: its loras are a list"),
        ("loras: {a: {source: x, loras: [y]}}", "loras.a: found a mapping, expected a source"),
        ("loras: {a: 5}", ":1:12: loras.a: found 5, expected a source (a file, hf:owner/name/file"),
    ],
)
def test_mistakes_in_the_model_list(tmp_path, text, place):
    path = write(tmp_path, text)
    with pytest.raises(ManifestError) as caught:
        load_models(path)
    assert str(path) in str(caught.value)
    assert place in str(caught.value)


def test_loras_of_the_model_list(tmp_path):
    path = write(
        tmp_path,
        f"""\
a: a.ckpt
loras:
  ink: loras/ink.safetensors
  pen: {{source: hf:owner/pens/pen.pt@main, digest: {DIGEST}}}
""",
    )
    settings = Settings.from_env({"SDBATCH_MODELS": str(path)})
    assert list(settings.models) == ["a"]
    assert settings.loras == {
        "ink": ModelSource(str(tmp_path / "loras" / "ink.safetensors")),
        "pen": ModelSource("hf:owner/pens/pen.pt@main", DIGEST),
    }


def test_loras_that_are_merged_into_a_model(tmp_path):
    text = """\
loras: {ink: hf:owner/inks/ink.safetensors}
a:
  source: a.ckpt
  loras: [b/loha.safetensors, {source: ink, weight: 0.5}, {source: "s3://b/c.pt", text_weight: 0}]
"""
    assert load_models(write(tmp_path, text)).models["a"].loras == (
        MergedLora(str(tmp_path / "b/loha.safetensors")),
        MergedLora("hf:owner/inks/ink.safetensors", 0.5, 0.5),
        MergedLora("s3://b/c.pt", 1.0, 0.0),
    )


def test_predictions_of_models(tmp_path):
    text = "a: {source: a.ckpt, prediction: v, zero_snr: true}\nb: b.ckpt"
    models = load_models(write(tmp_path, text)).models
    assert (models["a"].prediction, models["a"].zero_snr) == ("v", True)
    assert (models["b"].prediction, models["b"].zero_snr) == ("auto", None)


def test_a_folder_of_loras_in_the_model_list(tmp_path):
    for name in ("ink.safetensors", "a b/Pen (v2).PT", "x/twice.pt", "y/twice.ckpt", "note.txt"):
        write(tmp_path, "", f"loras/{name}")
    write(tmp_path, "", "elsewhere/far.pth")
    for name, target in (("loop", "loras"), ("linked", "elsewhere")):
        (tmp_path / "loras" / name).symlink_to(tmp_path / target)
    settings = Settings.from_env({"SDBATCH_MODELS": str(write(tmp_path, "loras: loras"))})
    assert {name: one.source for name, one in settings.loras.items()} == {
        name: str(tmp_path / "loras" / path)
        for name, path in {
            "ink": "ink.safetensors",
            "Pen (v2)": "a b/Pen (v2).PT",
            "x/twice": "x/twice.pt",
            "far": "linked/far.pth",
            "y/twice": "y/twice.ckpt",
        }.items()
    }


def test_a_folder_of_loras_that_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.models, "MOST_IN_FOLDER", 1)
    for name in ("a.pt", "b.pt"):
        write(tmp_path, "", f"home/{name}")
    with pytest.raises(ManifestError, match="'home' cannot be read: it holds more than 1 files"):
        load_models(write(tmp_path, "loras: home"))


@pytest.mark.parametrize(
    ("given", "bytes_"), [({}, 512 * 2**20), ({"SDBATCH_LORA_MIB": "3"}, 3 * 2**20)]
)
def test_largest_lora(given, bytes_):
    assert Settings.from_env(given).lora_bytes == bytes_


def test_the_model_list_itself_in_the_environment(monkeypatch, tmp_path):
    listed = f'{{"a": "hf:owner/a", "b": {{"source": "b.ckpt", "digest": "{DIGEST}"}}}}'
    settings = Settings.from_env({"SDBATCH_MODELS": f" {listed}"})
    assert settings.model("a") == ModelSource("hf:owner/a")
    assert settings.model("b") == ModelSource("b.ckpt", DIGEST)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 5}', "SDBATCH_MODELS:1:7: a: found 5, expected a source"),
        ('{"a": "x", "a": "y"}', "SDBATCH_MODELS:1:12: a: key 'a' is already there"),
        ('{"a": ', "SDBATCH_MODELS"),
    ],
)
def test_mistakes_in_a_list_in_the_environment(text, said):
    with pytest.raises(ManifestError) as caught:
        Settings.from_env({"SDBATCH_MODELS": text})
    assert str(caught.value).startswith(said)


def test_stores_that_a_worker_may_use():
    assert Settings.from_env({}).stores == ()
    settings = Settings.from_env({"SDBATCH_STORES": " s3://bucket/jobs  /data/jobs "})
    assert settings.stores == ("s3://bucket/jobs", "/data/jobs")


def test_unknown_model(tmp_path):
    settings = Settings(models={"sd-v1-4": ModelSource("x")})
    with pytest.raises(InputError, match="did you mean 'sd-v1-4'"):
        settings.model("sd-v1-5")
    with pytest.raises(InputError, match="known are demo, sd-v1-4"):
        settings.model("other")


@pytest.mark.parametrize(("value", "expected"), [("", False), ("0", False), ("1", True)])
def test_debugging(value, expected):
    assert debugging({"SDBATCH_DEBUG": value}) is expected
    assert debugging({}) is False
