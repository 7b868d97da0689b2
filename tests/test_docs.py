"""The pages for people name what there is, and their numbers are the code's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from jobs.variables import OTHERS, VARIABLES
from sd_core.engine.batch_rows import DECODED_TOGETHER, Rows, batch_rows
from sd_core.engine.memory import USABLE, decode_bytes, evaluation_bytes, prompt_bytes
from sd_core.engine.prompts import PROMPTS_KEPT
from sd_core.model.text import weight_shapes
from sd_core.model.unet import UNet
from sd_core.model.vae import AutoencoderKL
from sd_core.spec import EXECUTIONS, ModelSpec
from sd_core.weight_cache import LEAST_BYTES, MOST_BYTES
from tests.test_readme import README, ROOT, check_command

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES += [ROOT / "sd_core/cpu/README.md", ROOT / "sd_core/demo/README.md"]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
CPU = PAGES["docs/cpu.md"]

V1 = ModelSpec()


def without_code(page: str) -> str:
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL)


def code(page: str) -> list[str]:
    """Lines of code blocks, and what is in backticks."""
    blocks = re.findall(r"^ *```\w*\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`]+)`", without_code(page))


def anchors(page: str) -> set[str]:
    """Of the headings, as a web page of the file has them."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code(PAGES[name])):
        file, _, anchor = link.partition("#")
        path = ROOT / name if not file else (ROOT / name).parent / file
        assert path.exists(), link
        assert not anchor or anchor in anchors(path.read_text()), link


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_options_exist(name):
    for line in code(PAGES[name]):
        if re.match(r"sdbatch [a-z]+( |$)", line) and "[OPTIONS]" not in line:
            check_command(line)


@pytest.mark.parametrize("name", PAGES)
def test_targets_of_make_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line[5:] for line in code(PAGES[name]) if line.startswith("make ")} <= targets


@pytest.mark.parametrize("name", PAGES)
def test_variables_and_files_exist(name):
    known = {variable.name for variable in (*VARIABLES, *OTHERS)} | {"_SDBATCH_COMPLETE"}
    assert set(re.findall(r"\b_?SDBATCH_[A-Z_]+", PAGES[name])) <= known
    for path in re.findall(r"`((?:sd_core|jobs|worker|infra|tests|docs)/[\w./-]*)`", PAGES[name]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", PAGES)
def test_modules_that_are_run_exist(name):
    for module in re.findall(r"python -m ((?:tests|sd_core|jobs|infra)[\w.]*)", PAGES[name]):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_bash_completes_as_the_readme_says():
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    (line,) = re.findall(r"^eval .*bash_source.*$", README, re.MULTILINE)
    program = Path(sys.executable).parent
    path = f"{program}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{line}\ncomplete -p sdbatch"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "-F _sdbatch_completion sdbatch" in done.stdout


# Numbers


def gigabytes(count_bytes: float, digits: int = 1) -> str:
    return f"{count_bytes / 1e9:.{digits}f} GB"


def weights_bytes(itemsize: int) -> int:
    """Of a whole v1 model."""
    with torch.device("meta"):
        parts = (UNet(V1.unet), AutoencoderKL(V1.vae))
    numbers = sum(weight.numel() for part in parts for weight in part.parameters())
    return itemsize * (numbers + sum(map(prod, weight_shapes(V1.text).values())))


def decode(side: int, itemsize: int) -> int:
    return decode_bytes(V1.vae, (side // 8, side // 8), itemsize)


def test_the_memory_of_a_gpu_is_as_predicted():
    text = " ".join(README.split())
    together = DECODED_TOGETHER["cuda"]
    rows = batch_rows("cuda", (64, 64))
    assert (rows, together) == (16, 4)
    batch = rows * evaluation_bytes(V1.unet, (64, 64), 2)
    prompts = (PROMPTS_KEPT + rows) * prompt_bytes(V1, 2)
    decodes = together * decode(512, 2)
    assert (
        f"{gigabytes(weights_bytes(2))} for its weights in float16, {gigabytes(batch)} for a batch "
        f"of eight images, {gigabytes(decodes)} while four are decoded, {gigabytes(prompts)} for "
        "prompts" in text
    )
    # A captured batch keeps its memory while images are decoded; some is the libraries' own.
    all_of_it = (weights_bytes(2) + batch + decodes + prompts) / USABLE
    assert f"About {all_of_it / 1e9:.0f} GB of GPU memory" in text
    rules = Rows("cuda", lambda shape: 2)
    assert (rules.decoded((96, 96)), rules.decoded((128, 128))) == (1, 1)
    assert f"one by one: {gigabytes(decode(768, 2))} at 768×768" in text
    assert f"{gigabytes(decode(1024, 2))} at 1024×1024" in text


def test_the_memory_of_a_cpu_is_as_predicted():
    text = " ".join(CPU.split())
    assert f"take {gigabytes(weights_bytes(2))} in bfloat16" in text
    assert f"and {gigabytes(weights_bytes(4))} in float32" in text
    assert f"another {gigabytes(decode(512, 2))} in bfloat16" in text
    assert f"and {gigabytes(decode(512, 4))} in float32, as" in text


def test_ways_of_running_a_model_are_all_there():
    assert set(re.findall(r"^\| `(\w+)` \|", CPU, re.MULTILINE)) == set(EXECUTIONS)


def test_sizes_of_what_is_kept_are_the_codes_own():
    assert f"at most {MOST_BYTES // 2**30} GiB" in CPU
    assert f"under {LEAST_BYTES // 2**20} MiB" in CPU
