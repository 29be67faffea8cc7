"""Sizes of tensors, which may be known only when an engine runs: one arithmetic for numbers and for expressions."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from dsv3export.errors import InternalError


class Expression(Protocol):
    """A size that is an expression over sizes that are known only when the engine runs."""

    def __add__(self, other: Size, /) -> Size: ...

    def __radd__(self, other: int, /) -> Size: ...

    def __sub__(self, other: Size, /) -> Size: ...

    def __mul__(self, other: Size, /) -> Size: ...

    def __rmul__(self, other: int, /) -> Size: ...

    def ceil_div(self, other: int, /) -> Size: ...

    def at_most(self, other: int, /) -> Size: ...


Size: TypeAlias = "int | Expression"


def ceil_div(size: Size, divisor: int) -> Size:
    """ceil(size / divisor)."""
    return -(-size // divisor) if isinstance(size, int) else size.ceil_div(divisor)


def at_most(size: Size, limit: int) -> Size:
    """min(size, limit)."""
    return min(size, limit) if isinstance(size, int) else size.at_most(limit)


def product(sizes: tuple[Size, ...]) -> Size:
    """How many elements a shape has; 1 for no dimensions."""
    count: Size = 1
    for size in sizes:
        count = count * size
    return count


def known(size: Size) -> int:
    """The value of a size that a kernel has as a constant.

    Raises:
        InternalError: It is not known when the engine is built; the rows must not build such a network.
    """
    if not isinstance(size, int):
        raise InternalError("a kernel needs a size as a constant that is known only when the engine runs")
    return size


def parts_for(rows: int, columns: int, inner: int, processors: int) -> int:
    """Into how many parts a product of few rows shares out K, so that every processor has two programs.

    A part keeps eight blocks of 128, since what it saves must pay for adding it up; many rows fill a device by
    themselves.
    """
    if rows > 64:
        return 1
    programs = -(-columns // 128)
    wanted = min(-(-2 * processors // programs), inner // (8 * 128))
    return 1 << max(wanted.bit_length() - 1, 0)


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is neither below `size` nor below `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())
