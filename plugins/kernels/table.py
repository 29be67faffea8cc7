"""A compiled kernel in figures: what it takes, and what its work costs at least on a device of its target."""

from __future__ import annotations

from typing import Any

from dsv3export.plugins.kernels.catalogue import PLUGINS, Use
from dsv3export.plugins.kernels.compiler import Compiled
from dsv3export.plugins.kernels.costs import cost
from dsv3export.plugins.kernels.occupancy import MULTIPROCESSORS
from dsv3export.plugins.kernels.plugin import Launch
from dsv3export.plugins.kernels.sizes import known, product
from dsv3export.sizing.devices import DEVICES


def figures(use: Use, launch: Launch, target: int, kernel: Compiled) -> dict[str, Any]:
    """One row, in JSON's types: bytes, counts, and microseconds for the floor."""
    build, processor = launch.build, MULTIPROCESSORS[target]
    work = cost(PLUGINS[use.plugin], use.inputs, use.attributes)
    return {
        "kernel": build.name,
        "plugin": use.plugin,
        "target": f"sm_{target}",
        "arguments": dict(build.arguments),
        "constants": dict(build.constants),
        "warps": build.warps,
        "stages": build.stages,
        "ptx_bytes": len(kernel.ptx),
        "registers": kernel.registers,
        "spilled_bytes": kernel.spilled,
        "shared_bytes": kernel.shared,
        "programs_a_processor": processor.holds(kernel),
        "wide_loads": kernel.wide_loads,
        "narrow_loads": kernel.narrow_loads,
        "matrix_instructions": dict(kernel.matrix),
        "step_instructions": kernel.step,
        "programs": known(product(launch.grid)),
        "device": processor.device,
        "processors": processor.count,
        "moved_bytes": work.bytes,
        "flops": work.flops,
        "floor_microseconds": round(1e6 * work.floor(DEVICES[processor.device]), 2),
    }
