"""Safetensors checkpoints, read and written tensor by tensor; the whole model is never in memory."""

from .header import DTYPES, Header, TensorInfo, read_header
from .reader import Checkpoint, open_checkpoint
from .targets import refuse_same_file
from .writer import CheckpointWriter

__all__ = [
    "DTYPES",
    "Checkpoint",
    "CheckpointWriter",
    "Header",
    "TensorInfo",
    "open_checkpoint",
    "read_header",
    "refuse_same_file",
]
