"""What a call must give: the executor's answer, and how far from it a right backend may be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dsv3export.compare.difference import Difference
from dsv3export.graphs.conformance.calls import Array, OpCall
from dsv3export.graphs.conformance.one_op import STEP_ARGUMENT
from dsv3export.graphs.interpreter import run
from dsv3export.graphs.rewrite import GraphWithWeights
from dsv3export.graphs.tensors import numpy_array, torch_tensor

# The largest relative error of a token's row, by what a backend computes with. A float32 program differs from another
# one by the order of its sums. bfloat16 and float16 have 8 and 11 bits, and a call rounds a few times. Rows rounded to
# int8 lose up to 1/254 of their largest number each.
TOLERANCES: Mapping[str, float] = {"fp32": 2e-5, "f16": 4e-3, "bf16": 2.5e-2, "int8": 2e-2}


def expected(call: OpCall, graph: GraphWithWeights) -> dict[str, Array]:
    """The executor's outputs by name; `call` keeps its cache."""
    inputs = {name: torch_tensor(array.copy()) for name, array in run_time_inputs(call).items()}
    weights = {name: torch_tensor(array) for name, array in call.weights.items()}
    return {name: numpy_array(tensor) for name, tensor in run(graph.model, inputs, weights).items()}


def run_time_inputs(call: OpCall) -> dict[str, Array]:
    """What a step hands to the kind: the op's run-time inputs, and `cos`, of which only the shape counts."""
    return {**call.run_time, STEP_ARGUMENT: np.zeros((*call.step, 1), np.float32)}


def error(call: OpCall, want: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    """The largest relative error of a token's row over all outputs; infinite where a shape or an expert differs.

    Of a cache the rows that the step writes are looked at apart from those that it must leave alone.
    """
    caches = dict(call.op.aliases)
    return max(_error(want[name], got[name], call.written if name in caches else None) for name in want)


def _error(want: Array, got: Array, written: NDArray[np.bool_] | None) -> float:
    if want.shape != got.shape:
        return np.inf
    if np.issubdtype(want.dtype, np.integer):
        return 0.0 if np.array_equal(want, got) else np.inf
    if written is None:
        return _row_error(want, got)
    return max(_row_error(want[rows], got[rows]) for rows in (written, ~written))


def _row_error(want: Array, got: Array) -> float:
    difference = Difference()
    difference.add(0, _rows(want), _rows(got))
    return difference.summary().worst_row


def _rows(array: Array) -> Array:
    return array.astype(np.float32).reshape(-1, array.shape[-1])
