"""Pictures of this and other programs become a manifest that draws them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.errors import ExitCode, InputError
from jobs.importing.read import read_picture
from jobs.manifest.load import load_manifest
from tests.commands import run_command
from tests.worker.samples import MODEL, RENDER, a_task
from worker.output.encode import encode_image
from worker.output.record import image_record

WEBUI = """\
a (red:1.2) circle, <lora:ink:0.8>
on blue
Negative prompt: blurry, ugly
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1234567890123, Size: 512x640, \
Model hash: 0123456789, Model: dreamy, Clip skip: 2, Lora hashes: "ink: abc", Version: v1.10.1"""

COMFY = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 77,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text", "clip": ["4", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}

LINKS = {
    "links": [
        [1, 4, 0, 3, 0, "MODEL"],
        [2, 6, 0, 3, 1, "CONDITIONING"],
        [3, 7, 0, 3, 2, "CONDITIONING"],
        [4, 5, 0, 3, 3, "LATENT"],
        [5, 4, 1, 6, 0, "CLIP"],
        [6, 4, 1, 7, 0, "CLIP"],
    ]
}

INVOKE = {
    "app_version": "3.5.0",
    "positive_prompt": "a lake",
    "negative_prompt": "people",
    "width": 512,
    "height": 768,
    "seed": 42,
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "euler_a",
    "model": {"model_name": "stable-diffusion-v1-5", "base_model": "sd-1"},
}


def picture(path: Path, size: tuple[int, int] = (64, 64), **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", size).save(path, pnginfo=info)
    return path


def read(path: Path) -> tuple[dict[str, Any], Any]:
    found = read_picture(path.read_bytes())
    return dict(found.entry), found


def test_of_the_web_ui(tmp_path: Path):
    entry, found = read(picture(tmp_path / "a.png", parameters=WEBUI))
    assert entry == {
        "prompt": "a (red:1.2) circle, <lora:ink:0.8>\non blue",
        "negative": "blurry, ugly",
        "syntax": "a1111",
        "seed": 1234567890123,
        "steps": 25,
        "guidance": 6.5,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "width": 512,
        "height": 640,
        "noise": "gpu",
        "clip_skip": 2,
    }
    assert (found.by, found.model) == ("AUTOMATIC1111", "dreamy")


def test_of_comfyui(tmp_path: Path):
    texts = {"prompt": json.dumps(COMFY), "workflow": json.dumps(LINKS)}
    entry, found = read(picture(tmp_path / "a.png", (512, 512), **texts))
    assert found.by == "ComfyUI"
    assert entry["prompt"] == "a fox"
    assert entry["negative"] == "text"
    assert (entry["seed"], entry["steps"], entry["guidance"]) == (77, 20, 8.0)
    assert (entry["sampler"], entry["schedule"]) == ("dpmpp_2m", "karras")
    assert (entry["width"], entry["height"]) == (512, 512)


def test_of_invokeai(tmp_path: Path):
    text = json.dumps(INVOKE)
    entry, found = read(picture(tmp_path / "a.png", (512, 768), invokeai_metadata=text))
    assert (found.by, found.model) == ("InvokeAI", "stable-diffusion-v1-5")
    assert (entry["prompt"], entry["negative"]) == ("a lake", "people")
    assert (entry["sampler"], entry["steps"], entry["seed"]) == ("euler_a", 30, 42)
    assert "syntax" not in entry  # its weights are written in another way


def test_our_own_picture_is_drawn_again_as_the_same(tmp_path: Path):
    task = a_task(
        0,
        prompt="a ring",
        negative="blurry",
        seed=2**63 + 5,
        sampler="dpmpp_2m",
        steps=7,
        guidance=3.5,
        schedule="karras",
        clip_skip=2,
        meta=(("sku", "7"),),
    )
    record = image_record(task, MODEL, RENDER)
    path = tmp_path / "ours.png"
    path.write_bytes(encode_image(np.zeros((64, 64, 3), np.uint8), record, "png"))
    done = run_command(["import", str(path), "--output", str(tmp_path / "again.yaml")], {})
    assert done.returncode == ExitCode.DONE, done.stderr
    (again,) = load_manifest(tmp_path / "again.yaml").tasks()
    assert again.canonical() == task.canonical()
    assert again.meta == task.meta


def test_what_all_have_alike_is_said_once(tmp_path: Path):
    paths = [
        picture(tmp_path / f"{seed}.png", parameters=WEBUI.replace("1234567890123", str(seed)))
        for seed in (1, 2)
    ]
    done = run_command(["import", *map(str, paths), "--name", "mine", "--model", "sd"], {})
    assert done.returncode == ExitCode.DONE, done.stderr
    document = yaml.safe_load(done.stdout)
    assert (document["name"], document["model"]) == ("mine", "sd")
    assert document["defaults"]["sampler"] == "dpmpp_2m"
    assert [entry["seed"] for entry in document["prompts"]] == [1, 2]
    assert set(document["prompts"][0]) == {"prompt", "negative", "seed"}
    assert "# 1.png, by AUTOMATIC1111, model dreamy" in done.stdout
    assert "# its LoRA must be in the model list" in done.stdout
    assert "before it can be run: prompts[0].prompt: LoRA 'ink' is not known" in done.stderr


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (("DPM++ 2M Karras", "Brand New"), "its sampler, Brand New, is not here"),
        (("512x640", "510x640"), "its width, 510 pixels, cannot be made"),
        (("Seed: 1234567890123", "Seed: -5"), "it does not say its seed"),
        (("Clip skip: 2", "Denoising strength: 0.4"), "it was made from a picture"),
    ],
)
def test_what_an_entry_does_not_say_is_told(tmp_path: Path, change, note: str):
    _, found = read(picture(tmp_path / "a.png", parameters=WEBUI.replace(*change)))
    assert any(note in told for told in found.notes)


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"parameters": "nothing of use"},
        {"prompt": "{"},
        {"prompt": "[" * 5000},
        {"invokeai_metadata": "[]"},
        {"invokeai_metadata": '{"scheduler": {}, "seed": []}'},
        {"parameters": "x\nSteps: a, Sampler: , CFG scale: nan, Seed: " + "9" * 5000},
    ],
)
def test_a_picture_that_does_not_say(tmp_path: Path, texts: dict[str, str]):
    path = picture(tmp_path / "a.png", **texts)
    done = run_command(["import", str(path)], {})
    if done.returncode == ExitCode.DONE:  # as far as it can be read, it is a good manifest
        assert yaml.safe_load(done.stdout)["version"] == 1
        return
    assert done.returncode == ExitCode.BAD_INPUT
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path):
    (tmp_path / "none.png").write_bytes(b"no picture")
    picture(tmp_path / "bare.png")
    done = run_command(["import", *(str(tmp_path / n) for n in ("none.png", "bare.png"))], {})
    assert done.returncode == ExitCode.BAD_INPUT
    assert "no readable image" in done.stderr
    assert "bare.png: it does not say how it was made" in done.stderr


def test_a_prompt_stays_a_text(tmp_path: Path):
    hostile = "a: {b: [c}\n# d\n- e\n\u2028*f &g !h"
    text = f"{hostile}\nSteps: 5, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"
    path = picture(tmp_path / "a\nb.png", parameters=text)
    done = run_command(["import", str(path)], {})
    assert done.returncode == ExitCode.DONE, done.stderr
    assert yaml.safe_load(done.stdout)["prompts"][0]["prompt"].startswith("a: {b: [c}\n# d\n- e")


def test_a_file_that_is_there_stays(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("mine")
    path = picture(tmp_path / "a.png", parameters=WEBUI)
    done = run_command(["import", str(path), "--output", str(tmp_path / "mine.yaml")], {})
    assert done.returncode == ExitCode.BAD_INPUT
    assert "is there already" in done.stderr
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_without_the_library_it_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sd_parsers", None)
    with pytest.raises(InputError, match=r"pip install 'sdbatch\[import\]'"):
        read(picture(tmp_path / "a.png", parameters=WEBUI))
