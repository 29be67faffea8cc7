"""What `dsv3export diff` takes beside two plain runs: time, memory, and what it costs a session that it is not for.

    python benchmarks/diff.py [--preset 0.5b] [--precision int8] [--models FOLDER] [--json FILE]

Each run is a process of its own. Prompts are random tokens. The bounds: memory at most 1 GB beyond the largest layer in
float32, time at most 3 times that of both plain runs together.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bounds import conclude
from benchmarks.command import without_paths
from benchmarks.launch import run_worker
from benchmarks.machine import machine_facts
from benchmarks.models import Models
from benchmarks.presets import PRESETS

_MAX_TIME_RATIO, _MAX_EXTRA_BYTES = 3.0, 1e9
RUNS = ("diff_executor", "diff_engine", "diff")


def measure(options: argparse.Namespace, models: Models) -> dict[str, Any]:
    """The whole result, JSON-able."""
    engine, _ = models.engine(options.precision, 1)
    source = random.Random(1)
    vocab = models.config.vocab_size
    prompts = [[source.randrange(vocab) for _ in range(options.tokens)] for _ in range(options.prompts)]
    job = {"checkpoint": models.checkpoint, "engine": engine, "prompts": prompts}
    result: dict[str, Any] = {
        "benchmark": "diff",
        "command": " ".join(["python", "benchmarks/diff.py", *without_paths(sys.argv[1:])]),
        "machine": machine_facts(),
        "settings": {name: getattr(options, name) for name in ("preset", "precision", "prompts", "tokens", "threads")},
    }
    for kind in RUNS:
        result[kind] = [run_worker(kind, options.threads, **job) for _ in range(options.repeats)]
        _say(f"{kind}: {_wall(result, kind):.1f} s, peak {_peak(result, kind) / 1e9:.2f} GB")
    result["steps"] = run_worker("diff_steps", options.threads, **job, steps=options.steps, rounds=options.rounds)
    _say("; ".join(f"step {name} {found['median_ms']:.2f} ms" for name, found in result["steps"].items()))
    return {**result, "summary": summary(result)}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The figures that have bounds, and a plain step after a comparison over one before."""
    plain = _wall(result, "diff_executor") + _wall(result, "diff_engine")
    layer = result["diff"][0]["largest_layer_bytes"]
    steps = {name: found["median_ms"] for name, found in result["steps"].items()}
    return {
        "time_ratio": _wall(result, "diff") / plain,
        "largest_layer_bytes": layer,
        "bytes_beyond_largest_layer": _peak(result, "diff") - layer,
        "step_after_over_before": steps["after"] / steps["before"],
        "step_with_hidden_over_plain": steps["hidden"] / steps["before"],
    }


def broken_bounds(figures: dict[str, float]) -> list[str]:
    """Which bounds do not hold."""
    bounds = {"time_ratio": _MAX_TIME_RATIO, "bytes_beyond_largest_layer": _MAX_EXTRA_BYTES}
    return [
        f"{name}: {figures[name]:,.2f}, at most {most:,.0f}" for name, most in bounds.items() if figures[name] > most
    ]


def _wall(result: dict[str, Any], kind: str) -> float:
    return median(run["wall"] for run in result[kind])


def _peak(result: dict[str, Any], kind: str) -> float:
    return max(run["peak_rss_bytes"] for run in result[kind])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="0.5b")
    parser.add_argument("--precision", choices=("fp32", "fp8", "int8", "int4"), default="int8")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64, help="of each prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="processes of each kind; the median counts")
    parser.add_argument("--steps", type=int, default=20, help="decode steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, help="keep the model in this folder and use what is there")
    parser.add_argument("--reuse-engines", action="store_true", help="use also engines that are in --models")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def main() -> int:
    options = _arguments()
    with TemporaryDirectory(prefix="dsv3export-diff-") as folder:
        models = Models(options.models or Path(folder), options.preset, options.reuse_engines)
        result = measure(options, models)
    _say(json.dumps(result["summary"]))
    return conclude(result, options.json, broken_bounds(result["summary"]))


if __name__ == "__main__":
    sys.exit(main())
