"""What the kernels' machine code says of their speed, with no GPU: tables of all targets, and of steps on an H100.

    .venv/bin/python benchmarks/kernel_estimates.py --json benchmarks/results/kernels-estimates.json

A step of a decode kernel reads some bytes of weights or of the cache. Memory takes some clocks for them, if its
bandwidth is shared evenly; the processor takes others to issue the step's instructions, one a clock for each of four
schedulers. Where the second number is the smaller one, memory can be the limit. Nothing here is a measurement.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsv3export.plugins.kernels.cache import compile_all
from dsv3export.plugins.kernels.catalogue import USES, launches
from dsv3export.plugins.kernels.compiler import PTX_VERSION, TARGETS, load_triton
from dsv3export.plugins.kernels.occupancy import MULTIPROCESSORS
from dsv3export.plugins.kernels.table import figures
from dsv3export.sizing.devices import DEVICES

_SCHEDULERS = 4
_LEFT_OUT = ("arguments", "processors")
_BITS = {"plain": 16, "fp8": 8, "int8": 8, "int4": 4}
# Operations of a multiprocessor in a clock, of e4m3 factors (H100 white paper): so the data sheet's rate has a clock.
_FP8_FLOPS_A_CLOCK = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Write the tables here; a log that the file has is kept.")
    arguments = parser.parse_args()
    rows = [row for target in TARGETS for row in compiled_rows(target)]
    steps = [step for row in rows if row["target"] == "sm_90" and (step := step_of(row)) is not None]
    for line in markdown(steps):
        print(line)
    if arguments.json:
        write(arguments.json, rows, steps)


def compiled_rows(target: int) -> list[dict[str, Any]]:
    """`figures` of each kernel that DeepSeek-V3's shapes make, for one target."""
    wanted = [(use, launch) for use in USES for launch in launches(use, target)]
    made = compile_all([(launch.build, target) for _, launch in wanted])
    rows = [figures(use, launch, target, kernel) for (use, launch), kernel in zip(wanted, made, strict=True)]
    return [{name: value for name, value in row.items() if name not in _LEFT_OUT} for row in rows]


def step_bytes(row: Mapping[str, Any]) -> int | None:
    """What a step of few rows streams from memory; None for kernels of many rows, and without products."""
    constants = row["constants"]
    if not row["step_instructions"]:
        return None
    if row["kernel"] == "mla_split":
        width = 2 * (constants["DC"] + constants["DR"])
        if constants["GROUPS"]:
            width = constants["DC"] + 2 * (constants["DR"] + constants["GROUPS"])
        return int(constants["TOKENS"] * width)
    if constants.get("ROWS", 64) >= 64:
        return None
    rounded = row["kernel"] == "fp8_block_gemm" or row["plugin"].endswith("Rounded")
    inner = 128 if rounded else constants["INNER"]
    banks = 2 if row["kernel"] == "moe_gate_up" else 1
    return int(banks * constants["COLUMNS"] * inner * _BITS[constants.get("FORMAT", "fp8")] // 8)


def step_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Clocks of a step by memory and by the schedulers, on an H100."""
    streamed = step_bytes(row)
    if streamed is None:
        return None
    processor, device = MULTIPROCESSORS[90], DEVICES["h100"]
    clock = device.flops["fp8"] / (processor.count * _FP8_FLOPS_A_CLOCK)
    memory = streamed / (device.bandwidth / processor.count / clock)
    issue = row["step_instructions"] * row["warps"] / _SCHEDULERS
    constants = row["constants"]
    return {
        "plugin": row["plugin"],
        "format": constants.get("FORMAT", ""),
        "rows": constants["ROWS"],
        "columns": constants.get("COLUMNS", constants.get("TOKENS")),
        "inner": constants.get("INNER", ""),
        "rounds": bool(constants.get("ROUND", False)),
        "heads": constants.get("H", ""),
        "warps": row["warps"],
        "bytes": streamed,
        "instructions": row["step_instructions"],
        "memory_clocks": round(memory),
        "issue_clocks": round(issue),
        "held": row["programs_a_processor"],
    }


def markdown(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    names = ["plugin", "format", "rows", "columns", "inner", "heads", "warps", "bytes", "instructions"]
    names += ["memory_clocks", "issue_clocks", "held"]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|---" * len(names) + "|"]
    return lines + ["| " + " | ".join(str(step[name]) for name in names) + " |" for step in steps]


def write(path: Path, rows: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> None:
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    made = {
        "triton": load_triton().__version__,
        "ptx_version": PTX_VERSION,
        "command": "benchmarks/kernel_estimates.py",
    }
    parts = {"made": made, "log": old.get("log", []), "steps_on_h100": steps, "kernels": rows}
    lines = ",\n".join(f'"{name}": {_one_a_line(part)}' for name, part in parts.items())
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _one_a_line(part: Any) -> str:
    if not isinstance(part, list) or not part:
        return json.dumps(part)
    return "[\n" + ",\n".join(json.dumps(each) for each in part) + "\n]"


if __name__ == "__main__":
    main()
