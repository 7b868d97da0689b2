"""What reads bytes that anybody may have written, each with sound samples of them."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from jobs.errors import InputError, SdbatchError
from jobs.folder.layout import JobFolder, JobKeys
from jobs.folder.plan import PlanReader
from jobs.folder.records import read_records
from jobs.ledger.types import Shard
from jobs.manifest.load import load_manifest
from jobs.pictures.embedded import read_record
from jobs.queue.messages import from_message, to_message
from jobs.storage import LocalStore
from jobs.task import Task
from sd_core.engine.model_runner import table_of
from sd_core.engine.request import Request
from sd_core.engine.snapshot import StateError, load_trajectory, save_trajectory
from sd_core.sampling.noise import draw_noise, generator_for
from sd_core.sampling.step_table import MOST_HISTORY
from sd_core.sampling.trajectory import Trajectory, from_noise
from sd_core.spec import ModelSpec, Sampling
from sd_core.weights.configs import compvis_spec, diffusers_text, diffusers_unet, diffusers_vae
from sd_core.weights.errors import CheckpointError
from sd_core.weights.export import text_config, unet_config, vae_config
from sd_core.weights.open import open_checkpoint
from sd_core.weights.single_file import read_weights
from sd_core.weights.tokenizer_files import read_tokenizer
from tests.fuzz.mutations import damaged, odd_json
from tests.sd_core.small import ODD
from tests.sd_core.weights.test_single_file import original_config
from tests.worker.samples import MODEL, RENDER, a_task, pixels
from worker.output.encode import encode_image
from worker.output.record import image_record, record_line
from worker.render.inputs import Inputs

KEYS = JobKeys("job")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Target:
    """cases: of bytes. read: takes them and a folder of its own; errors: what it may raise."""

    cases: st.SearchStrategy[bytes]
    read: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]


def _json_lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode("utf-8", "surrogatepass") + b"\n" for row in rows)


def _lines(samples: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Lines of JSON, odd ones among them; or their bytes, damaged."""
    odd = st.lists(odd_json(samples) | st.sampled_from(samples), min_size=1, max_size=4)
    return odd.map(_json_lines) | damaged([_json_lines(samples)])


# Manifests and the files that they name

MANIFEST = {
    "version": 1,
    "name": "fuzz",
    "model": "demo",
    "defaults": {"sampler": "plms", "steps": 5, "guidance": 2, "width": 64, "height": 64},
    "prompts": [
        "a red circle",
        {"prompt": "a star", "seeds": [1, 2], "guidance": 1.5, "negative": "blue"},
        {"prompt": "a ring", "seeds": {"start": 3, "count": 4}, "karras": True, "sampler": "lms"},
        {"prompt": "a cross", "init_image": "picture.png", "mask": "picture.png", "strength": 0.5},
        {"file": "rows.csv"},
    ],
    "matrix": {"steps": [2, 3], "guidance": [1, 2]},
    "output": {"store": "out", "format": "png", "name": "{index:06d}-s{seed}"},
}
YAML = b"""\
version: 1
name: fuzz
defaults: &all {steps: 5, width: 64, height: 64}
prompts:
  - a red circle  # and more
  - "quoted: text"
  - prompt: |
      several
      lines
    <<: *all
  - {prompt: a star, seeds: {start: 1, count: 3}, meta: 1}
matrix: {seed: [1, 2]}
"""
TASKS_READ = 200


def _read_manifest(data: bytes, folder: Path) -> None:
    (folder / "rows.csv").write_bytes(CSV)
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    _load(folder, data)


def _load(folder: Path, manifest: bytes) -> None:
    path = folder / "job.yaml"
    path.write_bytes(manifest)
    for _, task in zip(range(TASKS_READ), load_manifest(path).tasks(), strict=False):
        task.canonical_json()


CSV = b'prompt,seed,guidance,negative\n"a red, circle",1,2.5,\na star,2,,"no ""blue"""\n'
SEMICOLONS = '\ufeffPrompt;seed\r\n"ein Kreis; groß";1.0\r\n'.encode()
LINES = b'a red circle\n--prompt "a star" --seed 5 --steps 3\n# nothing\n'
ROWS = [{"prompt": "a red circle", "seed": 1}, {"prompt": "a star", "guidance": 2, "steps": 3}]


