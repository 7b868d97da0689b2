"""How large a manifest and what it names may be. Each limit turns a mistake or an attack into a
clear message long before memory or patience runs out; none is near what real jobs need.
"""

MAX_MANIFEST_BYTES = 128 * 2**20
"""The file is kept with the job and in memory; longer lists of prompts go into a `file:`."""

MAX_NESTING = 16
"""Collections inside collections; the format itself needs four."""

MAX_VALUES = 200_000
"""Values inside one entry of `prompts` or one other top-level key, such as a list of seeds."""

MAX_PROMPT_CHARS = 10_000
"""CLIP reads 77 tokens, a few hundred characters; more is a file pasted by mistake."""

MAX_LINE_BYTES = 256 * 2**10
"""One line of a .txt, .csv or .jsonl file."""

MAX_PATH_CHARS = 1_000
"""A path in a manifest."""

MAX_TEMPLATE_CHARS = 200
"""The template of output names."""

MAX_IMAGES = 10_000_000
"""Images of one job."""

MAX_COMBINATIONS = 10_000
"""Combinations of a matrix."""

MAX_LABELS = 32
"""Labels of one prompt."""

MAX_LABEL_CHARS = 1_000
"""The value of a label."""

MAX_MODELS = 100
"""Models of one job."""

MAX_MODEL_CHARS = 200
"""The name of a model."""

MAX_IMAGE_BYTES = 64 * 2**20
"""An init image or mask, as a file."""

MAX_IMAGE_PIXELS = 64_000_000
"""An init image or mask, decoded: 4 bytes a pixel."""

MAX_SCANNED_PIXELS = 100 * MAX_IMAGE_PIXELS
"""Pixels of a JPEG times the passes that its decoding makes over them; about ten are usual."""

MAX_DIRECTORY_BYTES = 64 * 2**20
"""Memory for reading EXIF data, whose entries may all point to the same bytes."""

MAX_LORA_BYTES = 2**30
"""A LoRA's file; an operator allows less (SDBATCH_LORA_MIB)."""

MAX_EMBEDDING_BYTES = 8 * 2**20
"""An embedding's file: 75 vectors at v1 size have 225 KiB."""

MAX_INPUT_BYTES = max(MAX_IMAGE_BYTES, MAX_LORA_BYTES)
"""A file in a job's `inputs/`."""

MAX_FILE_NAME_CHARS = 200
"""The name of a LoRA or an embedding: file names have at most 255 bytes."""

MAX_RENDERED_BYTES = MAX_IMAGE_BYTES
"""A finished image as a file: the largest has 48 MiB of pixels and half a megabyte of prompts."""

MAX_PROBLEMS = 10_000
"""Reading stops after this many problems: nobody reads more, and memory stays small."""
