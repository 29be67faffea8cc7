"""The arithmetic of reduced precisions: how a float32 weight becomes 8 or 4 bits, and what those bits mean."""

from __future__ import annotations

from dsv3export.graphs.quantise.fp8_weight import dequantise_blocks, quantise_blocks
from dsv3export.graphs.quantise.hessian import ExpertInputs, MomentSum
from dsv3export.graphs.quantise.int_weight import IntWeight
from dsv3export.graphs.quantise.integer import dequantise, quantise_groups, split_groups
from dsv3export.graphs.quantise.methods import Method, quantise
from dsv3export.graphs.quantise.packing import pack, pack_zero_points, unpack

__all__ = [
    "ExpertInputs",
    "IntWeight",
    "Method",
    "MomentSum",
    "dequantise",
    "dequantise_blocks",
    "pack",
    "pack_zero_points",
    "quantise",
    "quantise_blocks",
    "quantise_groups",
    "split_groups",
    "unpack",
]
