"""The limit that arithmetic sets: operations of the model, and the rate of large products here."""

from __future__ import annotations

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from sd_core.model.unet import UNet
from sd_core.spec import ModelSpec, Shape

PRODUCTS_S = 0.5
_SIDES = {"cpu": 2048, "cuda": 8192}


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second, of large matrix products: the best of half a second."""
    side = _SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best_s, until = float("inf"), time.monotonic() + PRODUCTS_S
    while best_s == float("inf") or time.monotonic() < until:
        began = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # which waits for the device
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * side**3 / best_s


def row_operations(spec: ModelSpec, shape: Shape) -> int:
    """Floating-point operations of one row of an evaluation, in products and convolutions.

    shape: (h, w) of the latent.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
        unet = UNet(spec.unet)
        states = torch.empty(1, spec.text.length, spec.unet.context_dim)
        unet(torch.empty(1, spec.unet.in_channels, *shape), torch.empty(1), states)
    return int(counted.get_total_flops())
