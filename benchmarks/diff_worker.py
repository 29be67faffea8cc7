"""Measurements of `diff`: two plain runs, the comparison of both, and a session's steps beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.meters import memory_bytes, peak_rss_bytes, timed
from dsv3export.engine.reader import EngineFiles

Job = dict[str, Any]


def run_executor(job: Job) -> Job:
    """The checkpoint in the engine's arithmetic: logits of every prompt, one after the other."""
    from dsv3export.checkpoint import Checkpoint
    from dsv3export.graphs import Executor

    recipe = EngineFiles.open(job["engine"]).manifest.recipe
    with timed() as span:
        executor = Executor(Checkpoint.open(Path(job["checkpoint"])), recipe=recipe)
        for ids in job["prompts"]:
            executor.logits(ids)
    return {**asdict(span), "peak_rss_bytes": peak_rss_bytes()}


def run_engine(job: Job) -> Job:
    """The engine: logits of every prompt, one after the other."""
    from dsv3export import Engine

    with timed() as span:
        engine = Engine.load(job["engine"], threads=job["threads"])
        for ids in job["prompts"]:
            engine.logits(ids)
    return {**asdict(span), "peak_rss_bytes": peak_rss_bytes()}


def run_diff(job: Job) -> Job:
    """Both, layer by layer, with all metrics."""
    from dsv3export.checkpoint import Checkpoint
    from dsv3export.compare import diff_layers
    from dsv3export.graphs.capture import EngineStages, ExecutorStages

    files = EngineFiles.open(job["engine"])
    imported = memory_bytes()
    with timed() as span:
        exact = ExecutorStages(Checkpoint.open(Path(job["checkpoint"])), job["prompts"], files.manifest.recipe)
        engine = EngineStages(files, job["prompts"], job["threads"])
        found = diff_layers(exact, engine, len(job["prompts"]), float("inf"))
    result = {
        "values": len(found.values),
        "kl_mean": found.logits.kl_mean,
        "largest_layer_bytes": _largest_layer(files),
    }
    return {**asdict(span), "peak_rss_bytes": peak_rss_bytes(), "before": imported, **result}


def steps(job: Job) -> Job:
    """Milliseconds of a decode step, in turns: `rounds` times the median of `steps` steps.

    Of one session: as it is, handing out hidden states, after that, while a captured layer of the same engine is open,
    and after that.
    """
    from dsv3export.graphs.capture import EngineStages
    from dsv3export.runtime.latent_cache import LatentCache
    from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession

    files = EngineFiles.open(job["engine"])
    session = OnnxRuntimeSession(files, threads=job["threads"])
    cache, slot, row = LatentCache(session.cache_layout, 1, 256), range(1), np.array([0])
    token, start = np.array([[5]]), np.array([128])
    capture = EngineStages(files, job["prompts"][:1], job["threads"])

    def plain() -> object:
        return session.step(token, start, cache, slot, row)

    def with_hidden() -> object:
        return session.step_hidden(token, start, cache, slot, row)

    def of(step: Callable[[], object]) -> float:
        return median(_seconds(step) for _ in range(job["steps"])) * 1e3

    found: dict[str, list[float]] = {"before": [], "hidden": [], "between": [], "captured": [], "after": []}
    of(plain)
    for _ in range(job["rounds"]):
        found["before"].append(of(plain))
        found["hidden"].append(of(with_hidden))
        found["between"].append(of(plain))
        with capture.open("embed"):
            found["captured"].append(of(plain))
        capture = EngineStages(files, job["prompts"][:1], job["threads"])
        found["after"].append(of(plain))
    return {name: {"median_ms": median(times), "all_ms": times} for name, times in found.items()}


def _seconds(step: Callable[[], object]) -> float:
    begin = perf_counter()
    step()
    return perf_counter() - begin


def _largest_layer(files: EngineFiles) -> int:
    """Bytes of the weights of the largest layer, in float32."""
    sizes: dict[str, int] = {}
    for name, shape in _tensors(files).items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else name
        sizes[layer] = sizes.get(layer, 0) + 4 * int(np.prod(shape))
    return max(sizes.values())


def _tensors(files: EngineFiles) -> dict[str, tuple[int, ...]]:
    from dsv3export.checkpoint.expected import expected_tensors

    return expected_tensors(files.config)
