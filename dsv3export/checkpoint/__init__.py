"""Reading Hugging Face checkpoints: folders with a config.json and .safetensors files."""

from __future__ import annotations

from dsv3export.checkpoint.checkpoint import Checkpoint
from dsv3export.checkpoint.expected import expected_tensors
from dsv3export.checkpoint.header import TensorInfo

__all__ = ["Checkpoint", "TensorInfo", "expected_tensors"]
