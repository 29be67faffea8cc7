"""What the machine code of a kernel says: the instructions of a step of its loop over matrix products."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

_LABEL = re.compile(r"^(\.L_x_\d+):", re.ASCII)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?P<text>[^;]*);")
_BRANCH = re.compile(r"\bBRA\b.*`\((?P<label>\.L_x_\d+)\)")
# HMMA, IMMA: a warp's; HGMMA, QGMMA, IGMMA: Hopper's; UTCHMMA, UTCQMMA, UTCIMMA: Blackwell's.
_MATRIX = re.compile(r"\b(?:UTC)?[HQI]G?MMA\b")


def disassembled(cubin: bytes, tool: Path) -> str:
    """The machine code as nvdisasm prints it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout


def step_instructions(code: str) -> int:
    """How many instructions a warp issues in the shortest loop around a product of matrices; 0 where there is none.

    Whatever memory does, a processor issues one of these a clock for each of its four schedulers.
    """
    lines: list[str] = []
    labels: dict[str, int] = {}
    loops: list[int] = []
    for text in code.splitlines():
        if label := _LABEL.match(text):
            labels[label[1]] = len(lines)
        elif instruction := _INSTRUCTION.match(text):
            lines.append(instruction["text"])
            branch = _BRANCH.search(instruction["text"])
            begin = labels.get(branch["label"]) if branch else None
            if begin is not None and any(_MATRIX.search(line) for line in lines[begin:]):
                loops.append(len(lines) - begin)
    return min(loops, default=0)
