"""Random numbers as CUDA devices draw them, on any device: the Philox 4x32-10 counter generator
(Salmon et al. 2011), and Box and Muller's transform in the order of cuRAND.

PyTorch's `randn` on a CUDA device gives these numbers as long as every number has a thread of its
own, which holds for latents. AUTOMATIC1111's web UI draws its noise so ("RNG: GPU", and "RNG: NV"
on other devices).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

_LOW = np.uint64(0xFFFFFFFF)
_HIGH_HALF = np.uint64(32)


class PhiloxGenerator:
    """Unit normal noise of one seed; each draw is another part of its sequence.

    seed: 0 to 2^64 - 1. It has the methods of `torch.Generator` that saving a trajectory needs.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draws = 0

    def fill(self, out: Tensor) -> None:
        """Writes unit normal float32 to a CPU tensor."""
        out.copy_(torch.from_numpy(normals(self.seed, self.draws, out.numel())).view(out.shape))
        self.draws += 1

    def get_state(self) -> Tensor:
        """(16,) uint8: seed and number of draws."""
        state = self.seed.to_bytes(8, "little") + self.draws.to_bytes(8, "little")
        return torch.tensor(list(state), dtype=torch.uint8)

    def set_state(self, state: Tensor) -> None:
        """Goes on from a state. Raises RuntimeError for what is none."""
        if state.dtype != torch.uint8 or state.shape != (16,):
            raise RuntimeError("16 bytes are a state")
        numbers = bytes(state.tolist())
        self.seed = int.from_bytes(numbers[:8], "little")
        self.draws = int.from_bytes(numbers[8:], "little")


def normals(seed: int, draw: int, count: int) -> NDArray[np.float32]:
    """(count,) unit normal numbers of a seed's `draw`-th draw, from 0."""
    counters = np.zeros((4, count), dtype=np.uint64)
    counters[0] = draw  # that a thread drew before; each draw takes one counter of four numbers
    counters[2] = np.arange(count)  # the thread
    radius, angle = philox(counters, (seed & 0xFFFFFFFF, seed >> 32))[:2].astype(np.float32)
    # cuRAND's constants and its order of operations, in float32, but for the last two functions,
    # whose float32 forms are not the same everywhere.
    scale = np.float32(2.0**-32)
    turn = np.float32(2.0**-32 * 2 * np.pi)
    u = radius * scale + scale / 2
    v = angle * turn + turn / 2
    wide = np.sqrt(-2 * np.log(u.astype(np.float64))) * np.sin(v.astype(np.float64))
    return wide.astype(np.float32)


def philox(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox 4x32-10 of (4, n) counters with one key; all numbers below 2^32."""
    c0, c1, c2, c3 = counters
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (second >> _HIGH_HALF) ^ c1 ^ np.uint64(k0)
        c2 = (first >> _HIGH_HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])
