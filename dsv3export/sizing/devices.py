"""What GPUs offer: memory, bandwidth and matrix rates, from their data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MatrixType = Literal["bf16", "fp8"]


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        memory: Bytes, as sold (1 GB = 10^9 bytes).
        bandwidth: Bytes per second from device memory.
        flops: Floating-point operations per second of dense matrix products with float32 accumulation, by the type of
            the factors.
    """

    name: str
    memory: int
    bandwidth: float
    flops: Mapping[MatrixType, float]


def device(name: str, gigabytes: float, gigabytes_per_second: float, bf16: float, fp8: float | None = None) -> Device:
    """A device in the units of data sheets: GB, GB/s, TFLOP/s. Without `fp8` its rate is that of bf16."""
    rates: dict[MatrixType, float] = {"bf16": bf16 * 1e12, "fp8": (bf16 if fp8 is None else fp8) * 1e12}
    return Device(name, int(gigabytes * 1e9), gigabytes_per_second * 1e9, rates)


# NVIDIA's data sheets, the figures without sparsity: A100 SXM4 80 GB, H100 SXM5, H200 SXM5, B200 (one GPU of a DGX
# B200), and the "Ada" and "Blackwell GPU Architecture" white papers for the two GeForce cards (FP8 with FP32
# accumulate).
DEVICES: Mapping[str, Device] = {
    entry.name: entry
    for entry in (
        device("a100", 80, 2039, 312),
        device("h100", 80, 3350, 989, 1979),
        device("h200", 141, 4800, 989, 1979),
        device("b200", 180, 8000, 2250, 4500),
        device("rtx-4090", 24, 1008, 165.2, 330.3),
        device("rtx-5090", 32, 1792, 209.5, 419),
    )
}
