"""Triton: tokens sorted by expert, the experts' products, and their weighted sum in a fixed order.

A slot is a pair of a token and one of its experts: slot t * k + j. Slots are put into expert order, each expert's
filled up to whole blocks of rows, so that a program's rows all go through one expert. Results go back to their slots,
and are added in the order of a token's choices: no atomic addition, the same bits in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dsv3export.plugins.kernels.products import Bank, fp8_product, weight_product


@triton.jit
def moe_order(
    ids_ptr,
    count,
    blocks,
    slots_ptr,
    owners_ptr,
    E: tl.constexpr,
    E_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """ids [count] -> slots [blocks * BLOCK], in expert order, and the expert of each block [blocks]; -1 where none.

    Grid: (E). Every program counts all ids, then places its own expert's slots, in their order.
    """
    me = tl.program_id(0)
    every = tl.arange(0, E_PADDED)
    counts = tl.zeros((E_PADDED,), tl.int32)
    for begin in range(0, count, CHUNK):
        slot = begin + tl.arange(0, CHUNK)
        # Beyond the ids lies one bin more than there are experts.
        counts += tl.histogram(tl.load(ids_ptr + slot, mask=slot < count, other=E).to(tl.int32), E_PADDED)
    needed = tl.where(every < E, (counts + BLOCK - 1) // BLOCK, 0)
    first = tl.sum(tl.where(every < me, needed, 0), 0)
    mine = tl.sum(tl.where(every == me, needed, 0), 0)
    used = tl.sum(needed, 0)

    row = tl.arange(0, BLOCK)
    for block in range(first, first + mine):
        tl.store(owners_ptr + block, me)
    # What no expert needs is spread over the programs.
    for block in range(used + me, blocks, E):
        tl.store(owners_ptr + block, -1)
        tl.store(slots_ptr + block * BLOCK + row, tl.full((BLOCK,), -1, tl.int32))
    placed = first * BLOCK
    for begin in range(0, count, CHUNK):
        slot = begin + tl.arange(0, CHUNK)
        expert = tl.load(ids_ptr + slot, mask=slot < count, other=0).to(tl.int32)
        here = ((expert == me) & (slot < count)).to(tl.int32)
        tl.store(slots_ptr + placed + tl.cumsum(here, 0) - here, slot, mask=here == 1)
        placed += tl.sum(here, 0)
    rest = placed + row
    tl.store(slots_ptr + rest, tl.full((BLOCK,), -1, tl.int32), mask=rest < (first + mine) * BLOCK)


@triton.jit
def moe_gate_up(
    x_ptr,
    x_scale_ptr,
    slots_ptr,
    owners_ptr,
    gate_ptr,
    gate_scale_ptr,
    gate_zero_ptr,
    up_ptr,
    up_scale_ptr,
    up_zero_ptr,
    hidden_ptr,
    CHOICES: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    ROUND: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SWAPPED: tl.constexpr,
    NUMBERS: tl.constexpr,
    SCALES: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """hidden[slot] = silu(gate_e @ x[slot // CHOICES]) * (up_e @ x[slot // CHOICES]): [T * k, N].

    NUMBERS, SCALES and ZEROS are how far one expert's part of a bank is from the next one's. Grid: (ceil(N / COLUMNS),
    blocks).
    """
    owner = tl.load(owners_ptr + tl.program_id(1)).to(tl.int64)
    if owner >= 0:
        slot = tl.load(slots_ptr + tl.program_id(1) * ROWS + tl.arange(0, ROWS))
        seen = slot >= 0
        row = tl.where(seen, slot // CHOICES, 0).to(tl.int64)
        form: tl.constexpr = (N, K, ROWS, COLUMNS, SWAPPED, 1, FORMAT, GROUP, ROUND, INNER)
        gate_bank = _expert(gate_ptr, gate_scale_ptr, gate_zero_ptr, owner, NUMBERS, SCALES, ZEROS)
        up_bank = _expert(up_ptr, up_scale_ptr, up_zero_ptr, owner, NUMBERS, SCALES, ZEROS)
        gate, up = _expert_product(x_ptr, x_scale_ptr, row, seen, gate_bank, up_bank, form)
        hidden = gate / (1.0 + tl.exp(-gate)) * up
        _store_slots(hidden_ptr, slot, seen, hidden, N)


@triton.jit
def moe_down(
    hidden_ptr,
    hidden_scale_ptr,
    slots_ptr,
    owners_ptr,
    down_ptr,
    down_scale_ptr,
    down_zero_ptr,
    each_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    ROUND: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SWAPPED: tl.constexpr,
    NUMBERS: tl.constexpr,
    SCALES: tl.constexpr,
    ZEROS: tl.constexpr,
):
    """each[slot] = down_e @ hidden[slot]: [T * k, N]. Grid: as `moe_gate_up`."""
    owner = tl.load(owners_ptr + tl.program_id(1)).to(tl.int64)
    if owner >= 0:
        slot = tl.load(slots_ptr + tl.program_id(1) * ROWS + tl.arange(0, ROWS))
        seen = slot >= 0
        row = tl.where(seen, slot, 0).to(tl.int64)
        form: tl.constexpr = (N, K, ROWS, COLUMNS, SWAPPED, 1, FORMAT, GROUP, ROUND, INNER)
        bank = _expert(down_ptr, down_scale_ptr, down_zero_ptr, owner, NUMBERS, SCALES, ZEROS)
        each, _ = _expert_product(hidden_ptr, hidden_scale_ptr, row, seen, bank, None, form)
        _store_slots(each_ptr, slot, seen, each, N)


@triton.jit
def _expert(numbers, scale, zero, owner, NUMBERS: tl.constexpr, SCALES: tl.constexpr, ZEROS: tl.constexpr):
    """One expert's matrix of a bank."""
    if scale is None:
        one = Bank(numbers + owner * NUMBERS, None, None)
    elif zero is None:
        one = Bank(numbers + owner * NUMBERS, scale + owner * SCALES, None)
    else:
        one = Bank(numbers + owner * NUMBERS, scale + owner * SCALES, zero + owner * ZEROS)
    return one


@triton.jit
def _expert_product(x_ptr, x_scale_ptr, row, seen, bank, other, form: tl.constexpr):
    """Rows of x times the program's columns of one or two matrices; x is e4m3 where it has scales."""
    start = tl.program_id(0) * form[3]
    if x_scale_ptr is not None:
        results = fp8_product(x_ptr, x_scale_ptr, row, seen, bank, other, start, 0, form)
    else:
        results = weight_product(x_ptr, row, seen, bank, other, start, 0, form)
    return results


@triton.jit
def _store_slots(ptr, slot, seen, values, N: tl.constexpr):
    """The program's columns of the slots that are seen."""
    column = tl.program_id(0) * values.shape[1] + tl.arange(0, values.shape[1])
    lines = ptr + tl.where(seen, slot, 0).to(tl.int64)[:, None] * N
    inside = seen[:, None] & (column < N)[None, :]
    tl.store(lines + column[None, :], values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def moe_combine(each_ptr, weights_ptr, y_ptr, CHOICES: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr):
    """y[t] = sum over j of weights[t, j] * each[t * k + j], j ascending, in float32. Grid: (T, ceil(N / COLUMNS))."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for choice in range(CHOICES):
        slot = token * CHOICES + choice
        each = tl.load(each_ptr + slot * N + column, mask=column < N, other=0.0).to(tl.float32)
        total += tl.load(weights_ptr + slot) * each
    tl.store(y_ptr + token * N + column, total.to(y_ptr.dtype.element_ty), mask=column < N)
