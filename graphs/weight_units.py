"""How the weights of an engine are cut into units of work, and what memory each of them takes.

A bank is made some experts at a time, a large matrix some rows at a time where its rows are on their own. The cuts
depend on the shapes only, so that the same bytes come out whatever the memory and the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod

from dsv3export.checkpoint.model_weights import forget_weight, weight_shape
from dsv3export.engine.plan import PlannedWeight
from dsv3export.engine.work import Part, Stage, WorkUnit
from dsv3export.graphs.calibration import Calibration
from dsv3export.graphs.packer import ALL, Array, Packer
from dsv3export.graphs.row_ranges import made_rows
from dsv3export.graphs.weight_expr import WeightExpr
from dsv3export.graphs.weight_groups import Group, by_rows, calibrated, leaf_names, of_banks, weight_groups
from dsv3export.plugins.linear_fp8_block.matmul import BLOCK

# Weights of a unit. A float32 array of so many is beyond what the allocator keeps for itself: it goes back at once.
UNIT_ELEMENTS = 1 << 23
# Of the Hessians of a unit's matrices; an expert of DeepSeek-V3 has more than that alone.
_HESSIAN_ELEMENTS = 1 << 24
# What a thread's allocator holds on to, and temporaries of a fixed size.
_THREAD_BYTES = 48 << 20
# Bytes per weight of a unit's largest weight: the float32 value, a copy that may be written to, numbers and bytes.
_BYTES_PER_WEIGHT = 16
# The same by gptq, and bytes per element of a Hessian: as measured, both rounded up.
_GPTQ_BYTES_PER_WEIGHT, _GPTQ_BYTES_PER_MOMENT = 56, 40


def plan_units(
    plan: Sequence[PlannedWeight], exprs: Mapping[str, WeightExpr], packer: Packer, calibration: Calibration | None
) -> list[Stage]:
    """The units that make the weights of a plan which are not references.

    What is quantised by gptq comes last, in one stage for each call of the main graph: calibration runs along.
    """
    planned = {weight.key: weight for weight in plan if not weight.reference}
    at_once: list[WorkUnit] = []
    by_call: dict[int, list[WorkUnit]] = {}
    for group in weight_groups({name: exprs[name] for name in planned}):
        units = _units(group, planned, exprs, packer, calibration)
        fitted = [leaf for name in group if calibrated(exprs[name]) for leaf in leaf_names(exprs[name])]
        if fitted and calibration is not None:
            by_call.setdefault(max(map(calibration.call_of, fitted)), []).extend(units)
        else:
            at_once.extend(units)
    stages = [Stage(tuple(at_once))]
    if calibration is not None:
        stages += [Stage(tuple(units), partial(calibration.observe, call)) for call, units in sorted(by_call.items())]
    return stages


def _units(
    group: Group,
    planned: Mapping[str, PlannedWeight],
    exprs: Mapping[str, WeightExpr],
    packer: Packer,
    calibration: Calibration | None,
) -> Iterator[WorkUnit]:
    chosen = [exprs[name] for name in group]
    shapes = [weight_shape(leaf, packer.checkpoint) for leaf in leaf_names(chosen[0])]
    gptq = any(map(calibrated, chosen))
    for rows in row_cuts(chosen, shapes, gptq):
        made = [(_part(planned[name], exprs[name], rows), exprs[name]) for name in group]
        parts = tuple(part for part, _ in made if part is not None)
        if not parts:
            continue
        memory = _memory(parts, shapes, rows, gptq)
        if gptq and calibration is not None:
            memory += calibration.bytes_per_matrix
        yield WorkUnit(parts, memory, partial(_make, packer, [expr for part, expr in made if part is not None], rows))


def _make(packer: Packer, exprs: Sequence[WeightExpr], rows: slice) -> Sequence[Array]:
    arrays = packer.pack_all(exprs, rows)
    for leaf in {leaf for expr in exprs for leaf in leaf_names(expr)}:
        # Pages that a unit has read would else count as memory of this process for good.
        forget_weight(leaf, packer.checkpoint, rows)
    return arrays


def row_cuts(exprs: Sequence[WeightExpr], shapes: Sequence[tuple[int, ...]], gptq: bool) -> Iterator[slice]:
    """Ranges of the first axis of the leaves that are made at once; where the cuts are does not change a byte."""
    count = shapes[0][0] if shapes[0] else 1
    each = sum(prod(shape[1:]) for shape in shapes)
    if all(map(of_banks, exprs)):
        step = max(1, UNIT_ELEMENTS // each)
        if gptq:
            step = min(step, max(1, _HESSIAN_ELEMENTS // max(shape[-1] for shape in shapes) ** 2))
    elif len(shapes) == 1 and all(map(by_rows, exprs)):
        step = max(1, UNIT_ELEMENTS // each // BLOCK) * BLOCK
    else:
        step = count
    if step >= count:
        yield ALL
    else:
        yield from (slice(begin, min(begin + step, count)) for begin in range(0, count, step))


def _part(weight: PlannedWeight, expr: WeightExpr, rows: slice) -> Part | None:
    """What of a weight is made of these rows of its leaves; None where nothing is."""
    if rows == ALL:
        return Part(weight)
    found = made_rows(expr, rows)
    return None if found is None else Part(weight, found)


def _memory(parts: Sequence[Part], shapes: Sequence[tuple[int, ...]], rows: slice, gptq: bool) -> int:
    """Bytes that making a unit takes at most."""
    sizes = []
    for shape in shapes:
        count = 1 if not shape else shape[0] if rows == ALL else rows.stop - rows.start
        sizes.append((count, count * prod(shape[1:]), shape))
    largest = max(elements for _, elements, _ in sizes)
    working = _BYTES_PER_WEIGHT * largest + 4 * sum(elements for _, elements, _ in sizes)
    if gptq:
        moments = max((count if len(shape) == 3 else 1) * shape[-1] ** 2 for count, _, shape in sizes)
        working = _GPTQ_BYTES_PER_WEIGHT * largest + _GPTQ_BYTES_PER_MOMENT * moments
    results = sum(part.nbytes for part in parts)
    return working + 3 * results + _THREAD_BYTES
