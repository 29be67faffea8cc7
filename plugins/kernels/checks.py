"""Checks of kernels: plugins on random tensors against the torch definition of the op that they make up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv3export.plugins.kernels.calls import Run, TorchCall
from dsv3export.plugins.kernels.plugin import ACTIVATIONS, Call

TOLERANCES = {"F32": 1e-5, "F16": 1e-3, "BF16": 8e-3}
"""Of ||result - reference|| / ||reference||, by the type of activations: some roundings of its precision."""

Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Check:
    """One call of an op.

    Args:
        op: The dsv3 op.
        name: Of the case, unique within the op.
        compare: Given the way to apply plugins and the dtype of activations, returns pairs of a result and what the
            float32 definition makes of the same inputs.
        dtypes: Of the activations.
        least: The lowest compute capability that has what the plugins need.
        slack: Allows so many times the tolerance, where a rounding in between may tip another.
        exact: Results must be equal, whatever the dtype.
    """

    op: str
    name: str
    compare: Callable[[Call[Tensor], str], Pairs]
    dtypes: tuple[str, ...] = ACTIVATIONS
    least: int = 80
    slack: float = 1.0
    exact: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a check came to; `error` is infinite for NaN, another shape, or what should be equal and is not."""

    op: str
    name: str
    dtype: str
    tile: int
    error: float
    tolerance: float
    seconds: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def run_checks(checks: Sequence[Check], run: Run, target: int, every_tile: bool) -> Iterator[Outcome]:
    """Runs the checks that a device of compute capability `target` can do.

    With `every_tile` each way of cutting the work is tried with each dtype, else another one for each dtype.
    """
    for check in checks:
        if check.least > target:
            continue
        for place, dtype in enumerate(check.dtypes):
            for tile in range(len(ACTIVATIONS)) if every_tile else (place,):
                started = time.perf_counter()
                pairs = check.compare(TorchCall(run, target, tile), dtype)
                error = max(distance(result, reference, check.exact) for result, reference in pairs)
                tolerance = 0.0 if check.exact else check.slack * TOLERANCES[dtype]
                seconds = time.perf_counter() - started
                yield Outcome(check.op, check.name, dtype, tile, error, tolerance, seconds)


def distance(result: Tensor, reference: Tensor, exact: bool = False) -> float:
    """||result - reference|| / ||reference|| in float64, or 0 and infinity for equal and different."""
    if result.shape != reference.shape:
        return float("inf")
    if exact:
        return 0.0 if torch.equal(result.to(reference.dtype), reference) else float("inf")
    right = reference.double()
    norm = float(right.norm())
    error = float((result.double() - right).norm()) / (norm or 1.0)
    return error if error == error else float("inf")