def _rows(extension: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        (folder / f"rows.{extension}").write_bytes(data)
        _load(folder, b"version: 1\nprompts: [{file: rows." + extension.encode() + b"}]\n")

    return read


# What a worker reads from the store and the queue


def _tasks() -> list[Task]:
    name = f"{'5a' * 32}.png"
    return [
        a_task(0),
        a_task(1, sampler="ddim", eta=0.5, guidance=1.0),
        a_task(2, init_image=name, mask=name, strength=0.25),
        a_task(3, sampler="dpmpp_2m", karras=True, format="webp"),
    ]


def _read_plan(data: bytes, folder: Path) -> None:
    store = LocalStore(folder)
    store.put(KEYS.plan_part(0), data)
    for _ in PlanReader(JobFolder(store, KEYS)).tasks([0, 1, 2, 3]):
        pass


def _read_message(data: bytes, _folder: Path) -> None:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):  # Celery's part
        return
    from_message(message)


def _records() -> list[dict[str, Any]]:
    return [
        record_line(
            image_record(task, MODEL, RENDER),
            f"images/{task.index}.png",
            b"data",
            timings_s={"render": 1.0, "encode": 0.1, "put": 0.1},
            finished="2026-01-01T00:00:00+00:00",
        )
        for task in _tasks()
    ]


def _read_records(data: bytes, folder: Path) -> None:
    store = LocalStore(folder)
    store.put(KEYS.records(0), data)
    for _ in read_records(JobFolder(store, KEYS)):
        pass


# Images


def _files(*pictures: Image.Image) -> list[bytes]:
    files = []
    for picture in pictures:
        for format in ("PNG", "JPEG", "WEBP"):
            if format != "PNG" and picture.mode not in ("RGB", "L"):
                continue
            buffer = io.BytesIO()
            exif = Image.Exif()
            exif[0x0112], exif[0x0132] = 6, "2026:01:01 00:00:00"
            picture.save(buffer, format, exif=exif)
            files.append(buffer.getvalue())
    return files


@cache
def _pictures() -> list[bytes]:
    picture = Image.fromarray(pixels(0, 24, 16))
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    return _files(
        picture, picture.convert("L"), picture.convert("P"), picture.convert("RGBA"), deep
    )


def _read_picture(data: bytes, folder: Path) -> None:
    store = LocalStore(folder)
    name = f"{'5a' * 32}.png"
    store.put(KEYS.input(name), data)
    inputs = Inputs(JobFolder(store, KEYS))
    inputs.picture(name, 64, 64)
    inputs.mask(name, 64, 96)


@cache
def _images() -> list[bytes]:
    return [
        encode_image(pixels(0, 16, 16), image_record(task, MODEL, RENDER), task.format, 90)
        for task in (a_task(), a_task(format="webp"), a_task(format="jpeg"))
    ]


# States and checkpoints

STATE = Request("a", Sampling(width=64, height=64, steps=4, sampler="lms", seed=1))


@cache
def _states() -> list[bytes]:
    table, generator = table_of(STATE, ModelSpec()), generator_for(1)
    latents = from_noise(table, draw_noise(generator, (4, 8, 8)))
    states = []
    for position in range(3):
        past = latents.repeat(MOST_HISTORY - 1, 1, 1, 1)
        trajectory = Trajectory(table, latents, generator, 7.5, None, position, past)
        states.append(save_trajectory(trajectory, kind="this", exact=True))
    return states


def _read_state(data: bytes, _folder: Path) -> None:
    trajectory, _ = load_trajectory(
        data,
        table_of(STATE, ModelSpec()),
        kind="this",
        guidance=7.5,
        shape=(8, 8),
        noise="cpu",
        inpainted=False,
        momentum=False,
        device=CPU,
    )
    assert torch.isfinite(trajectory.latents).all()


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cache
def _checkpoints() -> list[bytes]:
    """Small ones: what is read of a file does not depend on how large its tensors are."""
    weights = {"model.diffusion_model.out.2.bias": torch.arange(4.0), "x": torch.ones(2, 3).half()}
    old = io.BytesIO()
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    return [
        _pickled({"state_dict": weights, "epoch": 3, "callbacks": {"a": (1, [2, None])}}),
        old.getvalue(),
        pickle.dumps({"a": [1, (2, 3)], "b": {"c": "d"}}, protocol=2),
        _recompressed(_pickled(weights)),
        _safetensors(),
    ]


