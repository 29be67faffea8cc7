"""Rows of a weight's first axis, when it is made some rows at a time and ranks have parts of it."""

from __future__ import annotations

from dsv3export.checkpoint.model_weights import is_bank
from dsv3export.graphs.fp8_parts import FP8_SCALES
from dsv3export.graphs.weight_expr import SLICE, WeightExpr
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK


def first_row(expr: WeightExpr, rows: slice) -> int:
    """Where an expression's first axis begins when `rows` of its leaves' first axis are made, without its slices."""
    return scaled_rows(expr, rows)[0]


def scaled_rows(expr: WeightExpr, rows: slice) -> tuple[int, int]:
    """`rows` of the leaves as rows of the expression: blocks of 128 of a matrix's FP8 scales."""
    if any(leaf.packing == FP8_SCALES and not is_bank(leaf.name) for leaf in expr.leaves()):
        return rows.start // BLOCK, -(-rows.stop // BLOCK)
    return rows.start, rows.stop


def kept_rows(expr: WeightExpr) -> tuple[int, int] | None:
    """The rows that an expression's slices of the first axis keep, begin and end; None for all.

    What is packed of several parts has the same rows of each.
    """
    params = dict(expr.params)
    if expr.packing == SLICE and params["axis"] == 0:
        return int(params["begin"]), int(params["end"])
    return kept_rows(expr.inputs[0]) if expr.inputs else None


def made_rows(expr: WeightExpr, rows: slice) -> tuple[int, int] | None:
    """Which rows of an expression are made when `rows` of its leaves are; None where none is."""
    begin, end = scaled_rows(expr, rows)
    kept = kept_rows(expr)
    if kept is not None:
        first, last = kept
        begin, end = max(begin, first) - first, min(end, last) - first
    return (begin, end) if begin < end else None
