"""PTX as TensorRT wants it: an entry with the arguments that the plugin passes, and nothing else."""

from __future__ import annotations

import re
from collections import Counter

from dsv3export.errors import InternalError

_ENTRY = re.compile(r"(\.visible\s+\.entry\s+(?P<name>\w+)\s*\()(?P<parameters>[^)]*)(\))")
_MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\S*?\.(m\d+n\d+k\d+)\S*", re.ASCII)
_TCGEN05 = re.compile(r"\btcgen05\.mma\S*")
_LOAD = re.compile(r"\bld\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(?P<count>\d))?\.[bsuf](?P<bits>\d+)\b")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^;]*?\],[^;]*?\],\s*(?P<bytes>0x\w+|\d+)")
_WIDE = 16


def entry_with(ptx: str, count: int) -> str:
    """The PTX with only the first `count` parameters of its one entry.

    Triton adds pointers to scratch memory, which TensorRT does not pass: its plugins have no workspace.

    Raises:
        InternalError: The kernel reads a parameter that would be dropped, or the PTX has not one entry.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise InternalError(f"expected one entry in the PTX, got {len(entries)}")
    (entry,) = entries
    parameters = [parameter.strip() for parameter in entry["parameters"].split(",")]
    body = ptx[entry.end() :]
    for parameter in parameters[count:]:
        name = parameter.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise InternalError(f"kernel {entry['name']} needs scratch memory ({name}), which TensorRT does not offer")
    if len(parameters) < count:
        raise InternalError(f"kernel {entry['name']} has {len(parameters)} parameters, expected {count}")
    kept = ",\n\t".join(parameters[:count])
    return f"{ptx[: entry.start()]}{entry[1]}\n\t{kept}\n{entry[4]}{body}"


def parameter_types(ptx: str) -> tuple[str, ...]:
    """The PTX types of the entry's parameters, e.g. ``("u64", "u32", "u64")``."""
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise InternalError("the PTX has no entry")
    return tuple(re.findall(r"\.param\s+\.(\w+)", entry["parameters"]))


def matrix_instructions(ptx: str) -> dict[str, int]:
    """How many instructions of each kind multiply matrices, e.g. ``{"wgmma.mma_async m64n64k32": 4}``."""
    found = Counter(f"{match[1]} {match[2]}" for match in _MATRIX.finditer(ptx))
    fifth = len(_TCGEN05.findall(ptx))
    if fifth:
        found["tcgen05.mma"] = fifth
    return dict(found)


def global_loads(ptx: str) -> tuple[int, int]:
    """How many instructions load from global memory 16 bytes or more for a thread, and how many less."""
    sizes = [int(load["count"] or 1) * int(load["bits"]) // 8 for load in _LOAD.finditer(ptx)]
    sizes += [int(copy["bytes"], 0) for copy in _COPY.finditer(ptx)]
    wide = sum(size >= _WIDE for size in sizes)
    return wide, len(sizes) - wide
