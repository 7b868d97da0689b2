"""CUDA's own: work in the background, and captured graphs.

Everything here was written without a GPU. Tests run streams, events and graphs on a stand-in for
CUDA, and Triton's kernels in its interpreter (`tests/sd_core/gpu`).
"""
