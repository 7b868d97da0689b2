"""Writes `docs/samplers.md`, its pictures and its plot, from tables and the demo model:
`python -m tests.bench.samplers`. Takes minutes.

The page without the pictures follows from the code alone, and a test holds the two together.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import sd_core
from jobs.folder.layout import JobFolder, JobKeys
from jobs.report.grid_files import write_grid
from jobs.storage.filesystem import LocalStore
from sd_core.engine.sample import sample_latents
from sd_core.model.diffusion import LatentDiffusion
from sd_core.sampler_table import SAMPLER_TABLE, SCHEDULE_TABLE, SCHEDULES, Sampler
from sd_core.sampling.samplers import evaluations
from sd_core.spec import DEMO_GUIDANCE
from tests.bench.plot import plot
from tests.commands import run_command

DOCS = Path(__file__).parents[2] / "docs"
PAGE, SHEET, PLOT = DOCS / "samplers.md", DOCS / "samplers.webp", DOCS / "samplers.svg"

PROMPT = "a red circle left of a blue square on a yellow background"
SHOWN = (4, 8, 20, 50)
"""Steps of the pictures."""

PLOTTED = (3, 4, 5, 6, 8, 10, 14, 20, 28, 40, 56, 80)
REFERENCE = 1000
"""Steps of the plot, and of what each sampler is compared with: itself, with many."""

SHEET_QUALITY = 80

HEAD = """\
# Samplers and schedules

`sampler:` says how noise becomes a picture, `schedule:` how the steps are spaced. This page is made
by `python -m tests.bench.samplers`. Which program computes the same, and where one does not, is in
[Which peer is right](peers.md).

All take part in one batch, in txt2img, img2img and inpainting. `karras: true` is
`schedule: karras`. Names of AUTOMATIC1111, ComfyUI and diffusers are taken too, also both in one:
`sampler: "DPM++ 2M Karras"`.

| sampler | name elsewhere | evaluations of n steps | order | fresh noise | schedules |
|---|---|---|---|---|---|"""

LEGEND = """
An evaluation is what takes time: one pass of the model. The order says how fast the error falls
with the steps, measured on a model whose trajectories are known
(`tests/sd_core/sampling/test_order.py`): of order 2, twice the steps leave a quarter of the error.
It is that of uneven steps, as real schedules have them, and below what some papers give for even
ones. With fresh noise it is that of the mean, and a picture changes with the steps however many
there are. `unipc` is bh2, as in diffusers; the web UI's default is `unipc_bh1`. `lcm` and `tcd` are
for models, or LoRA, that were distilled for few steps; with `guidance: 1` they take one row an
evaluation, half the work.

| schedule | name elsewhere | spacing |
|---|---|---|"""

SPACINGS: Mapping[str, str] = {
    "default": "the sampler's own: `leading` for plms, ddim and ddpm; `linspace` for most",
    "karras": "noise levels by Karras et al. 2022, eq. 5, rho 7: denser where noise is little",
    "exponential": "equal steps of the logarithm of the noise level",
    "sgm_uniform": "even timesteps from 999, without the last at 0",
    "uniform": "even timesteps from 999 to 0, fractional",
    "trailing": "whole timesteps from 999 down, 1000/n apart",
    "linspace": "even timesteps from 999 to 0, as diffusers spaces them for the sampler",
    "leading": "whole timesteps, 1000 // n apart, from 1 up; for DPM++ multistep, UniPC, DEIS and "
    "SA-Solver the upper n of n + 1",
    "beta": "timesteps at quantiles of a Beta(0.6, 0.6) distribution: denser at both ends",
    "simple": "every 1000/n-th timestep from 999 down",
    "ddim_uniform": "whole timesteps, 1000 // n apart, from 1 up, for samplers over noise levels",
    "ays": "noise levels optimised for Stable Diffusion 1.5 in 10 steps (Sabour et al. 2024); "
    "other counts are interpolated in the logarithm, as published",
}

TAIL = f"""
A list is a schedule too: `schedule: [14.6, 6.5, 3.9, 1.9, 0.65, 0.15]` with `steps: 6`.

