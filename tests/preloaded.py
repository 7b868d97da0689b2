"""Imports of a worker, for a process that workers are forked from: most of a start's time.

Nothing here reads the environment, which each worker has its own of.
"""

import boto3  # noqa: F401
import celery.apps.worker
import celery.bin.worker  # noqa: F401
import pyarrow.parquet  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import worker.process  # noqa: F401
