"""Builds of TensorRT-RTX engines, which need no GPU: time, memory, size by layer kind.

    python benchmarks/tensorrt_build.py [--preset deepseek-v3] [--json FILE]

First the trained model's two checkpoints at each precision; then a model of true shapes as an fp8 engine, from a sparse
checkpoint. Exit code 1 if a bound that the README names is broken.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bounds import beyond, conclude
from benchmarks.command import without_paths
from benchmarks.launch import run_worker
from benchmarks.machine import machine_facts
from benchmarks.make_sparse_checkpoint import TOKENIZER, config_of
from benchmarks.sparse import write_sparse
from dsv3export.engine.manifest import Manifest

_ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = {"fp8": _ROOT / "examples" / "tiny-dsv3", "bf16": _ROOT / "tests" / "data" / "tiny-dsv3-bf16"}
PRECISIONS = ("bf16", "fp8", "int8", "int4")
_MAX_SECONDS, _MAX_MEMORY = 300, 8e9


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole result, JSON-able; all files are made in `folder`."""
    result: dict[str, Any] = {
        "benchmark": "tensorrt_build",
        "command": shlex.join(["python", "benchmarks/tensorrt_build.py", *without_paths(sys.argv[1:])]),
        "machine": machine_facts(),
        "tiny": [
            {"checkpoint": name, "precision": precision, **_built(path, folder / "engine", precision)}
            for name, path in CHECKPOINTS.items()
            for precision in options.precisions
        ],
    }
    written = write_sparse(folder / "checkpoint", config_of(options.preset, None), TOKENIZER)
    built = _built(folder / "checkpoint", folder / "engine", "fp8")
    result["true_shapes"] = {"preset": options.preset, "checkpoint_bytes": written.nbytes, "precision": "fp8", **built}
    return result


def _built(checkpoint: Path, engine: Path, precision: str) -> dict[str, Any]:
    options = {"backend": "tensorrt-rtx"}
    built = run_worker("build", 1, checkpoint=checkpoint, engine=engine, precision=precision, options=options)
    manifest = Manifest.read(engine)
    sizes = {name: graph.size for name, graph in manifest.graphs.items() if graph.file.endswith(".engine")}
    print(
        f"{checkpoint.name} {precision}: {built['total']['wall']:.1f} s, peak memory "
        f"{built['peak_rss_bytes'] / 1e9:.2f} GB, engines {sum(sizes.values()) / 1e6:.1f} MB",
        file=sys.stderr,
        flush=True,
    )
    return {**built, "tensorrt": manifest.backend.built_with, "graph_bytes": sizes}


def broken_bounds(result: dict[str, Any]) -> list[str]:
    """Which of the README's bounds do not hold."""
    built = result["true_shapes"]
    bounds = {
        "build at true shapes, seconds": (built["total"]["wall"], _MAX_SECONDS),
        "build at true shapes, bytes of memory": (built["peak_rss_bytes"], _MAX_MEMORY),
    }
    return beyond(bounds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="deepseek-v3", help="whose true shapes (default: deepseek-v3)")
    parser.add_argument(
        "--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="of the trained model (default: all)"
    )
    parser.add_argument("--work-dir", type=Path, help="where everything is made, for as long as this runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    # temporary files go also when this is terminated
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with TemporaryDirectory(prefix="dsv3export-tensorrt-", dir=options.work_dir) as folder:
        result = measure(options, Path(folder))
    return conclude(result, options.json, broken_bounds(result))


if __name__ == "__main__":
    sys.exit(main())