## Pictures
Of the demo model by {", ".join(map(str, SHOWN))} steps, with one seed. It is not distilled for few
steps, so `lcm` and `tcd` show here what they do, not what they are for.

![All samplers, a row each, by 4, 8, 20 and 50 steps](samplers.webp)

## Error by evaluations
How far a picture's latents are from those that the same sampler gives with {REFERENCE:,} steps,
relative to their size, on the demo model with guidance {DEMO_GUIDANCE:g}. Samplers with fresh noise
have no such limit and are left out.

![Error by evaluations, both axes logarithmic](samplers.svg)
"""


def page() -> str:
    """The page as Markdown."""
    samplers = [_sampler_row(name, row) for name, row in SAMPLER_TABLE.items()]
    schedules = [
        f"| `{name}` | {row.webui or ''} | {SPACINGS[name]} |"
        for name, row in SCHEDULE_TABLE.items()
    ]
    return "\n".join([HEAD, *samplers, LEGEND, *schedules, TAIL])


def _sampler_row(name: str, row: Sampler) -> str:
    names = ", ".join(filter(None, (row.webui, row.diffusers)))
    counts = {("n", 8, 50): "n", ("n", 9, 51): "n + 1", ("n", 15, 99): "2n - 1"}
    count = counts["n", evaluations(name, 8), evaluations(name, 50)]
    schedules = "all" if row.schedules == SCHEDULES else ", ".join(row.schedules)
    noise = "with `eta`" if row.eta else "yes" if row.noise else ""
    order = "" if row.order is None else row.order
    return f"| `{name}` | {names} | {count} | {order} | {noise} | {schedules} |"


def write_sheet() -> None:
    """A picture by each sampler and number of steps, half of the samplers beside the others."""
    samplers = list(SAMPLER_TABLE)
    half = (len(samplers) + 1) // 2
    parts = [_sheet(samplers[:half]), _sheet(samplers[half:])]
    size = sum(part.width for part in parts), max(part.height for part in parts)
    sheet = Image.new("RGB", size, parts[0].getpixel((0, 0)))
    left = 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width
    sheet.save(SHEET, quality=SHEET_QUALITY, method=6)


def _sheet(samplers: list[str]) -> Image.Image:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = {
            "version": 1,
            "name": "samplers",
            "prompts": [PROMPT],
            "matrix": {"sampler": samplers, "steps": list(SHOWN)},
        }
        (folder / "samplers.yaml").write_text(json.dumps(manifest))
        done = run_command(["run", "samplers.yaml", "--json"], os.environ, folder)
        if done.returncode:
            raise RuntimeError(done.stderr)
        job = JobFolder(LocalStore(folder / "out"), JobKeys(json.loads(done.stdout)["job"]))
        drawn = write_grid(job, folder / "grid", ("steps", "sampler", None))
        (page,) = drawn.pages
        with Image.open(folder / "grid" / page) as image:
            return image.convert("RGB")


def errors() -> dict[str, list[tuple[int, float]]]:
    """Evaluations and relative error, for each sampler without fresh noise."""
    model = sd_core.load_model("demo", device="cpu", dtype="float32", execution="packed")
    generator = torch.Generator().manual_seed(7)
    side = model.spec.native_size // 8
    noise = torch.randn(1, 4, side, side, generator=generator)
    found = {}
    for name, row in SAMPLER_TABLE.items():
        if row.order is not None and not row.noise:
            limit = _latents(model, noise, name, REFERENCE)
            found[name] = [
                (
                    evaluations(name, steps),
                    float((_latents(model, noise, name, steps) - limit).norm() / limit.norm()),
                )
                for steps in PLOTTED
            ]
    return found


@torch.inference_mode()
def _latents(model: LatentDiffusion, noise: Tensor, sampler: str, steps: int) -> Tensor:
    given, without = (model.encode_prompt([text]) for text in (PROMPT, ""))
    settings = {"sampler": sampler, "steps": steps, "guidance": DEMO_GUIDANCE}
    return sample_latents(model, noise, given, without, **settings)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="the page alone, without measuring")
    if not parser.parse_args().page:
        write_sheet()
        measured = errors()
        PLOT.write_text(plot(measured))
        print(json.dumps(measured, indent=2))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
