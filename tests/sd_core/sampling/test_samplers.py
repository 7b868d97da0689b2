"""What must hold of every table, whatever the sampler."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sd_core.sampler_table import SAMPLER_TABLE, SAMPLERS
from sd_core.sampling.grids import ALIGN_YOUR_STEPS, grid_of, karras_sigmas
from sd_core.sampling.samplers import evaluations, start_point, step_table
from sd_core.sampling.schedule import alphas_cumprod, sigma_of, timestep_of
from sd_core.sampling.step_table import StepTable
from sd_core.spec import STRENGTH_RULES

STEPS = (1, 2, 7, 50, 999, 1000)


PAIRS = [(name, schedule) for name, row in SAMPLER_TABLE.items() for schedule in row.schedules]


def tables(sampler: str, schedule: str) -> list[StepTable]:
    """Tables of many counts of steps that the two have."""
    if schedule != "default":
        counts = [steps for steps in STEPS if steps != 999]
    elif SAMPLER_TABLE[sampler].grid == "lcm":
        counts = [steps for steps in STEPS if steps <= 50]
    else:
        counts = list(STEPS)
    return [step_table(sampler, steps, schedule=schedule) for steps in counts]


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_model_that_sees_through_the_noise_stays_on_the_schedule(sampler, schedule):
    """With eps the noise really there, x has the signal and noise of `alphas` after each row.

    A latent is its shares of the clean latent, of the noise it began with, and of the fresh noise
    of each row.
    """
    for table in tables(sampler, schedule):
        stays(table)


def stays(table: StepTable, prediction: str = "epsilon") -> None:
    x = np.zeros(2 + len(table))
    signal, noise = [], []
    x[:2] = np.sqrt(table.alphas[0]), np.sqrt(1 - table.alphas[0])
    outputs: list[np.ndarray] = []
    for i in range(len(table)):
        alpha = table.alphas[i]
        told = x / np.sqrt(1 - alpha)
        told[0] = 0
        if prediction == "v":
            told *= np.sqrt(alpha)
            told[0] = -np.sqrt(1 - alpha)
        outputs = [table.p[i] * x + table.q[i] * told, *outputs[: table.history - 1]]
        x = table.A[i] * x
        for weight, u in zip(table.B[i], outputs, strict=False):
            x += weight * u
        for ago, weight in enumerate(table.C[i]):
            x[2 + i - ago] += weight
        signal.append(x[0])
        noise.append(np.sum(x[1:] ** 2))
    np.testing.assert_allclose(signal, np.sqrt(table.alphas[1:]), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(noise, 1 - table.alphas[1:], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_models_that_predict_the_velocity_stay_on_the_schedule_too(sampler, zero_snr):
    """Also where the first timestep has no signal, though eps tells next to nothing there."""
    for schedule in SAMPLER_TABLE[sampler].schedules[:5]:
        for steps in (1, 2, 3, 5, 20):
            model = {"prediction": "v", "zero_snr": zero_snr}
            try:
                table = step_table(sampler, steps, schedule=schedule, **model)
            except ValueError:
                assert zero_snr
                assert sampler in ("plms", "heun", "dpm2", "dpm2_a")
                continue
            stays(table, "v")
            if zero_snr and schedule == "trailing":
                assert table.alphas[0] < 1e-7


def test_numbers_that_cancel_each_other_are_refused():
    with pytest.raises(ValueError, match=r"heun loses its numbers .* take euler"):
        step_table("heun", 3, schedule="trailing", prediction="v", zero_snr=True)
    assert len(step_table("heun", 20, schedule="trailing", prediction="v", zero_snr=True)) == 39


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_tables_have_their_steps_and_read_what_there_is(sampler, schedule):
    """Noise levels fall, and no row reads outputs or noise that no row made."""
    for table in tables(sampler, schedule):
        steps = int(table.steps[-1])
        grid = grid_of(sampler, steps, schedule)
        assert len(grid) == steps
        assert (np.diff(grid.alphas) > 0).all()
        assert (np.diff(grid.timesteps) <= 0).all()
        assert np.isfinite(table.numbers).all()
        for i in range(len(table)):
            assert not table.B[i, i + 1 :].any()
            assert not table.reads_noise_before(i) or table.C[i - 1, 0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_are_the_rows(sampler):
    for steps in (1, 2, 10, 50):
        for strength in (None, 0.0, 0.01, 0.3, 0.75, 1.0):
            for rule in STRENGTH_RULES:
                table = step_table(sampler, steps, strength=strength, strength_rule=rule)
                assert evaluations(sampler, steps, strength, rule) == len(table)


def test_strength_enters_where_diffusers_does():
    assert start_point(50, 0.75) == 13
    assert start_point(50, 0.58) == 22  # int(50 * 0.58) is 28: 28.999… in binary
    assert start_point(50, 0.0) == 50
    assert start_point(50, 1.0) == 0


def test_strength_one_starts_from_the_noisiest_point_and_zero_keeps_the_image():
    assert step_table("plms", 20, strength=1.0).t[0] == step_table("plms", 20).t[0]
    nothing = step_table("plms", 20, strength=0.0)
    assert len(nothing) == 0
    assert nothing.alphas[0] == 1.0


@pytest.mark.parametrize("steps", [3, 7, 30, 60, 999])
def test_the_grid_has_exactly_the_steps_asked_for(steps):
    """Also where they do not divide 1000."""
    t = step_table("ddim", steps).t
    assert len(t) == steps
    assert t[-1] == 1
    assert (np.diff(t) == -(1000 // steps)).all()


def test_karras_levels_span_the_schedule():
    levels = karras_sigmas(10, alphas_cumprod())
    sigmas = sigma_of(alphas_cumprod())
    assert levels[0] == pytest.approx(sigmas[-1])
    assert levels[-1] == pytest.approx(sigmas[0])
    np.testing.assert_allclose(timestep_of(sigmas, alphas_cumprod()), np.arange(1000), atol=1e-6)
    assert not float(step_table("euler", 10, karras=True).t[3]).is_integer()


def sigmas(schedule: str, steps: int, sampler: str = "euler") -> list[float]:
    return grid_of(sampler, steps, schedule).sigmas.tolist()


def test_align_your_steps_are_the_published_levels():
    assert sigmas("ays", 10) == pytest.approx(ALIGN_YOUR_STEPS[:10], rel=1e-14)
    at = np.interp(np.linspace(0, 10, 5), np.arange(11), np.log(ALIGN_YOUR_STEPS))
    assert sigmas("ays", 4) == pytest.approx(np.exp(at)[:-1].tolist(), rel=1e-12)
    assert sigmas("ays", 20)[::2] == pytest.approx(ALIGN_YOUR_STEPS[:10], rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50, 300])
def test_beta_timesteps_are_quantiles(steps):
    """Of Beta(0.6, 0.6), as ComfyUI has them; diffusers takes them of σ, with which it visits
    little but the noisiest half."""
    shares = 1 - np.linspace(0, 1, steps, endpoint=False)
    wanted = scipy.stats.beta.ppf(shares, 0.6, 0.6) * 999
    if steps < 300:  # of so many some would be the same when rounded
        wanted = wanted.round()
    np.testing.assert_allclose(grid_of("euler", steps, "beta").timesteps, wanted, atol=1e-4)


def test_simple_timesteps_and_ddim_uniform():
    """By ComfyUI's rules: every 1000/n-th level from the top; strides of 1000 // n from 1."""
    assert grid_of("euler", 30, "simple").timesteps.tolist() == [
        999 - int(n * (1000 / 30)) for n in range(30)
    ]
    assert grid_of("euler", 20, "ddim_uniform").timesteps.tolist() == [*range(951, 0, -50)]
    assert grid_of("euler", 8, "sgm_uniform").timesteps == pytest.approx(
        np.linspace(999, 0, 9)[:-1]
    )


