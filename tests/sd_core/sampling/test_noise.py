"""Noise: of CPUs, of GPUs, and mixed of two seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sd_core.sampling.noise import draw_noise, generator_for, mixed, noise_of
from sd_core.sampling.philox import normals, philox
from sd_core.sampling.samplers import start_point
from sd_core.spec import Sampling

SHAPE = (4, 8, 8)
CUDA = [
    *(-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564, -0.62285122),
    *(-0.32838709, -1.07454231, -0.36314407, -1.67105067, 2.26550497),
]
"""`torch.randn(3, 4)` of seed 0 on a CUDA device, as AUTOMATIC1111's web UI has it in the docstring
of its own generator.
"""


def sampling(**settings) -> Sampling:
    return Sampling(width=64, height=64, **settings)


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, wanted):
    """Values from Random123's `kat_vectors`."""
    found = philox(np.array(counter, dtype=np.uint64)[:, None], key)
    assert found[:, 0].tolist() == list(wanted)


def test_normal_numbers_are_those_of_a_cuda_device():
    np.testing.assert_allclose(normals(0, 0, 12), CUDA, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_normal_numbers_are_those_of_this_cuda_device():
    generator = torch.Generator("cuda").manual_seed(2**40 + 3)
    for draw in range(3):
        wanted = torch.randn(4, 64, 64, generator=generator, device="cuda").cpu().numpy()
        found = normals(2**40 + 3, draw, wanted.size).reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_normal_numbers_are_normal_and_differ_by_draw_and_seed():
    numbers = normals(2**63 + 1, 3, 100_000)
    assert abs(numbers.mean()) < 0.01
    assert numbers.std() == pytest.approx(1, abs=0.01)
    assert not np.array_equal(numbers, normals(2**63 + 1, 4, 100_000))
    assert not np.array_equal(numbers, normals(1, 3, 100_000))


@pytest.mark.parametrize("noise", ["cpu", "gpu"])
def test_a_generator_goes_on_from_its_state(noise):
    generator = generator_for(5, noise)
    draw_noise(generator, SHAPE)
    state = generator.get_state()
    wanted = draw_noise(generator, SHAPE)
    again = generator_for(0, noise)
    again.set_state(state)
    assert torch.equal(draw_noise(again, SHAPE), wanted)
    with pytest.raises(RuntimeError):
        again.set_state(state[:-1])


@pytest.mark.parametrize("noise", ["cpu", "gpu"])
@pytest.mark.parametrize("after", [0, 1])
def test_variations_of_strength_0_and_1_are_the_two_seeds(noise, after):
    one, two = (noise_of(sampling(seed=s, noise=noise), after=after)[0] for s in (3, 4))
    for strength, wanted in ((0.0, one), (1.0, two)):
        settings = {"seed": 3, "variation_seed": 4, "variation_strength": strength, "noise": noise}
        assert torch.equal(noise_of(sampling(**settings), after=after)[0], wanted)


def test_a_variation_is_the_web_uis():
    """Columns of noise turn by their own angles, which are taken along the height."""
    one, two = draw_noise(generator_for(3), SHAPE).double(), draw_noise(generator_for(4), SHAPE)
    found = mixed(one, two.double(), 0.3)
    for channel in range(4):
        for column in range(8):
            a, b = one[channel, :, column].numpy(), two[channel, :, column].double().numpy()
            angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            wanted = np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b
            wanted /= np.sin(angle)
            np.testing.assert_allclose(found[channel, :, column], wanted, rtol=1e-9)
    assert torch.allclose(mixed(one, one, 0.3), one)


def test_the_seed_of_fresh_noise_may_be_another():
    noise, generator = noise_of(sampling(seed=3, eta_noise_seed_delta=31337, sampler="euler_a"))
    assert torch.equal(noise, noise_of(sampling(seed=3))[0])
    wanted = draw_noise(generator_for(31340), SHAPE)
    assert torch.equal(draw_noise(generator, SHAPE), wanted)
    settings = {"sampler": "lcm", "noise": "gpu", "eta_noise_seed_delta": 1}
    _, last = noise_of(sampling(seed=2**64 - 1, **settings))
    assert torch.equal(draw_noise(last, SHAPE), draw_noise(generator_for(0, "gpu"), SHAPE))


def test_strength_as_the_web_ui_counts_it():
    assert [start_point(20, s, "a1111") for s in (0, 0.5, 0.75, 0.999, 1)] == [19, 9, 4, 0, 0]
    assert start_point(1, 1.0, "a1111") == 0


def test_it_names_no_picture_that_draws_none():
    assert sampling(sampler="euler", eta_noise_seed_delta=5) == sampling(sampler="euler")
    assert sampling(sampler="ddim", eta=0.5, eta_noise_seed_delta=5).eta_noise_seed_delta == 5
