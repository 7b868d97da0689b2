"""Image files: their pixels, the text other tools read, and the record that comes back whole."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.image_settings import IMAGE_SETTINGS
from jobs.manifest.lora_tags import split_tags
from jobs.pictures.embedded import read_record
from jobs.task import LoraUse, VaeUse
from tests.jobs.pictures.files_by_hand import png
from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.output.a1111 import a1111_text
from worker.output.encode import encode_image
from worker.output.record import ModelInfo, image_record, record_from_image, record_line

FORMATS = ["png", "jpeg", "webp"]
PROMPTS = [
    "a red circle",
    "",
    "Grüße aus Köln",
    "赤い円、青い背景 🎨",
    'quotes " and \\ and <b>&amp;</b> ]]> </sdbatch:record>',
    "two\nlines: with, commas",
    "\u0000 \u0007 \ufffe \u2028",
    "\ud800 half a pair",
]


def a_record(**changes: Any) -> dict[str, Any]:
    return image_record(a_task(**changes), MODEL, RENDER)


def parse_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and parameters, found the way the web UI's documentation says: the
    last line is `name: value` pairs apart by commas, a value may be a JSON string.
    """
    *lines, last = text.strip().split("\n")
    words: dict[str, list[str]] = {"prompt": [], "negative": []}
    part = "prompt"
    for line in lines:
        if line.startswith("Negative prompt:"):
            part, line = "negative", line.removeprefix("Negative prompt:")
        words[part].append(line.strip())
    pair = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    values = {name: json.loads(v) if v.startswith('"') else v for name, v in pair.findall(last)}
    return "\n".join(words["prompt"]), "\n".join(words["negative"]), values


def comment_of(data: bytes) -> str:
    """The EXIF UserComment, as other readers decode it."""
    with Image.open(io.BytesIO(data)) as image:
        raw = image.getexif().get_ifd(0x8769)[0x9286]
    assert raw.startswith(b"UNICODE\0")
    return raw[8:].decode("utf-16-be")


def test_a1111_text_of_txt2img():
    record = a_record(prompt="a fox", negative="blurry, dark", width=512, height=768, seed=42)
    assert a1111_text(record) == (
        "a fox\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 50, Sampler: PLMS, CFG scale: 7.5, Seed: 42, Size: 512x768, "
        "Model hash: 5a5a5a5a5a, Model: demo, RNG: CPU, Version: sdbatch"
    )


def test_a1111_text_of_img2img():
    record = a_record(init_image="ff.png", strength=0.5, guidance=7.0, sampler="ddim", eta=0.25)
    text = a1111_text(record)
    assert "Denoising strength: 0.5, Eta DDIM: 0.25," in text
    assert "CFG scale: 7," in text
    assert "Denoising" not in a1111_text(a_record())
    assert "Negative prompt" not in text


@pytest.mark.parametrize(
    ("weight", "text_weight", "tag"),
    [
        (1.0, 1.0, "<lora:ink:1>"),
        (-0.5, -0.5, "<lora:ink:-0.5>"),
        (0.8, 0.25, "<lora:ink:0.25:0.8>"),
        (0.3, 0.0, "<lora:ink:0:0.3>"),
    ],
)
def test_a1111_tags_of_loras(weight: float, text_weight: float, tag: str):
    task = dataclasses.replace(
        a_task(), loras=(LoraUse("ink", "ab" * 32, weight, text_weight),) * 2
    )
    text = a1111_text(image_record(task, MODEL, RENDER))
    assert parse_a1111(text)[0] == f"{task.prompt} {tag} {tag}"
    _, (again, _) = split_tags(f"a {tag} {tag}")
    assert (again.weight, again.text_weight) == (weight, text_weight)


def test_a1111_vae():
    task = dataclasses.replace(a_task(), vae=VaeUse("soft", "ab" * 32))
    record = image_record(task, MODEL, RENDER)
    assert record["vae"] == {"name": "soft", "sha256": "ab" * 32}
    assert "VAE hash: ababababab, VAE: soft," in a1111_text(record)


def test_a1111_sampler_names():
    karras = a1111_text(a_record(sampler="dpmpp_2m", karras=True))
    uniform = a1111_text(a_record(sampler="dpmpp_2m"))
    assert "Sampler: DPM++ 2M, Schedule type: Karras," in karras
    assert "Sampler: DPM++ 2M, Schedule type: Uniform," in uniform
    assert "Schedule" not in a1111_text(a_record(sampler="plms"))


def test_a1111_quotes_values():
    model = ModelInfo('my: "best", model', "0" * 64, "x.ckpt")
    text = a1111_text(image_record(a_task(), model, RENDER))
    assert 'Model: "my: \\"best\\", model", RNG' in text
    assert parse_a1111(text)[2]["Model"] == 'my: "best", model'


