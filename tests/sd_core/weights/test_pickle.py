"""A pickle gives tensors and plain values; a hostile one gives an error and runs nothing."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import sys
import time
import zipfile
from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sd_core.loading import load_model
from sd_core.weights import pickle_machine
from sd_core.weights.errors import CheckpointError
from sd_core.weights.pickle_machine import PickleError
from sd_core.weights.stored import MappedFile
from sd_core.weights.torch_pickle import ALLOWED
from sd_core.weights.torch_zip import read_torch_zip


def write_archive(path, data, *, storages=None, byteorder=b"little", compression=None):
    """A file as torch lays it out, around any pickle."""
    with zipfile.ZipFile(path, "w", compression or zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/version", "3\n")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


class Calls:
    """Pickles as a call, which any unpickler makes while it loads."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile_calls(mark: str):
    touch = f"__import__('pathlib').Path({mark!r}).touch()"
    return {
        "posix.system": Calls(os.system, f"touch {mark}"),
        "builtins.eval": Calls(eval, touch),
        "builtins.exec": Calls(exec, touch),
        "builtins.getattr": Calls(getattr, "os", "system"),
        "builtins.__import__": Calls(builtins.__import__, "os"),
        "io.open": Calls(open, mark, "w"),
        "builtins.bytearray": Calls(bytearray, 10**12),
        "torch._utils._rebuild_qtensor": Calls(torch._utils._rebuild_qtensor, 1, 2, 3, 4, 5, 6, 7),
        "torch._utils._rebuild_sparse_tensor": Calls(torch._utils._rebuild_sparse_tensor, 1, 2),
        "torch.serialization.load": Calls(torch.load, mark),
        "torch.hub.load": Calls(torch.hub.load, mark),
    }


@pytest.mark.parametrize("name", hostile_calls("x"))
@pytest.mark.parametrize("protocol", [2, 4])
def test_hostile_call_is_named_and_not_run(tmp_path, name, protocol):
    mark = tmp_path / "it-ran"
    value = {"state_dict": {"a": 1}, "hidden": [hostile_calls(str(mark))[name]]}
    data = pickle.dumps(value, protocol)
    if protocol == 2:
        name = name.replace("builtins.", "__builtin__.")  # the name of Python 2
    path = write_archive(tmp_path / "model.ckpt", data)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert f"asks for {name}, which is not among" in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert not mark.exists()


def test_nothing_is_imported(tmp_path):
    """Importing alone runs a module's code, so even a look at a global is too much."""
    mark = tmp_path / "it-ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(mark)!r}, 'w')")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(PickleError, match=r"asks for evil_module\.anything"):
            load(b"\x80\x02cevil_module\nanything\n.")
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules
    assert not mark.exists()


def load(data, persistent_load=lambda identity: identity):
    return pickle_machine.load(data, ALLOWED, persistent_load)


ALLOWED_GLOBAL = b"ctorch\nFloatStorage\n"
ORDERED_DICT = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"S'ls'\n.", "instruction STRING"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\nX\x02\0\0\0lso.", "asks for os.system"),
        (b"(" + ALLOWED_GLOBAL + b"o.", "instruction OBJ"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"\x83\x01\x00.", "instruction EXT2"),
        (b"\x84\x01\x00\x00\x00.", "instruction EXT4"),
        (ALLOWED_GLOBAL + b")\x81.", "instruction NEWOBJ"),
        (ALLOWED_GLOBAL + b")}\x92.", "instruction NEWOBJ_EX"),
        (b"Pid\n.", "instruction PERSID"),
        (b"\x96" + struct.pack("<Q", 10**12) + b".", "damaged"),
        (b"\x8e" + struct.pack("<Q", 10**12) + b".", "damaged"),
        (b"\x8d" + struct.pack("<Q", 2**63) + b".", "damaged"),
        (b"\x97.", "instruction NEXT_BUFFER"),
        (b"N2.", "instruction DUP"),
        (ALLOWED_GLOBAL + b")R.", "calls torch.FloatStorage"),
        (b"})R.", "calls dict"),
        (ORDERED_DICT + b"NR.", "arguments of collections.OrderedDict"),
        (ORDERED_DICT + b"]\x85R.", "OrderedDict of arguments"),
        (ALLOWED_GLOBAL + b"}b.", "sets the state"),
        (b"N}b.", "sets the state"),
        (b"}]Ns.", "keys a dict by a list"),
        (b"})Ns.", "keys a dict by a tuple"),
        (b"N(NNu.", "no dict to fill"),
        (b"}(Nu.", "damaged"),
        (b"NNa.", "no list to fill"),
        (b"h\x05.", "damaged"),
        (b"R.", "damaged"),
        (b"(.", "damaged"),
        (b".", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\xff", "damaged"),
        (b"\x80\x63.", "damaged|has no end"),
    ],
)
def test_instructions_that_no_weights_need(data, message):
    with pytest.raises(PickleError, match=message):
        load(data)


def test_a_memo_index_allocates_nothing():
    """C's unpickler grows its memo to the index; 4 billion entries would take 32 gigabytes."""
    assert load(b"Nr\xff\xff\xff\xff.") is None


def test_nested_values_that_share_their_parts_take_no_time():
    """Each tuple holds the last one twice: 2^200 leaves to whoever walks or hashes it."""
    nest = b"Nq\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(200))
    started = time.perf_counter()
    assert isinstance(load(nest + b"."), tuple)
    with pytest.raises(PickleError, match="keys a dict by a tuple"):
        load(b"}" + nest + b"Ns.")
    assert time.perf_counter() - started < 1.0


