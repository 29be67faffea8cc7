"""One process with two threads beside two ranks with one each, on one machine of two cores.

    python -m benchmarks.distributed FOLDER --preset 0.5b -o benchmarks/results/distributed.json

FOLDER gets the synthetic checkpoint and int8 engines: in one piece, and cut in each way (pp 2, tp 2, ep 2). Each is
measured in processes of its own: prompt tokens and new tokens per second, for one sequence and for eight, and which
share of rank 0's time went into waiting for the other. All results of a file are kept, by preset.
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
from typing import Any

import numpy as np

from benchmarks.machine import machine_facts
from benchmarks.models import Models
from dsv3export.engine.parallel import Layout
from dsv3export.runtime.engine import Engine

LAYOUTS = {"one process": None, "pp 2": Layout(pp=2), "tp 2": Layout(tp=2), "ep 2": Layout(ep=2)}
PROMPT, NEW, BATCH, REPEATS = 128, 24, 8, 3
_THREADS = 2


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
    results = {name: _measured(_engine(checkpoint, name, layout), layout) for name, layout in LAYOUTS.items()}
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
        build_engine(checkpoint, out, precision="int8", layout=layout)
    return out


def _measured(engine: Path, layout: Layout | None) -> dict[str, Any]:
    command = ["-m", "benchmarks.distributed", str(engine), "--worker"]
    if layout:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(layout.world)]
        command = [*launcher, *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _work(path: Path) -> None:
    """In the process, or the rank, that is measured; prints a line of JSON."""
    if int(os.environ.get("RANK", "0")):
        from dsv3export.runtime.distributed.join import take_part

        take_part(path)
        return
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
    busy = {f"waiting_share_of_rank_{each.rank}": _share(each.communication_seconds, each.compute_seconds)
            for each in ranks}  # fmt: skip
    memory = {f"peak_memory_bytes_of_rank_{each.rank}": each.peak_memory_bytes for each in ranks}
    print(json.dumps({**rates, **busy, **memory}))
    engine.close()


def _rate(work: Callable[[], object], count: int) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return round(count / median(seconds), 2)


def _share(waited: float, computed: float) -> float:
    return round(waited / (waited + computed), 3)


if __name__ == "__main__":
    main()