@pytest.mark.parametrize(
    ("value", "text"), [("trailing", "trailing"), (True, "True"), (3.0, "3"), (0.25, "0.25")]
)
def test_a1111_values_of_added_settings(monkeypatch, value: object, text: str):
    setting = dataclasses.replace(IMAGE_SETTINGS["steps"], webui="Added")
    monkeypatch.setattr("worker.output.a1111.IMAGE_SETTINGS", {"added": setting})
    assert parse_a1111(a1111_text({**a_record(), "added": value}))[2]["Added"] == text


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS[:4] + PROMPTS[5:6])
def test_a1111_round_trip(format: str, prompt: str):
    record = a_record(prompt=prompt, negative="dark, blurry", seed=2**64 - 1, format=format)
    data = encode_image(pixels(), record, format, 90)
    if format == "png":
        with Image.open(io.BytesIO(data)) as image:
            text = image.info["parameters"]
    else:
        text = comment_of(data)
    found, negative, values = parse_a1111(text)
    assert (found, negative) == (prompt, "dark, blurry")
    assert values["Seed"] == str(2**64 - 1)
    assert values["Size"] == "64x64"
    assert values["Model hash"] == MODEL.digest[:10]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_record_comes_back(format: str, prompt: str):
    record = a_record(prompt=prompt, negative=prompt[::-1], seed=2**64 - 1, format=format)
    assert read_record(encode_image(pixels(), record, format, 90)) == record


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.sampled_from(FORMATS))
def test_record_comes_back_whatever_the_prompt(prompt: str, format: str):
    record = a_record(prompt=prompt, format=format)
    assert read_record(encode_image(pixels(width=64), record, format, 90)) == record


@pytest.mark.parametrize("format", FORMATS)
def test_same_input_same_bytes(format: str):
    record = a_record(prompt="Grüße 赤", format=format)
    assert encode_image(pixels(), record, format) == encode_image(pixels(), record, format)
    assert encode_image(pixels(), record, format) != encode_image(pixels(1), record, format)


@pytest.mark.parametrize("format", FORMATS)
def test_pixels_come_back(format: str):
    data = encode_image(pixels(width=72), a_record(width=72, format=format), format)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format or "").lower() == format
        assert image.size == (72, 64)
        found = np.asarray(image.convert("RGB")).astype(int)
    difference = np.abs(found - pixels(width=72))
    assert difference.max() <= (0 if format == "png" else 16)
    assert difference.mean() < 2


def test_exif_is_understood_by_an_independent_reader():
    piexif = pytest.importorskip("piexif")
    helper = pytest.importorskip("piexif.helper")
    for format in ("jpeg", "webp"):
        data = encode_image(pixels(), a_record(prompt="Grüße 赤"), format)
        with Image.open(io.BytesIO(data)) as image:
            found = piexif.load(image.info["exif"])["Exif"][piexif.ExifIFD.UserComment]
        assert helper.UserComment.load(found).startswith("Grüße 赤\nSteps: 50,")


@pytest.mark.parametrize(("format", "fits"), [("png", True), ("webp", True), ("jpeg", False)])
def test_very_long_prompt(format: str, fits: bool):
    record = a_record(prompt="word " * 20_000, format=format)
    if fits:
        assert read_record(encode_image(pixels(), record, format)) == record
    else:
        with pytest.raises(ValueError, match=r"too long for a JPEG.*use format png or webp"):
            encode_image(pixels(), record, format)


def test_long_prompt_in_jpeg():
    record = a_record(prompt="word " * 5_000, format="jpeg")
    assert read_record(encode_image(pixels(), record, "jpeg")) == record


def test_wrong_pixels_and_formats():
    with pytest.raises(ValueError, match=r"float64 \(64, 64, 3\)"):
        encode_image(pixels().astype(float), a_record(), "png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8 \(64, 64\)"):
        encode_image(pixels()[..., 0], a_record(), "png")
    with pytest.raises(ValueError, match="'gif' is unknown; png, jpeg or webp"):
        encode_image(pixels(), a_record(), "gif")


def other_png(**texts: str) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.fromarray(pixels()).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no readable image"),
        (b"hello", "no readable image"),
        (other_png()[:40], "no readable image"),
        (png((20_000, 20_000), 8, 2, b""), "no readable image"),
        (other_png(parameters="a fox\nSteps: 50"), "holds no record of sdbatch"),
        (other_png(sdbatch="{"), "damaged"),
        (other_png(sdbatch="[1]"), "damaged"),
    ],
)
def test_files_without_a_record(data: bytes, message: str):
    with pytest.raises(ValueError, match=message):
        read_record(data)


def test_a_record_names_nothing_private():
    for source, public in [
        ("/home/me/models/sd.ckpt", "sd.ckpt"),
        ("C:\\Users\\me\\sd.ckpt", "sd.ckpt"),
        ("../elsewhere/folder/", "folder"),
        ("s3://bucket/models/sd.safetensors", "sd.safetensors"),
        ("https://host/sd.ckpt?X-Amz-Signature=secret", "sd.ckpt"),
        ("demo", "demo"),
        ("hf:owner/name@main", "hf:owner/name@main"),
    ]:
        record = image_record(a_task(), ModelInfo("m", "0" * 64, source, "abc"), RENDER)
        assert record["model"]["source"] == public
        assert record["model"]["revision"] == "abc"


def test_a_lost_line_is_rebuilt_from_the_image():
    record = a_record(index=7, seed=0)
    data = encode_image(pixels(), record, "png")
    timings_s = {"render": 1.25}
    line = record_line(record, "images/x.png", data, timings_s=timings_s, finished="2025-01-01")
    rebuilt = record_from_image(data, "images/x.png")
    assert line == rebuilt | {"timings_s": timings_s, "finished": "2025-01-01"}
    assert (line["index"], line["seed"], line["bytes"]) == (7, 0, len(data))


def test_no_torch_is_needed():
    code = "import sys, worker.output.finish; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
