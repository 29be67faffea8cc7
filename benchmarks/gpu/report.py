"""Results of the kernels' benchmark: the table, the file, and what it was measured on."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.limits import Limits
from benchmarks.gpu.measure import Result, without_nan
from dsv3export.plugins.kernels.compiler import load_triton

FORMAT = 1
RESULTS = Path(__file__).resolve().parents[1] / "results"


def results_path(device: str) -> Path:
    """E.g. ``benchmarks/results/kernels-nvidia-h100-80gb-hbm3.json``."""
    return RESULTS / f"kernels-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def facts(device: str, driver: str) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "device": device,
        "driver": driver,
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "triton": str(load_triton().__version__),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def document(
    made: Mapping[str, str], limits: Limits, rows: Iterable[Mapping[str, Any]], left_out: Sequence[str]
) -> dict[str, Any]:
    """All of a run, JSON-able."""
    return {
        "format": FORMAT,
        **made,
        "limits": without_nan({"bandwidth": limits.bandwidth, "rates": dict(limits.rates)}),
        "results": list(rows),
        "left_out": list(left_out),
    }


def merged(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """A new run's results over an older one's of the same device; each row says when it was measured."""
    dated = [{**row, "date": new["date"]} for row in new["results"]]
    kept = {} if old is None else {(row["kernel"], row["shape"]): row for row in old["results"]}
    kept |= {(row["kernel"], row["shape"]): row for row in dated}
    left = [name for name in new["left_out"] if tuple(name.split(": ", 1)) not in kept]
    return {**new, "results": list(kept.values()), "left_out": left}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    """An earlier run's file, or None where there is none of this format."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


HEADINGS = f"{'kernel':14} {'shape':58} {'us':>9} {'GB/s':>6} {'TF/s':>6} {'bw':>5} {'mm':>5} {'floor':>6}  peer"


def line(result: Result) -> str:
    """A row of the table: time, rates, shares of bandwidth and matmul rate, time over floor, the best peer."""
    microseconds = result.times.microseconds
    if not result.right:
        return f"{result.kernel:14} {result.shape:58} WRONG: distance {result.error:.1e} > {result.tolerance:.0e}"
    if microseconds != microseconds:
        return f"{result.kernel:14} {result.shape:58} right ({result.error:.1e}); interpreted, not timed"
    rates = result.floor.bytes / microseconds / 1e3, result.floor.flops / microseconds / 1e6
    note = "" if result.out_of_cache else " (in cache)"
    over = microseconds / result.floor_microseconds
    peer = "" if result.best_peer is None else f"{result.best_peer.name} x {result.ratio:.2f}"
    return (
        f"{result.kernel:14} {result.shape:58} {microseconds:9.1f} {rates[0]:6.0f} {rates[1]:6.0f} "
        f"{result.of_bandwidth:5.0%} {result.of_matmul:5.0%} {over:6.2f}  {peer}{note}"
    )
