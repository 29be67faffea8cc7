"""Makes the arrays that weight expressions stand for: whole, or some experts or rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import load_float32
from dsv3export.graphs.calibration import Calibration, one_thread
from dsv3export.graphs.fp8_parts import FP8_PARTS, fp8_parts
from dsv3export.graphs.packing import FLOAT_TYPES, PACKINGS
from dsv3export.graphs.quantise_weight import INT_PARTS, quantise_weight
from dsv3export.graphs.row_ranges import first_row, kept_rows
from dsv3export.graphs.weight_expr import SLICE, WeightExpr

Array = NDArray[Any]
ALL = slice(None)


class Packer:
    """Evaluates weight expressions; may be used by several threads at once.

    Args:
        calibration: Of the same checkpoint; needed for weights that are quantised by gptq. It runs along: weights are
            best asked for in the order of the graph, and by several threads only of a layer that it has observed.
    """

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration | None = None) -> None:
        self.checkpoint = checkpoint
        self._calibration = calibration

    def pack(self, expr: WeightExpr) -> Array:
        """The array of an expression."""
        return self.pack_all([expr])[0]

    def pack_all(self, exprs: Sequence[WeightExpr], rows: slice = ALL) -> list[Array]:
        """The arrays of expressions over the same weights; what they share is made once.

        Args:
            rows: A part of the first axis of those weights: experts of banks, or rows of a matrix whose expressions
                treat each row on its own (from a multiple of 128 on).
        """
        evaluation = _Evaluation(self.checkpoint, self._calibration, rows)
        return [evaluation.array(expr) for expr in exprs]


class _Evaluation:
    """Arrays of some expressions for one range of rows; keeps what more than one of them is made of."""

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration | None, rows: slice) -> None:
        self._checkpoint, self._calibration, self._rows = checkpoint, calibration, rows
        self._made: dict[object, dict[str, Array]] = {}

    def array(self, expr: WeightExpr) -> Array:
        if expr.packing in INT_PARTS:
            return self._once((expr.inputs, expr.params), lambda: self._quantised(expr))[expr.packing]
        if expr.packing in FP8_PARTS:
            parts = self._once(expr.name, lambda: fp8_parts(expr.name, self._checkpoint, self._rows))
            return parts[expr.packing]
        kept = kept_rows(expr) if expr.packing == SLICE and self._rows != ALL else None
        if kept is not None and dict(expr.params)["axis"] == 0:
            (whole,) = expr.inputs
            begin = first_row(whole, self._rows)
            return self.array(whole)[max(0, kept[0] - begin) : max(0, kept[1] - begin)]
        if expr.inputs:
            return PACKINGS[expr.packing]([self.array(each) for each in expr.inputs], dict(expr.params))
        return load_float32(expr.name, self._checkpoint, self._rows).astype(FLOAT_TYPES[expr.packing], copy=False)

    def _once(self, key: object, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _quantised(self, expr: WeightExpr) -> dict[str, Array]:
        (weight,) = expr.inputs
        params = dict(expr.params)
        begin = self._rows.start or 0
        name = weight.name if self._rows == ALL else f"{weight.name}[{begin}:{self._rows.stop}]"
        if params["method"] != "gptq" or self._calibration is None:
            return quantise_weight(self.array(weight), params, name)
        with one_thread():
            # Before the weight is loaded: this may run whole layers.
            hessian_of = self._calibration.hessian_of(weight.name)
            return quantise_weight(self.array(weight), params, name, lambda matrix: hessian_of(begin + matrix))
