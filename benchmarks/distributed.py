"""One process with two threads beside two ranks with one each, on one machine of two cores.

    python -m benchmarks.distributed FOLDER --preset 0.5b -o benchmarks/results/distributed.json

FOLDER gets the synthetic checkpoint and int8 engines, rounded to nearest: in one piece, and cut in each way (pp 2,
tp 2, ep 2). Each is measured in processes of its own: prompt tokens and new tokens per second, for one sequence and for
eight; which share of its time each rank waited for the other; and by how much its resident memory has grown at its peak
since torch and ONNX Runtime were imported, beside the plan's bytes of its weights and latent caches. All results of a
file are kept, by preset.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.machine import machine_facts
from benchmarks.meters import memory_bytes, peak_rss_bytes
from benchmarks.models import Models
from benchmarks.recipes import with_method
from dsv3export.engine.parallel import Layout, Parallel
from dsv3export.engine.reader import EngineFiles
from dsv3export.runtime.engine import Engine

LAYOUTS = {"one process": None, "pp 2": Layout(pp=2), "tp 2": Layout(tp=2), "ep 2": Layout(ep=2)}
PROMPT, NEW, BATCH, REPEATS = 128, 24, 8, 3
_THREADS = 2
_GROWTH = "DSV3EXPORT_BENCHMARK_GROWTH"  # the folder in which each rank leaves what it has grown by


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="0.5b")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        _work(asked.folder)
        return
    checkpoint = Models(asked.folder, asked.preset).checkpoint
    results = {name: measured(_engine(checkpoint, name, layout), layout) for name, layout in LAYOUTS.items()}
    for name, result in results.items():
        base = results["one process"]
        ratios = {key: round(result[key] / base[key], 3) for key in result if key.endswith("per_second")}
        print(f"{name:12} {json.dumps(result)} ratios {json.dumps(ratios)}")
    if asked.output:
        kept = json.loads(asked.output.read_text()) if asked.output.exists() else {}
        kept[asked.preset] = {"machine": machine_facts(), "results": results}
        asked.output.write_text(json.dumps(kept, indent=2) + "\n")


def _engine(checkpoint: Path, name: str, layout: Layout | None) -> Path:
    from dsv3export.graphs.build import build_engine

    out = checkpoint.parent / f"{checkpoint.name}-{name.replace(' ', '')}.engine"
    if not out.exists():
        recipe = checkpoint.parent / "int8-rtn.toml"
        recipe.write_text(with_method("int8", "rtn"), encoding="utf-8")
        build_engine(checkpoint, out, recipe=recipe, layout=layout)
    return out


def measured(engine: Path, layout: Layout | None) -> dict[str, Any]:
    command = ["-m", "benchmarks.distributed", str(engine), "--worker"]
    if layout:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(layout.world)]
        command = [*launcher, *command]
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", _GROWTH: folder}
        command = [sys.executable, *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        grown = {int(file.name): int(file.read_text()) for file in Path(folder).iterdir()}
    parallel = EngineFiles.open(engine).manifest.parallel
    return {**result, **(_memory(parallel, grown, result) if parallel else {})}


def _memory(parallel: Parallel, grown: dict[int, int], result: dict[str, Any]) -> dict[str, float]:
    """Growth of each rank's memory, and its ratio to the weights and latent caches that the rank holds by the plan."""
    found: dict[str, float] = {}
    for plan in parallel.ranks:
        held = plan.weight_bytes + result[f"cache_bytes_of_rank_{plan.rank}"]
        found[f"memory_growth_bytes_of_rank_{plan.rank}"] = grown[plan.rank]
        found[f"memory_ratio_to_plan_of_rank_{plan.rank}"] = round(grown[plan.rank] / held, 3)
    return found


def _work(path: Path) -> None:
    """In the process, or the rank, that is measured; rank 0 prints a line of JSON."""
    import onnxruntime  # noqa: F401 - its pages are not the engine's
    import torch.distributed  # noqa: F401

    rank, before = int(os.environ.get("RANK", "0")), sum(memory_bytes().values())
    if rank:
        from dsv3export.runtime.distributed.join import take_part

        take_part(path)
    else:
        _drive(path)
    Path(os.environ[_GROWTH], str(rank)).write_text(str(peak_rss_bytes() - before))


def _drive(path: Path) -> None:
    threads = None if "RANK" in os.environ else _THREADS
    engine = Engine.load(path, threads, max_batch=BATCH)
    tokens = np.random.default_rng(0).integers(3, engine.config.vocab_size, (BATCH, PROMPT)).tolist()
    engine.generate(tokens[0][:8], 4, ignore_eos=True)
    rates = {
        "prefill_per_second": _rate(lambda: engine.generate(tokens[0], 1, ignore_eos=True), PROMPT),
        "decode_per_second": _rate(lambda: engine.generate(tokens[0][:2], NEW, ignore_eos=True), NEW),
        "decode_of_8_per_second": _rate(
            lambda: engine.generate([each[:2] for each in tokens], NEW, ignore_eos=True), NEW * BATCH
        ),
    }
    ranks = engine.rank_figures()
    busy = {f"waiting_share_of_rank_{each.rank}": round(each.waiting_share, 3)
            for each in ranks}  # fmt: skip
    memory = {f"peak_memory_bytes_of_rank_{each.rank}": each.peak_memory_bytes for each in ranks}
    caches = {f"cache_bytes_of_rank_{each.rank}": each.cache_bytes for each in ranks}
    print(json.dumps({**rates, **busy, **memory, **caches}))
    engine.close()


def _rate(work: Callable[[], object], count: int) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return round(count / median(seconds), 2)


if __name__ == "__main__":
    main()