def test_a_list_of_levels_is_the_grid():
    table = step_table("dpmpp_2m", 3, schedule="14.6 3.5 0.2 0")
    assert sigma_of(table.alphas).tolist() == pytest.approx([14.6, 3.5, 0.2, 0])
    assert table is not step_table("dpmpp_2m", 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sampler": "plsm"}, "one of plms, ddim"),
        ({"steps": 0}, "1 to 1000"),
        ({"steps": 1001}, "1 to 1000"),
        ({"strength": 1.5}, "0 to 1"),
        ({"eta": 0.5}, "eta 0.5 goes with sampler ddim or tcd only, not plms"),
        ({"karras": True}, "does not go with plms; with euler, euler_a"),
        ({"schedule": "karras"}, "schedule karras does not go with plms; with it go default, trai"),
        ({"sampler": "tcd", "schedule": "beta"}, "does not go with tcd; with it go default$"),
        ({"sampler": "euler", "schedule": "linaer"}, "'linaer' is unknown; one of default, karras"),
        ({"sampler": "euler", "schedule": 3}, "schedule 3 is no text"),
        ({"sampler": "euler", "schedule": "5 4", "steps": 3}, "noise levels for steps 2, not 3"),
        ({"sampler": "euler", "schedule": "4 5", "steps": 2}, "level 4 before 5; expected .* fall"),
        ({"sampler": "euler", "schedule": "5 4.999", "steps": 2}, "level 5 before 4.999; expected"),
        ({"sampler": "euler", "schedule": "5 1e-9", "steps": 2}, "level 1e-09 before 0; expected"),
        ({"sampler": "euler", "schedule": "15 5", "steps": 2}, "within 0.001 to 14.7"),
        ({"sampler": "euler", "schedule": "5 -1", "steps": 2}, "level -1 before 0; .*within 0.001"),
        ({"sampler": "euler", "schedule": "5 nan", "steps": 2}, "level 5 before nan"),
        ({"sampler": "euler", "schedule": "inf 5", "steps": 2}, "level inf before 5"),
        ({"sampler": "euler", "schedule": "0", "steps": 1}, "'0' is unknown"),
        (
            {"sampler": "plms", "schedule": "5 4", "steps": 2},
            "of noise levels does not go with plms",
        ),
        ({"sampler": "euler", "schedule": "beta", "karras": True}, "beta does not go with karras"),
        ({"sampler": "DPM++ 2M Karras", "schedule": "beta"}, "has schedule karras in its name"),
        ({"sampler": "PLMS Karras"}, "'PLMS Karras' is unknown"),
        ({"sampler": "lcm", "steps": 51}, "steps 51 is too many for lcm; at most 50"),
    ],
)
def test_impossible_settings_name_what_is_allowed(arguments, said):
    with pytest.raises(ValueError, match=said):
        step_table(**arguments)
