"""Builds at the true shapes of a large model, from a sparse checkpoint: time, memory, size of the engines.

    python benchmarks/scale.py [--preset deepseek-v3] [--layers 3:5] [--precision int4] [--json FILE]

First the whole trunk as an fp8 engine, which refers to the checkpoint; then, with --layers, an engine of some of its
layers whose weights are converted. Exit code 1 if a bound that the README names is broken.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bounds import beyond, conclude
from benchmarks.launch import run_worker
from benchmarks.machine import machine_facts
from benchmarks.make_sparse_checkpoint import TOKENIZER, config_of
from benchmarks.meters import timed
from benchmarks.recipes import with_method
from benchmarks.sparse import write_sparse
from dsv3export.config import ModelConfig
from dsv3export.config.layer_slice import sliced_layers
from dsv3export.model_size import count_parameters

_ROOT = Path(__file__).resolve().parents[1]
_MAX_SECONDS, _MAX_MEMORY, _MAX_ENGINE_BYTES = 120, 4e9, 50e6


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole result, JSON-able; all files are made in `folder`."""
    checkpoint, engine = folder / "checkpoint", folder / "engine"
    before = machine_facts()
    config_dict = config_of(options.preset, None)
    with timed() as making:
        written = write_sparse(checkpoint, config_dict, TOKENIZER)
    _say(
        f"checkpoint of {written.nbytes / 1e9:,.1f} GB, {written.disk_bytes / 1e9:.2f} GB of disk: {making.wall:.1f} s"
    )
    result = {
        "benchmark": "scale",
        "command": shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]]),
        "machine": before,
        "checkpoint": {"preset": options.preset, **asdict(written), "seconds": making.wall},
        "fp8": _built(checkpoint, engine, "fp8", {"mtp": False}),
    }
    with timed() as inspecting:
        facts = _inspected(engine)
    result["fp8"] |= {"inspect_s": inspecting.wall, "parameters": facts["parameters"]}
    result["fp8"]["weights"] = {part: facts["weights"][part] for part in ("stored", "referenced")}
    if options.layers is not None:
        config = ModelConfig.from_dict(config_dict)
        layers = sliced_layers(options.layers, config.num_hidden_layers)
        recipe = folder / "recipe.toml"
        recipe.write_text(with_method(options.precision, options.method), encoding="utf-8")
        built = _built(checkpoint, engine, options.precision, {"recipe": str(recipe), "layers": options.layers})
        count = count_parameters(config, layers).total
        speed = {"parameters": count, "parameters_per_s": count / built["total"]["wall"]}
        name = {"layers": layers, "precision": options.precision, "method": options.method}
        result["slice"] = {**name, **built, **speed}
    return result


def _built(checkpoint: Path, engine: Path, precision: str, options: dict[str, Any]) -> dict[str, Any]:
    built = run_worker("build", 1, checkpoint=checkpoint, engine=engine, precision=precision, options=options)
    _say(
        f"{precision}, layers {options.get('layers', 'all')}: {built['total']['wall']:.1f} s, "
        f"peak memory {built['peak_rss_bytes'] / 1e9:.2f} GB, "
        f"engine {built['engine_bytes'] / 1e6:,.1f} MB"
    )
    return built


def _inspected(engine: Path) -> Any:
    command = [sys.executable, "-m", "dsv3export", "inspect", str(engine), "--json"]
    return json.loads(subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout)


def broken_bounds(result: dict[str, Any]) -> list[str]:
    """Which of the README's bounds do not hold."""
    fp8 = result["fp8"]
    bounds = {
        "fp8 build, seconds": (fp8["total"]["wall"], _MAX_SECONDS),
        "fp8 build, bytes of memory": (fp8["peak_rss_bytes"], _MAX_MEMORY),
        "fp8 engine, bytes": (fp8["engine_bytes"], _MAX_ENGINE_BYTES),
    }
    if "slice" in result:
        bounds["build of the slice, bytes of memory"] = (result["slice"]["peak_rss_bytes"], _MAX_MEMORY)
    return beyond(bounds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="deepseek-v3", help="whose shapes (default: deepseek-v3)")
    parser.add_argument("--layers", help="also build an engine of these layers, e.g. 3:5; 6 GB of disk for one in int4")
    parser.add_argument("--precision", default="int4", choices=("int8", "int4"), help="of that engine (default: int4)")
    parser.add_argument("--method", default="rtn", choices=("rtn", "mse"), help="how it is rounded (default: rtn)")
    parser.add_argument("--work-dir", type=Path, help="where everything is made, for as long as this runs")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    # gigabytes of temporary files go also when this is terminated
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with TemporaryDirectory(prefix="dsv3export-scale-", dir=options.work_dir) as folder:
        result = measure(options, Path(folder))
    return conclude(result, options.json, broken_bounds(result))


if __name__ == "__main__":
    sys.exit(main())
