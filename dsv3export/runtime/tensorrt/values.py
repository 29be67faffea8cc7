"""Where the values between a program's calls lie in one piece of device memory, those that never meet at one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsv3export.dtypes import itemsize
from dsv3export.engine.program import Port, Program
from dsv3export.runtime.device import aligned

Sizes = Mapping[str, int]


def shape_at(shape: Sequence[int | str], sizes: Sizes) -> tuple[int, ...]:
    """A shape where symbols have these sizes; a symbol may be a product such as ``B*S``."""
    return tuple(
        size if isinstance(size, int) else math.prod(sizes[factor] for factor in size.split("*")) for size in shape
    )


def port_shape(port: Port, sizes: Sizes) -> tuple[int, ...]:
    """A tensor's."""
    return shape_at(port.shape, sizes)


def port_bytes(port: Port, sizes: Sizes) -> int:
    """Bytes of a tensor of that shape; two 4-bit numbers share one."""
    count = math.prod(port_shape(port, sizes))
    return -(-count // 2) if port.dtype == "I4" else count * itemsize(port.dtype)


@dataclass(frozen=True)
class _Value:
    """Bytes at most, and the first and last call that it has to be there for."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class ValuePlan:
    """Name of a value -> its offset; `nbytes` of all."""

    offsets: Mapping[str, int]
    nbytes: int


def plan_values(program: Program, largest: Sizes) -> ValuePlan:
    """Places what calls hand to each other, and what goes in and out, but for caches, which have memory of their own.

    The largest first, each at the lowest place where nothing is that lives at the same time.

    Args:
        largest: The most that each symbol may be.
    """
    values = _lifetimes(program, largest)
    placed: dict[str, tuple[int, _Value]] = {}
    for name, value in sorted(values.items(), key=lambda item: (-item[1].nbytes, item[0])):
        taken = sorted(
            (offset, offset + aligned(other.nbytes))
            for offset, other in placed.values()
            if other.first <= value.last and value.first <= other.last
        )
        offset = 0
        for begin, end in taken:
            if offset + aligned(value.nbytes) <= begin:
                break
            offset = max(offset, end)
        placed[name] = offset, value
    nbytes = max((offset + aligned(value.nbytes) for offset, value in placed.values()), default=0)
    return ValuePlan({name: offset for name, (offset, _) in placed.items()}, nbytes)


def _lifetimes(program: Program, largest: Sizes) -> dict[str, _Value]:
    """What comes from outside is there from the start, what goes out stays to the end."""
    values: dict[str, _Value] = {}
    end = len(program.calls)
    for place, call in enumerate(program.calls):
        kind = program.kinds[call.kind]
        aliased = {call.outputs[name] for name in kind.aliases} | {call.inputs[name] for name in kind.aliases.values()}
        for ports, names in ((kind.inputs, call.inputs), (kind.outputs, call.outputs)):
            for port in ports:
                name = names[port.name]
                if port.host or name in aliased:
                    continue
                known = values.get(name)
                first = known.first if known else 0 if name in program.inputs else place
                nbytes = max(port_bytes(port, largest), known.nbytes if known else 0)
                values[name] = _Value(nbytes, first, end if name in program.outputs else place)
    return values
