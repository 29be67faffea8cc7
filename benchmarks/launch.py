"""Starts a worker process, and again if it was disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.meters import wait_until_quiet

_ROOT = Path(__file__).resolve().parents[1]
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class WorkerError(Exception):
    """A worker process failed; its error output is the message."""


def run_worker(kind: str, threads: int, **job: Any) -> dict[str, Any]:
    """Run one job of `benchmarks.worker` to its end; returns its result. Raises WorkerError.

    How threads wait for work is left to each program: a spinning thread shows as CPU time, but made to sleep
    (OMP_WAIT_POLICY=PASSIVE) llama.cpp decodes at half its speed with two threads. So CPU time says something with
    one thread only, and wall time on a quiet machine only.
    """
    environment = {
        **os.environ, **_OFFLINE,
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    text = json.dumps({"kind": kind, "threads": threads, **job}, default=str)
    command = [sys.executable, "-m", "benchmarks.worker", text]
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"{kind} {job.get('model', '')} ended with {done.returncode}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_undisturbed(
    kind: str, threads: int, max_others: float, tries: int, patience: float, **job: Any
) -> dict[str, Any]:
    """As `run_worker`, up to `tries` times until other programs kept away while it measured.

    Args:
        max_others: How many cores others may keep busy, on average, without being in the way.
        patience: Seconds to wait before each try for others to become quiet, at most.

    Returns:
        The result that was disturbed least, its "others" in cores, with "disturbed" added.
    """
    results: list[dict[str, Any]] = []
    while not results or (results[-1]["disturbed"] and len(results) < tries):
        wait_until_quiet(max_others, patience)
        result = run_worker(kind, threads, **job)
        results.append({**result, "disturbed": result["others"] > max_others})
    return min(results, key=lambda result: float(result["others"]))
