"""What must hold of every table, whatever the sampler."""

from __future__ import annotations

import numpy as np
import pytest

from sd_core.sampling.samplers import evaluations, start_point, step_table
from sd_core.sampling.schedule import alphas_cumprod, karras_sigmas, sigma_of, timestep_of
from sd_core.spec import KARRAS_SAMPLERS, SAMPLERS

FRESH_NOISE = {"euler_a", "ddpm"}


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 999, 1000])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_model_that_sees_through_the_noise_stays_on_the_schedule(sampler, steps, karras):
    """With eps the noise really there, x has the signal and noise of `alphas` after each row."""
    if karras and sampler not in KARRAS_SAMPLERS:
        return
    table = step_table(sampler, steps, karras=karras)
    # A latent as its share of a clean latent, of the noise in it, and the power of fresh noise.
    signal, noise, fresh = np.sqrt(table.alphas[0]), np.sqrt(1 - table.alphas[0]), 0.0
    outputs: list[tuple[float, float]] = []
    for i in range(len(table)):
        if sampler in FRESH_NOISE:
            noise, fresh = np.sqrt(1 - table.alphas[i]), 0.0
        outputs.insert(0, (table.p[i] * signal, table.p[i] * noise + table.q[i]))
        moved = np.array([table.A[i] * signal, table.A[i] * noise])
        for weight, u in zip(table.B[i], outputs, strict=False):
            moved += weight * np.array(u)
        signal, noise = moved
        fresh = table.C[i] ** 2
        assert signal == pytest.approx(np.sqrt(table.alphas[i + 1]), abs=1e-6)
        assert noise**2 + fresh == pytest.approx(1 - table.alphas[i + 1], abs=1e-6)


@pytest.mark.parametrize("strength", [None, 0.0, 0.01, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_evaluations_are_the_rows(sampler, steps, strength):
    assert evaluations(sampler, steps, strength) == len(
        step_table(sampler, steps, strength=strength)
    )


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
    levels = karras_sigmas(10)
    sigmas = sigma_of(alphas_cumprod())
    assert levels[0] == pytest.approx(sigmas[-1])
    assert levels[-1] == pytest.approx(sigmas[0])
    np.testing.assert_allclose(timestep_of(sigmas), np.arange(1000), atol=1e-6)
    assert not float(step_table("euler", 10, karras=True).t[3]).is_integer()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sampler": "plsm"}, "one of plms, ddim"),
        ({"steps": 0}, "1 to 1000"),
        ({"steps": 1001}, "1 to 1000"),
        ({"strength": 1.5}, "0 to 1"),
        ({"eta": 0.5}, "ddim only"),
        ({"karras": True}, "does not go with plms"),
    ],
)
def test_impossible_settings_name_what_is_allowed(arguments, said):
    with pytest.raises(ValueError, match=said):
        step_table(**arguments)
