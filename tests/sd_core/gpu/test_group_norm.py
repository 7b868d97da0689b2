"""Triton's group norm, by Triton's interpreter on the CPU, against its twin and the plain formula.

`make test-slow` installs Triton. The interpreter is asked for before Triton is imported, so these
tests run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from sd_core.gpu.group_norm import plain_group_norm, works
from sd_core.model.layers import ResBlock

CASES = {  # channels, groups, height, width
    "v1's first level": (320, 32, 16, 12),
    "a skip beside it": (960, 32, 8, 8),
    "v1's last level": (1280, 32, 4, 4),
    "with its skip": (2560, 32, 3, 5),
    "the decoder's": (128, 32, 40, 36),
    "few groups": (48, 3, 7, 9),
    "one pixel": (512, 32, 1, 1),
}


def by_hand(x, groups, weight, bias, eps, *, silu, added):
    """In float64, a group of an image at a time."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    if added is not None:
        x = x + added.double()[:, :, None, None]
    out = torch.empty_like(x)
    size = x.shape[1] // groups
    for image in range(len(x)):
        for group in range(groups):
            own = slice(group * size, (group + 1) * size)
            values = x[image, own]
            normal = (values - values.mean()) / (values.var(correction=0) + eps).sqrt()
            out[image, own] = normal * weight[own, None, None] + bias[own, None, None]
    return out / (1 + (-out).exp()) if silu else out


def inputs(case: str, dtype: torch.dtype):
    channels, groups, height, width = CASES[case]
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, height, width, generator=draw) * 3 + 20  # far from its mean of 0
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(channels, generator=draw).to(dtype) for _ in range(2))
    return x, groups, weight, bias, torch.randn(2, channels, generator=draw).to(dtype)


def check(norm, case: str, dtype: torch.dtype, *, silu: bool, shifted: bool) -> None:
    x, groups, weight, bias, added = inputs(case, dtype)
    options = {"silu": silu, "added": added if shifted else None}
    before = x.clone()
    mine = norm(x, groups, weight, bias, 1e-5, **options)
    right = by_hand(x, groups, weight, bias, 1e-5, **options)
    assert torch.equal(x, before)
    assert mine.dtype is dtype
    assert mine.is_contiguous(memory_format=torch.channels_last)
    rounding = torch.finfo(dtype).eps
    # Numbers of about 20 are rounded by 1e-6 before their mean of 20 goes.
    torch.testing.assert_close(mine.double(), right, rtol=2 * rounding, atol=2e-5 + rounding)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_twin_is_the_formula(case, silu, shifted, dtype):
    check(plain_group_norm, case, dtype, silu=silu, shifted=shifted)


@pytest.mark.slow
def test_tritons_is_the_formula_too():
    if find_spec("triton") is None:
        if os.environ.get("CI"):
            pytest.fail("Triton is missing; make test-slow installs it")
        pytest.skip("Triton is missing")
    done = subprocess.run(
        [sys.executable, "-m", "tests.sd_core.gpu.test_group_norm"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def main() -> None:
    """Run by the test above, with Triton's interpreter."""
    from sd_core.gpu.fused_blocks import fuse
    from sd_core.gpu.triton_norm import group_norm
    from tests.sd_core.small import ODD, small_model

    assert works(torch.device("cpu"), torch.float32)
    x, times = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0])
    plain, fused = (
        small_model(ODD).to(memory_format=torch.channels_last) for _ in range(2)
    )  # one seed
    fuse(fused.unet)
    fuse(fused.vae)
    assert any(type(m).__name__ == "FusedResBlock" for m in fused.modules())
    assert not any(type(m) in (ResBlock, torch.nn.GroupNorm) for m in fused.modules())
    states = plain.encode_prompt(["a", "b"])
    one, other = (model.denoise(x, times, states) for model in (plain, fused))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    one, other = (model.decode(x[:1, :, :4, :4]) for model in (plain, fused))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    for case in CASES:
        for silu in (False, True):
            for shifted in (False, True):
                for dtype in (torch.float32, torch.float16):
                    check(group_norm, case, dtype, silu=silu, shifted=shifted)


if __name__ == "__main__":
    main()
