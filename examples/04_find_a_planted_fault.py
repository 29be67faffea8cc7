"""Build an engine of a checkpoint with one damaged expert, and let `diff` find it; its page shows the rest.

Run it from the repository: .venv/bin/python examples/04_find_a_planted_fault.py report.html
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import sys
import tempfile
from pathlib import Path

from dsv3export.cli.main import call
from dsv3export.graphs.build import build_engine

CHECKPOINT = Path(__file__).resolve().parents[1] / "tests" / "data" / "tiny-dsv3-bf16"
TEXT = Path(__file__).resolve().parents[1] / "tests" / "data" / "goldens" / "heldout.txt"
DAMAGED = "model.layers.2.mlp.experts.5.up_proj.weight"


def main(report: str) -> None:
    page = Path(report).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(CHECKPOINT, "damaged")
        for shard in Path("damaged").glob("*.safetensors"):
            swap_halves(shard, DAMAGED)
        build_engine("damaged", "damaged.engine", precision="int4")
        Path("right").symlink_to(CHECKPOINT)
        verses = TEXT.read_text(encoding="utf-8").split("\n")[2:10]
        Path("prompts.txt").write_text("\n".join(verses), encoding="utf-8")
        call(["diff", "right", "damaged.engine", "--prompts", "prompts.txt", "--html", str(page)])


def swap_halves(shard: Path, tensor: str) -> None:
    """The second half of a tensor's rows comes first."""
    data = bytearray(shard.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + length]).get(tensor)
    if entry is not None:
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        middle = (start + end) // 2
        data[start:end] = data[middle:end] + data[start:middle]
        shard.write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "report.html")
