"""Reading and writing checkpoints: CompVis single files, diffusers folders, the hub.

`open.py` finds out what a source is and returns a `Checkpoint`; `assemble.py` checks it against the
model and moves its weights in. Everything a wrong file can cause is a `CheckpointError`.
"""
