"""Writes tests/data/cuda_kernels.json: what the CUDA provider of the installed onnxruntime-gpu registers.

Run it where that provider loads (its libraries and a driver are needed, no particular GPU)::

    python tests/support/make_cuda_kernels.py tests/data/cuda_kernels.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as native

OPSET = 24
DOMAINS = {"": OPSET, "com.microsoft": 1}
SIDES = ("inputs", "outputs")


def main(out: Path) -> None:
    """Ops by domain and name: the type parameter of each input, and the types of each kernel."""
    ops: dict[str, dict[str, Any]] = {}
    for schema in sorted(native.get_all_operator_schema(), key=lambda schema: schema.since_version):
        if schema.domain in DOMAINS and schema.since_version <= DOMAINS[schema.domain]:
            formals = {side: [_bare(formal.typeStr) for formal in getattr(schema, side)] for side in SIDES}
            ops[f"{schema.domain}:{schema.name}"] = formals | {"kernels": []}
    for kernel in native.get_all_opkernel_def():
        name = f"{kernel.domain}:{kernel.op_name}"
        first, last = kernel.version_range
        if kernel.provider == "CUDAExecutionProvider" and name in ops and first <= DOMAINS[kernel.domain] <= last:
            tensors = {
                key: sorted(_bare(each) for each in types if each.startswith("tensor"))
                for key, types in kernel.type_constraints.items()
            }
            ops[name]["kernels"].append(tensors)
    registered = {name: op for name, op in sorted(ops.items()) if op["kernels"]}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(op)}" for name, op in registered.items())
    text = f'{{"onnxruntime-gpu": "{onnxruntime.__version__}", "opset": {OPSET}, "ops": {{\n{rows}\n}}}}\n'
    out.write_text(text, encoding="utf-8")


def _bare(type_name: str) -> str:
    """``tensor(float)`` -> ``float``; the name of a type parameter is left as it is."""
    return type_name.removeprefix("tensor(").removesuffix(")")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
