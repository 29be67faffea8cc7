"""Bytes, operations and times in the decimal units that hardware is sold by."""

from __future__ import annotations

from collections.abc import Sequence

_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def decimal_bytes(count: float) -> str:
    """80e9 -> '80.0 GB'."""
    return scaled(count, _DECIMAL_UNITS)


def scaled(count: float, units: Sequence[str]) -> str:
    """A count in the largest of `units`, each 1000 of the one before, of which it has one."""
    power = 0
    while count >= 999.95 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.1f} {units[power]}" if power else f"{count:.0f} {units[0]}"


def time_text(seconds: float) -> str:
    """0.0012 -> '1.20 ms'."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:,.2f} {unit}"
    return f"{seconds / 1e-6:.1f} us"
