"""CUDA's own: work in the background, and captured graphs.

Everything here was written without a GPU. Tests run all of it on stand-ins for CUDA's streams,
events and graphs (`tests/sd_core/gpu`).
"""
