"""Reading a checkpoint takes time and memory bounded by its size, however it was made.

Memory is counted, not measured in seconds: what takes endless time here builds endless values.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
import torch
import yaml
from safetensors.torch import save_file

from sd_core.loading import load_model
from sd_core.weights import pickle_machine, safetensors_header, torch_zip
from sd_core.weights.errors import SHOWN, CheckpointError, named, shown
from sd_core.weights.export import save_diffusers, save_single_file, single_file_weights
from sd_core.weights.pickle_machine import PickleError
from tests.sd_core.small import SMALL, small_model
from tests.sd_core.weights.test_pickle import load, storage, tensor, write_archive
from tests.sd_core.weights.test_wrong_files import write_header

MESSAGE = 1000  # characters, without the path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers")
    save_diffusers(small_model(), path, dtype=torch.float16)
    return path


@pytest.fixture
def counted():
    """A function that calls another and gives the most bytes that this held at once."""

    def count(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return count


def refused(path, **options):
    """The message with which a checkpoint is refused, without its path."""
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **options)
    return str(caught.value).replace(str(path), "")


def nest(depth=20):
    """The pickle of a tuple that holds another twice, and so on: 2^depth leaves."""
    return b"Nq\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(depth))


NAME = b"X\x04\0\0\0name"
NESTED = {
    "a global's module": nest() + NAME + b"\x93.",
    "a global's name": NAME + nest() + b"\x93.",
    "a storage's key": b"(X\x07\0\0\0storagectorch\nFloatStorage\n" + nest() + NAME + b"K\x04tQ.",
    "a storage's type": b"(X\x07\0\0\0storage" + nest() + NAME + NAME + b"K\x04tQ.",
    "a dict's key": b"}" + nest() + b"Ns.",
    "a tensor's shape": tensor(shape=nest().decode("latin1")),
    "the whole": nest() + b".",
    "what stands for the weights": b"}X\x0a\0\0\0state_dict" + nest() + b"s.",
    "the sizes": b"}X\x0c\0\0\0sdbatch.spec" + nest() + b"s.",
}


@pytest.mark.parametrize("place", NESTED)
def test_nested_tuples_are_nowhere_written_out(tmp_path, counted, place):
    path = write_archive(tmp_path / "a.ckpt", NESTED[place], storages={"0": bytes(16)})
    messages = []
    assert counted(lambda: messages.append(refused(path))) < 10**6
    assert len(messages[0]) < MESSAGE


def test_shown_values_are_short():
    deep = None
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, 10**5000, deep, {n: n for n in range(10**5)}, "\ud800\n"):
        assert len(shown(value)) <= SHOWN
        shown(value).encode()
    assert shown("a cat") == "'a cat'"
    assert named("model.out.0") == "model.out.0"
    assert named("\ud800") == "'\\ud800'"
    assert len(named("x" * 10**6)) <= SHOWN


def test_instructions_of_a_pickle_are_counted(monkeypatch):
    monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 100)
    assert load(b"N" * 100 + b".") is None
    for more in (b"]", b"}", b"N", b"(", b"Nq\0"):
        with pytest.raises(PickleError, match="more than 100 instructions"):
            load(more * 101 + b".")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # 2^61 - 1 divides them all, so that all of their hashes are 0.
        (b"}" + pickle.dumps(2**61 - 1)[2:-1] + b"Ns.", "an integer of 61 bits"),
        (b"}\x8a\xff" + b"\x01" * 255 + b"Ns.", "an integer of 2033 bits"),
        (b"\x8b" + struct.pack("<i", 300) + b"\x01" * 300 + b".", "instruction LONG4"),
        (b"L" + b"9" * 10_000 + b"L\n.", "damaged"),
    ],
)
def test_large_integers_of_a_pickle(data, message):
    with pytest.raises(PickleError, match=message):
        load(data)


@pytest.mark.parametrize("kind", ["offset", "shape", "strides", "numel"])
def test_numbers_beyond_64_bits(tmp_path, kind):
    large = "\x8a\x09" + "\x01" * 9
    if kind == "numel":
        data = tensor(of=storage(numel=large))
    else:
        data = tensor(**{kind: large if kind == "offset" else large + "\x85"})
    path = write_archive(tmp_path / "a.ckpt", data, storages={"0": bytes(16)})
    assert "wrongly" in refused(path) or "not there" in refused(path)


def test_dicts_that_are_the_same_are_not_gone_through_each_time(tmp_path):
    """100,000 names for one dict of 1,000: looking into each would be 10^8 steps."""
    inner = {f"w{n}": n for n in range(1000)}
    outer = {f"name-{n}": inner for n in range(20_000)}
    path = write_archive(tmp_path / "a.ckpt", pickle.dumps(outer, 2))
    assert "holds no weights, only: name-0, name-1" in refused(path)


def weights_in_one_place(path, shapes):
    """A safetensors file whose weights all lie in the same bytes."""
    size = max(torch.Size(shape).numel() for shape in shapes.values()) * 4
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * torch.Size(shape).numel()]}
        for name, shape in shapes.items()
    }
    write_header(path, header, data=bytes(size))


def test_weights_that_share_their_memory(tmp_path):
    """The file is a hundredth of what its model would take."""
    weights = single_file_weights(small_model())
    shared = {name: list(weight.shape) for name, weight in weights.items()}
    weights_in_one_place(tmp_path / "a.safetensors", shared)
    assert "they share their memory" in refused(tmp_path / "a.safetensors")
    strided = {name: torch.zeros(1).expand(weight.shape) for name, weight in weights.items()}
    torch.save(strided, tmp_path / "a.ckpt")
    assert "they share their memory" in refused(tmp_path / "a.ckpt")


def test_long_headers_and_names(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_header(path, {"x" * 10**6: 1})
    assert len(refused(path)) < MESSAGE
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_header(path, {"x" * 10**6: entry, "y\n": entry}, data=bytes(8))
    assert len(refused(path)) < MESSAGE
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", 100)
    write_header(path, b"{" + b" " * 200 + b"}")
    assert "header has 202 bytes, expected at most 100" in refused(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 32 deep"),
        (b'{"a":[' + b"[]," * 600_000 + b"1]}", "more than 500000 values"),
        (b'{"a":"' + b'\\"' * 10**6, "not valid JSON"),
        (b'{"a":1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b'{"\\ud800":1}', "not valid JSON"),
        (b'{"a":1,"a":2}', "has the key 'a' twice"),
        (b'{"a":{"dtype":"F32","dtype":"F16"}}', "has the key 'dtype' twice"),
        (
            {"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}},
            "describes 'a' wrongly",
        ),
        ({"a": {"dtype": "F32", "shape": [0], "data_offsets": [2**63] * 2}}, "describes 'a' wrong"),
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, "cannot take 0"),
        ({"__metadata__": {"sdbatch.spec": "[" * 9999}}, "none at all"),
    ],
)
def test_headers_made_to_be_large(tmp_path, header, message):
    write_header(tmp_path / "a.safetensors", header)
    assert message in refused(tmp_path / "a.safetensors")


def spec_of(**unet):
    return json.dumps({"unet": unet, "vae": {}, "text": {}, "native_size": 512})


SPECS = {
    "nested": '{"unet":' + "[" * 9999 + "]" * 9999 + "}",
    "long": spec_of(channel_mult=list(range(5000))),
    # A text times a number is a long text, and so is one formatted with a width.
    "repeated": spec_of(channels="x", channel_mult=[10**9, 1, 1, 1]),
    "formatted": spec_of(channels="%999999999s"),
    "half a character": spec_of(channels="\ud800"),
}


@pytest.mark.parametrize("name", SPECS)
def test_sizes_made_to_be_large(tmp_path, counted, name):
    """The sizes that our own files carry, in one that somebody else wrote."""
    path = tmp_path / "a.ckpt"
    names = ("model.diffusion_model.a", "first_stage_model.a", "cond_stage_model.a")
    spec = {"state_dict": {n: torch.zeros(1) for n in names}, "sdbatch.spec": SPECS[name]}
    torch.save(spec, path)
    messages = []
    assert counted(lambda: messages.append(refused(path))) < 10**7
    assert "its sizes are not those of a v1 model" in messages[0]
    assert len(messages[0]) < MESSAGE


def test_many_layers_in_a_file_without_their_weights(tmp_path):
    """Building them takes seconds, for a file of 2 kB."""
    names = ("model.diffusion_model.a", "first_stage_model.a", "cond_stage_model.a")
    deep = json.loads(spec_of(num_res_blocks=100)) | {"vae": {"num_res_blocks": 100}}
    state = {"state_dict": {n: torch.zeros(1) for n in names}, "sdbatch.spec": json.dumps(deep)}
    torch.save(state, tmp_path / "a.ckpt")
    assert "describe 812 layers, its files hold 3 weights" in refused(tmp_path / "a.ckpt")


def test_native_sizes_that_no_image_has(tmp_path):
    """It is laid out for, which takes memory by its square."""
    save_single_file(
        small_model(dataclasses.replace(SMALL, native_size=10**6)), tmp_path / "a.ckpt"
    )
    assert "its picture's side is 1000000; expected 1 to 4096" in refused(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("unet/config.json", {"block_out_channels": ["%999999999d", 5, 5, 5]}),
        ("unet/config.json", {"block_out_channels": ["x", 10**9, 1, 1]}),
        ("unet/config.json", {"block_out_channels": [10**12] * 4}),
        ("unet/config.json", {"block_out_channels": [32] * 100_000}),
        ("unet/config.json", {"sample_size": 10**9}),
        ("unet/config.json", {"sample_size": "9" * 4000}),
        ("unet/config.json", {"act_fn": "x" * 500_000}),
        ("unet/config.json", {"attention_head_dim": list(range(10_000))}),
        ("vae/config.json", {"block_out_channels": ["%999999999d", 5, 5, 5]}),
        ("text_encoder/config.json", {"hidden_size": "x" * 500_000}),
        ("text_encoder/config.json", {"text_config": "x" * 500_000}),
        ("model_index.json", {"_class_name": "x" * 500_000, "unet": None}),
        ("model_index.json", {"_class_name": ["[" * 500_000], "unet": None}),
    ],
)
def test_configurations_made_to_be_large(folder, tmp_path, counted, name, values):
    for path in folder.rglob("*"):
        target = tmp_path / path.relative_to(folder)
        target.mkdir() if path.is_dir() else target.symlink_to(path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))
    messages = []
    assert counted(lambda: messages.append(refused(tmp_path))) < 10**7
    assert len(messages[0]) < MESSAGE


def test_configurations_that_are_too_long(folder, tmp_path):
    (tmp_path / "model_index.json").write_text(" " * 10**6 + "{}")
    assert "larger than 1000000 bytes" in refused(tmp_path)
    (tmp_path / "model_index.json").write_text("[" * 40 + "]" * 40)
    assert "nested more than 32 deep" in refused(tmp_path)
    (tmp_path / "model_index.json").write_text("[" + "1," * 60_000 + "1]")
    assert "more than 50000 values" in refused(tmp_path)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [*{old}, *{old}]}}\n"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "an alias, which is not read"),
        (MERGES, "an alias, which is not read"),
        ("[" * 10_000, "not a v1 model's configuration"),
        ("- " * 10_000, "not a v1 model's configuration"),
        ("a: 9" + "9" * 5000, "not a v1 model's configuration"),
        ("a: 2026-99-99", "not a v1 model's configuration"),
        ("a: " + "x" * 70_000, "larger than 65536 bytes"),
        ("model: {params: {parameterization: " + "x" * 10_000 + "}}", "'unet_config'"),
    ],
)
def test_yaml_made_to_be_large(tmp_path, text, message):
    save_single_file(small_model(), tmp_path / "model.safetensors")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    found = refused(tmp_path / "model.safetensors", config=config)
    assert message in found
    assert len(found) < MESSAGE


def test_aliases_are_what_yaml_has_them_for():
    """The standard loader does make 2^12 texts of the example above."""
    assert str(yaml.safe_load(LAUGHS)).count("x") > 4096


def test_directories_of_archives(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "a.ckpt", pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as archive:
        for n in range(100):
            archive.writestr(f"archive/data/{n}", b"")
    assert "no weights, only" in refused(path)
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY_BYTES", 5000)
    assert "a zip archive whose directory has more than 5000 bytes" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name(tmp_path):
    path = write_archive(tmp_path / "a.ckpt", tensor(), storages={"0": bytes(16)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    assert "two members of one name" in refused(path)


def test_a_directory_with_places_before_the_file(tmp_path):
    """The end record says that the directory lies further on than it does, so that all places are
    counted from before the file's begin.
    """
    path = write_archive(tmp_path / "a.ckpt", tensor(), storages={"0": bytes(16)})
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    offset = int.from_bytes(data[end + 16 : end + 20], "little")
    data[end + 16 : end + 20] = struct.pack("<I", offset + 40)
    path.write_bytes(data)
    assert "is not where the archive says" in refused(path)


def test_pipes_are_not_waited_for(tmp_path, folder):
    os.mkfifo(tmp_path / "a.ckpt")
    assert "not a regular file" in refused(tmp_path / "a.ckpt")
    os.mkfifo(tmp_path / "model_index.json")
    assert "model_index.json" in refused(tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file(single_file_weights(small_model()), weights)
    assert "not a regular file" in refused(weights, config=tmp_path / "a.ckpt")


ATTACKS = {
    "lists": "pickle_machine.load(b']' * 20_000_000 + b'.', {}, None)",
    "dicts": "pickle_machine.load(b'}' * 20_000_000 + b'.', {}, None)",
    "memo": "pickle_machine.load(b'N' + b'\\x94' * 20_000_000 + b'.', {}, None)",
    "characters": "pickle_machine.load(b'X' + (32_000_000).to_bytes(4, 'little') + "
    "'😀'.encode() + b'a' * 31_999_996 + b'.', {}, None)",
    "header": "parse_json(b'[' + b'[],' * 5_000_000 + b'1]', max_values=500_000)",
    "strings": "parse_json(b'[' + b'\"\",' * 5_000_000 + b'1]', max_values=500_000)",
    "numbers": "parse_json(b'[' + b'1,' * 450_000 + b'1]', max_values=500_000)",
}


def test_memory_of_whole_readers():
    """Each attack at its full size, all in a process that may not have more than 500 MB."""
    lines = "".join(
        f"try: {attack}\nexcept (PickleError, ValueError): pass\nprint({name!r})\n"
        for name, attack in ATTACKS.items()
    )
    code = (
        "from sd_core.weights import pickle_machine\n"
        "from sd_core.weights.json_text import parse_json\n"
        "from sd_core.weights.pickle_machine import PickleError\n" + lines
    )
    limit = 500 * 10**6
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (list(ATTACKS), "")