def test_size_of_a_pickle_is_limited(monkeypatch, tmp_path):
    monkeypatch.setattr(pickle_machine, "MAX_PICKLE_BYTES", 100)
    path = write_archive(tmp_path / "a.ckpt", b"N0" * 100 + b"N.")
    with pytest.raises(CheckpointError, match=r"data\.pkl has 202 bytes, too many"):
        load_model(path)
    with pytest.raises(PickleError, match="202 bytes, more than 100"):
        load(b"N0" * 100 + b"N.")


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_the_one_error(data):
    with suppress(PickleError):
        load(data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**500), 2**500)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-(2**60), 2**60), inner)
    ),
    max_leaves=30,
)


@given(PLAIN, st.sampled_from([3, 4, 5]))
def test_plain_values_come_back(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


def storage(key="0", kind="FloatStorage", numel="K\x04"):
    """A persistent id's pickle: ("storage", torch.FloatStorage, key, "cpu", numel)."""
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()  # noqa: E731
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
        + numel.encode("latin1") + b"tQ"
    )  # fmt: skip


def tensor(of=None, offset="K\x00", shape="K\x04\x85", strides="K\x01\x85"):
    """The pickle of one tensor in a dict, as torch writes it, with any of its numbers."""
    numbers = offset + shape + strides
    return (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n("
        + (storage() if of is None else of)
        + numbers.encode("latin1")
        + b"\x89}tRs."
    )


def read_tensor(tmp_path, data, size=16):
    path = write_archive(tmp_path / "a.ckpt", data, storages={"0": bytes(range(size))})
    return read_torch_zip(MappedFile(path))["a"]


def test_a_tensor_is_where_the_pickle_says(tmp_path):
    read = read_tensor(tmp_path, tensor(offset="K\x01", shape="K\x03\x85"))
    assert read.shape == (3,)
    assert bytes(read.view().view(torch.uint8).tolist()) == bytes(range(4, 16))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor(offset="K\x01"), "a tensor of 5 elements in a storage of 4"),
        (tensor(strides="K\x02\x85"), "a tensor of 7 elements in a storage of 4"),
        (tensor(shape="J\xff\xff\xff\x7f\x85"), "elements in a storage of 4"),
        (tensor(offset="J\xff\xff\xff\xff"), "describes a tensor wrongly"),
        (tensor(shape="J\xff\xff\xff\xff\x85"), "describes a tensor wrongly"),
        (tensor(strides="J\xff\xff\xff\xff\x85"), "describes a tensor wrongly"),
        (tensor(shape="K\x02K\x02\x86"), "describes a tensor wrongly"),
        (tensor(shape="K\x04", strides="K\x01"), "describes a tensor wrongly"),
        (tensor(shape="\x88\x85"), "describes a tensor wrongly"),
        (tensor(of=b"N"), "describes a tensor wrongly"),
        (tensor(of=b"(tQ"), "other than a tensor's storage"),
        (tensor(of=b"X\x07\0\0\0storageQ"), "other than a tensor's storage"),
        (tensor(of=storage(numel="K\x05")), "has 16 bytes, too few for 5 torch.float32"),
        (tensor(of=storage(numel="J\xff\xff\xff\xff")), "storage that is not there"),
        (tensor(of=storage(key="1")), "storage that is not there: '1'"),
        (tensor(of=storage(key="../data.pkl")), "storage that is not there"),
        (tensor(of=storage(key="/etc/passwd")), "storage that is not there"),
        (tensor(of=storage(kind="QInt8Storage")), "asks for torch.QInt8Storage"),
    ],
)
def test_tensors_that_are_not_in_their_storage(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message):
        read_tensor(tmp_path, data)


def test_a_huge_tensor_over_one_element_is_not_made(tmp_path):
    """Stride 0 repeats an element; the shape is refused before anything of its size is made."""
    path = tmp_path / "model.ckpt"
    name = "model.diffusion_model.input_blocks.0.0.weight"
    torch.save({name: torch.zeros(1).expand(10**12), "cond_stage_model.a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError):
        load_model(path)


def test_archives_laid_out_otherwise(tmp_path):
    plain = pickle.dumps({}, 2)
    path = tmp_path / "a.ckpt"
    for options, message in (
        ({"byteorder": b"big"}, "big-endian"),
        ({"compression": zipfile.ZIP_DEFLATED}, "compressed or encrypted"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(write_archive(path, plain, **options))
    with pytest.raises(CheckpointError, match="it holds a list; expected a dict"):
        load_model(write_archive(path, pickle.dumps([], 2)))
    with pytest.raises(CheckpointError, match="holds no weights, only: epoch, loss"):
        load_model(write_archive(path, pickle.dumps({"epoch": 1, "loss": 0.5}, 2)))
    with zipfile.ZipFile(write_archive(path, plain), "a") as archive:
        archive.writestr("second/data.pkl", plain)
    with pytest.raises(CheckpointError, match=r"has 2 members data\.pkl"):
        load_model(path)


def test_directory_that_points_elsewhere(tmp_path):
    """The archive's directory gives another place than where the member lies."""
    path = write_archive(tmp_path / "a.ckpt", tensor(), storages={"0": bytes(16)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"archive/data/0") - 46 + 42  # the entry's offset field
    data[at : at + 4] = struct.pack("<I", 7)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not where the archive says"):
        load_model(path)
    data[at : at + 4] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not where the archive says"):
        load_model(path)


def test_every_storage_type_that_torch_saves(tmp_path):
    types = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    ]  # fmt: skip
    tensors = {str(t): torch.tensor([[0, 1], [1, 0]], dtype=t) for t in types}
    tensors |= {"scalar": torch.tensor(3.0), "none": torch.zeros(0, 3)}
    torch.save(OrderedDict(tensors), tmp_path / "all.pt")
    read = read_torch_zip(MappedFile(tmp_path / "all.pt"))
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert torch.equal(read[name].view(), expected)
