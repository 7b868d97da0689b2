"""Files of any size with weights of zeros, that take no room: only their headers are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from sd_core.model.diffusion import LatentDiffusion
from sd_core.spec import ModelSpec
from sd_core.weights.export import single_file_name


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "F16") -> None:
    """A safetensors file with tensors of these shapes, their bytes a hole in the file.

    dtype: the format's name, F16 or F32.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + {"F16": 2, "F32": 4}[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_sparse_model(path: Path, spec: ModelSpec, *, dtype: str = "F16") -> None:
    """A single file with a whole model of these sizes, its weights zeros."""
    with torch.device("meta"):
        state = LatentDiffusion(spec).state_dict()
    shapes = {single_file_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    write_sparse(path, shapes, dtype=dtype)
