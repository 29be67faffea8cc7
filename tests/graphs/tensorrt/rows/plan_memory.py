"""What a TensorRT-RTX engine holds in device memory while it runs, as its plan says in readable text.

Only for tests: the text is nobody's interface, but there is no other word without a GPU on what is fused.
"""

from __future__ import annotations

import re
from math import prod

# Bits per element by the plan's names of types; a type that is not here is taken for the widest.
_BITS = {"float": 32, "int32": 32, "bf16": 16, "half": 16, "int8": 8, "bool": 8, "fp8_e4m3": 8, "int4": 4}
_TENSOR = re.compile(
    r'tensor=\{(?![^\n]*is_scratchspace=1)[^\n]*?dims=\{ ([^}\n]*) \}[^\n]*?region="?(devmem[^" ]*)"? [^\n]*?type=(\w+)'
)


def largest_buffer(plan: bytes) -> int:
    """Bytes of the largest tensor that layers hand on by way of memory; each run-time size counts as 1.

    Kernels' scratch space does not count.

    Raises ValueError if the plan's text has no such tensor.
    """
    found = _TENSOR.findall(plan.decode("latin1"))
    sizes = [
        prod(int(size) for size in dims.split() if size.isdigit()) * _BITS.get(kind, 64) for dims, _, kind in found
    ]
    return max(sizes) // 8
