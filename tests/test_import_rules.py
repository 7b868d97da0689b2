"""The direction of imports, and an install without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH_FREE = (
    "sd_core",
    "sd_core.spec",
    "sd_core.sampling.samplers",
    "jobs.cli",
    "jobs.manifest.load",
)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_imports_without_torch(module):
    """In an interpreter that refuses torch and transformers, as where they are not installed."""
    code = f"""
import sys
for name in ("torch", "transformers", "safetensors"):
    sys.modules[name] = None
import {module}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
