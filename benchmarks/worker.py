"""One measurement in a process of its own: reads a job as JSON from argv, prints its result as JSON.

Started by `benchmarks.launch`; a fresh process each time, so that no measurement inherits memory, threads or caches.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import diff_worker
from benchmarks.meters import Span, memory_bytes, peak_rss_bytes, since_process_start, timed
from benchmarks.subjects import PROGRAMS, Model


@dataclass(frozen=True)
class Pass:
    """One round of what is measured: a prefill of each length, and decode steps after the first of them."""

    prefill: dict[int, Span]
    decode: Span
    token_ids: list[int]


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Checkpoint -> engine, start-up and imports included; `options` are further ones of `build_engine`."""
    from dsv3export.graphs.build import build_engine

    options = job.get("options", {})
    report = build_engine(job["checkpoint"], job["engine"], precision=job["precision"], force=True, **options)
    total = since_process_start()
    return {"total": asdict(total), "engine_bytes": report.engine_bytes, "peak_rss_bytes": peak_rss_bytes()}


def limits(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.limits import measure_limits

    return measure_limits(job["threads"], job.get("array_bytes")).as_json()


def generate(job: dict[str, Any]) -> dict[str, Any]:
    """Load, one pass to warm up, then the measured passes; logits of the first length go to the file `logits`."""
    model = _load(job)
    ready = since_process_start()
    prompt, lengths, new_tokens = job["prompt"], job["prefill_tokens"], job["new_tokens"]
    _pass(model, prompt, lengths, min(new_tokens, 2))
    with timed() as all_passes:
        passes = [_pass(model, prompt, lengths, new_tokens) for _ in range(job["passes"])]
    memory = {**memory_bytes(), "peak_rss_bytes": peak_rss_bytes()}
    _save_logits(model, job)
    return {
        "ready": asdict(ready),
        "prefill": {str(length): [asdict(one.prefill[length]) for one in passes] for length in lengths},
        "decode": [asdict(one.decode) for one in passes],
        "token_ids": passes[-1].token_ids,
        "others": all_passes.others,
        **memory,
    }


def reference(job: dict[str, Any]) -> dict[str, Any]:
    """Load and compute logits only: what the subjects' logits are measured by."""
    _save_logits(_load(job), job)
    return {}


def _load(job: dict[str, Any]) -> Model:
    capacity = max(job["prefill_tokens"]) + job["new_tokens"] + 1
    return PROGRAMS[job["program"]](Path(job["model"]), job["threads"], capacity, job["options"])


def _save_logits(model: Model, job: dict[str, Any]) -> None:
    np.save(job["logits"], model.logits(job["prompt"][: job["prefill_tokens"][0]]))


def _pass(model: Model, prompt: list[int], lengths: list[int], new_tokens: int) -> Pass:
    prefill: dict[int, Span] = {}
    decode, tokens = Span(), list[int]()
    for length in lengths:
        first_length = not prefill
        stream = model.stream(prompt[:length], 1 + new_tokens if first_length else 1)
        with timed() as prefill[length]:
            first = next(stream)
        if first_length:
            with timed() as decode:
                tokens = [first, *stream]
    return Pass(prefill, decode, tokens)


KINDS = {
    "build": build,
    "limits": limits,
    "generate": generate,
    "reference": reference,
    "diff": diff_worker.run_diff,
    "diff_executor": diff_worker.run_executor,
    "diff_engine": diff_worker.run_engine,
    "diff_steps": diff_worker.steps,
}

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(KINDS[task["kind"]](task)))
