"""The instruction sets that this machine's kernels can use."""

from __future__ import annotations

from dsv3export.runtime import cpu_kernels

_ALL = ("generic", "avx2", "avx512", "amx")


def instruction_sets() -> tuple[str, ...]:
    """Names for DSV3EXPORT_CPU_ISA, ascending; none without a library."""
    description = cpu_kernels.describe()
    return _ALL[: _ALL.index(description.machine_isa) + 1] if description else ()
