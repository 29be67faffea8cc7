"""How many programs of a kernel a multiprocessor holds at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv3export.plugins.kernels.compiler import Compiled


@dataclass(frozen=True)
class Multiprocessor:
    """What programs share.

    Args:
        device: A device of this compute capability, as `dsv3export.sizing.devices` names it.
        count: How many of these the device has.
        shared: Bytes of shared memory; each program takes 1 KB beside its own.
        threads, programs: That it holds at most.
    """

    device: str
    count: int
    shared: int
    threads: int
    programs: int

    def holds(self, kernel: Compiled) -> int:
        """Programs of a kernel at a time; none where one alone asks for too much."""
        registers = -(-kernel.registers // _REGISTER_UNIT) * _REGISTER_UNIT * kernel.threads
        return min(
            _REGISTERS // max(registers, 1),
            self.shared // (kernel.shared + _SHARED_RESERVED),
            self.threads // kernel.threads,
            self.programs,
        )


_REGISTERS, _REGISTER_UNIT = 65536, 8
_SHARED_RESERVED = 1024

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; multiprocessors from the data sheets.
MULTIPROCESSORS: Mapping[int, Multiprocessor] = {
    80: Multiprocessor("a100", 108, 164 * 1024, 2048, 32),
    89: Multiprocessor("rtx-4090", 128, 100 * 1024, 1536, 24),
    90: Multiprocessor("h100", 132, 228 * 1024, 2048, 32),
    100: Multiprocessor("b200", 148, 228 * 1024, 2048, 32),
    120: Multiprocessor("rtx-5090", 170, 100 * 1024, 1536, 24),
}
"""Compute capability -> a device that has it."""
