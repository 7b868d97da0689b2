"""Which worker process sees which GPU, by a stand-in for `nvidia-smi`."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
from worker.fleet.gpus import choose

MIG = "  MIG 1g.5gb     Device  0: (UUID: MIG-b1d9)"


@pytest.fixture
def smi(tmp_path):
    """Puts an nvidia-smi into a folder that says this; gives an environment with only that."""

    def write(*lines: str, code: int = 0) -> dict[str, str]:
        program = tmp_path / "nvidia-smi"
        said = "\n".join(lines)
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --list-gpus ] || exit 64\nprintf "%s\\n" "{said}"\nexit {code}\n'
        )
        program.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return write


def gpus(count: int) -> list[str]:
    return [f"GPU {n}: NVIDIA A100-SXM4-40GB (UUID: GPU-{n}e5b)" for n in range(count)]


def devices(places) -> list[tuple[str, str]]:
    return [(place.name, place.environ["CUDA_VISIBLE_DEVICES"]) for place in places]


def test_all_gpus_of_the_machine(smi):
    places = choose("all", smi(*gpus(3)))
    assert devices(places) == [("gpu 0", "0"), ("gpu 1", "1"), ("gpu 2", "2")]
    for place in places:
        assert place.environ["SDBATCH_DEVICE"] == "cuda"
        assert place.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_parts_of_a_gpu_are_not_counted(smi):
    one, two = gpus(2)
    assert len(choose("all", smi(one, MIG, MIG, two))) == 2


@pytest.mark.parametrize("given", ["2,0", " 2 , 0 ", "02,0"])
def test_some_in_the_order_they_are_named(smi, given):
    assert devices(choose(given, smi(*gpus(3)))) == [("gpu 2", "2"), ("gpu 0", "0")]


def test_a_set_order_is_kept(smi):
    environ = smi(*gpus(1)) | {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert "CUDA_DEVICE_ORDER" not in choose("0", environ)[0].environ


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("5,3", ["5", "3"]),
        ("GPU-0e5b, MIG-b1d9", ["GPU-0e5b", "MIG-b1d9"]),
        ("1,-1,2", ["1"]),  # as CUDA reads it
    ],
)
def test_only_what_the_environment_lets_be_seen(smi, visible, expected):
    environ = smi(*gpus(8)) | {"CUDA_VISIBLE_DEVICES": visible}
    places = choose("all", environ)
    assert devices(places) == [(f"gpu {n}", device) for n, device in enumerate(expected)]
    assert all("CUDA_DEVICE_ORDER" not in place.environ for place in places)


def test_numbers_count_what_is_visible():
    environ = {"CUDA_VISIBLE_DEVICES": "5,3"}
    assert devices(choose("1", environ)) == [("gpu 1", "3")]
    with pytest.raises(InputError, match=r"no GPU 5, only 0, 1 \(CUDA_VISIBLE_DEVICES is '5,3'\)"):
        choose("5", environ)


def test_none_is_one_process_on_the_cpu(smi):
    (place,) = choose("none", smi(*gpus(3)))
    assert place.name == "cpu"
    assert place.environ == {"CUDA_VISIBLE_DEVICES": "", "SDBATCH_DEVICE": "cpu"}


@pytest.mark.parametrize("given", ["", "-1", "0,", "a", "0-2", "ALL", "0 1", "1.5", "0,none"])
def test_what_is_no_choice(smi, given):
    with pytest.raises(InputError, match=r"--gpus: found .*, expected all, none or numbers"):
        choose(given, smi(*gpus(3)))


def test_no_such_gpu(smi):
    with pytest.raises(InputError, match=r"there is no GPU 3, only 0, 1, 2 \(by .*nvidia-smi"):
        choose("0,3", smi(*gpus(3)))


@pytest.mark.parametrize("given", ["0,0", "1,01"])
def test_a_gpu_named_twice(smi, given):
    with pytest.raises(InputError, match="expected each GPU once"):
        choose(given, smi(*gpus(3)))


@pytest.mark.parametrize("given", ["all", "0"])
def test_no_gpu(smi, tmp_path, given):
    def refused(environ: dict[str, str]) -> str:
        with pytest.raises(
            InputError, match=r"no GPU was found: .*; --gpus none renders"
        ) as caught:
            choose(given, environ)
        return str(caught.value)

    assert "CUDA_VISIBLE_DEVICES is not set, and there is no nvidia-smi" in refused({"PATH": ""})
    assert "CUDA_VISIBLE_DEVICES is ''" in refused({"CUDA_VISIBLE_DEVICES": ""})
    said = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    assert said in refused(smi(said, code=9))
    assert "nvidia-smi --list-gpus" in refused(smi("No devices found"))
    (tmp_path / "nvidia-smi").write_text("#!/no/such/program\n")
    assert "gave no answer" in refused({"PATH": str(tmp_path)})