def _recompressed(archive: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as whole, zipfile.ZipFile(buffer, "w", 8) as small:
        for member in whole.namelist():
            small.writestr(member, whole.read(member))
    return buffer.getvalue()


@cache
def _safetensors() -> bytes:
    """A model's header; its tensors are left out, for most damage would be to them."""
    from safetensors.torch import save

    tensors = {f"model.diffusion_model.input_blocks.{n}.0.bias": torch.ones(4) for n in range(6)}
    return save(tensors, {"format": "pt", "spec": "{}"})


def _read_checkpoint(data: bytes, folder: Path) -> None:
    path = folder / "model"
    path.write_bytes(data)
    try:
        for stored in read_weights(path).tensors.values():
            stored.view().sum()
    finally:
        open_checkpoint(path)


CONFIGS = [unet_config(ODD), vae_config(ODD), text_config(ODD)]
ORIGINAL = original_config(ODD).encode()


def _read_config(data: bytes, folder: Path) -> None:
    """As each of the configurations that it may be."""
    path = folder / "config.json"
    path.write_bytes(data)
    readers = (
        lambda: compvis_spec(path, ODD.text),
        lambda: diffusers_unet(path),
        lambda: diffusers_vae(path),
        lambda: diffusers_text(path),
    )
    for read in readers:
        with contextlib.suppress(CheckpointError):
            read()


ENTRY = {"id": 2, "content": "<cat>", "lstrip": False, "normalized": True, "special": False}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "<|endoftext|>": 1, "aa": 2}, "merges": ["a a"]},
    "added_tokens": [ENTRY],
}
TOKENIZER_CONFIG = {"pad_token": "a", "unk_token": ENTRY, "added_tokens_decoder": {"2": ENTRY}}


def _read_tokenizer(data: bytes, folder: Path) -> None:
    """As one of the files that it may be, beside sound ones."""
    place = folder / "tokenizer"
    place.mkdir()
    sound = {
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": {},
        "special_tokens_map.json": {"pad_token": "a"},
        "added_tokens.json": {"<cat>": 2},
    }
    name = list(sound)[sum(data) % len(sound)]
    for other, values in sound.items():
        (place / other).write_bytes(data if other == name else json.dumps(values).encode())
    read_tokenizer(folder, None)


TARGETS: dict[str, Target] = {
    "manifest": Target(
        odd_json([MANIFEST]).map(lambda v: json.dumps(v).encode())
        | damaged([YAML, json.dumps(MANIFEST).encode()]),
        _read_manifest,
        (SdbatchError,),
    ),
    "csv": Target(damaged([CSV, SEMICOLONS]), _rows("csv"), (SdbatchError,)),
    "jsonl": Target(_lines(ROWS), _rows("jsonl"), (SdbatchError,)),
    "txt": Target(damaged([LINES]), _rows("txt"), (SdbatchError,)),
    "plan": Target(
        _lines([task.to_json() for task in _tasks()]).map(gzip.compress)
        | damaged([gzip.compress(_json_lines([task.to_json() for task in _tasks()]))]),
        _read_plan,
        (SdbatchError,),
    ),
    "message": Target(
        odd_json([to_message(Shard("job", 1, 10, 20))]).map(lambda v: json.dumps(v).encode()),
        _read_message,
        (InputError,),
    ),
    "records": Target(_lines(_records()), _read_records, (SdbatchError,)),
    "state": Target(damaged(_states()), _read_state, (StateError,)),
    "picture": Target(damaged(_pictures()), _read_picture, (ValueError, SdbatchError)),
    "image": Target(damaged(_images()), lambda data, _: read_record(data), (ValueError,)),
    "checkpoint": Target(damaged(_checkpoints()), _read_checkpoint, (CheckpointError,)),
    "config": Target(
        damaged([ORIGINAL]) | odd_json(CONFIGS).map(lambda v: json.dumps(v).encode()),
        _read_config,
        (CheckpointError,),
    ),
    "tokenizer": Target(
        odd_json([TOKENIZER, TOKENIZER_CONFIG]).map(lambda v: json.dumps(v).encode()),
        _read_tokenizer,
        (CheckpointError,),
    ),
}
