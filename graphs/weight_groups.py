"""Weights that are made of the same weights of the model, and so are best made together: each source is read once."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3export.checkpoint.model_weights import is_bank
from dsv3export.graphs.fp8_parts import FP8_PARTS
from dsv3export.graphs.packing import BY_ROWS, FLOAT_TYPES
from dsv3export.graphs.quantise_weight import INT_PARTS
from dsv3export.graphs.weight_expr import WeightExpr

Group = tuple[str, ...]


def weight_groups(exprs: Mapping[str, WeightExpr]) -> list[Group]:
    """The names of weights, those with the same leaves together, in the order of the first of each group."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, expr in exprs.items():
        groups.setdefault(leaf_names(expr), []).append(name)
    return [tuple(names) for names in groups.values()]


def leaf_names(expr: WeightExpr) -> tuple[str, ...]:
    """The weights of the model that an expression is made of, each once."""
    return tuple(dict.fromkeys(leaf.name for leaf in expr.leaves()))


def of_banks(expr: WeightExpr) -> bool:
    """Whether an expression is made of banks only: it can be evaluated for some experts."""
    return all(is_bank(name) for name in leaf_names(expr))


def by_rows(expr: WeightExpr) -> bool:
    """Whether an expression over one matrix can be evaluated for some of its rows."""
    if not expr.inputs:
        return expr.packing in FLOAT_TYPES or expr.packing in FP8_PARTS
    alone = expr.packing in BY_ROWS or (expr.packing in INT_PARTS and dict(expr.params)["method"] != "gptq")
    return alone and all(by_rows(each) for each in expr.inputs)


def calibrated(expr: WeightExpr) -> bool:
    """Whether any part of it is quantised by gptq."""
    if expr.packing in INT_PARTS and dict(expr.params)["method"] == "gptq":
        return True
    return any(calibrated(each) for each in expr.inputs)
