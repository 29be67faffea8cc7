"""One measurement in a process of its own: reads a job as JSON from argv, prints its result as JSON.

Started by `benchmarks.launch`; a fresh process each time, so that no measurement inherits memory, threads or caches.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.meters import Span, anonymous_rss_bytes, peak_rss_bytes, since_process_start, timed
from benchmarks.subjects import SUBJECTS, Paths, Subject


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Checkpoint -> engine, start-up and imports included."""
    from dsv3export.graphs.build import build_engine

    report = build_engine(job["checkpoint"], job["engine"], force=True)
    total = since_process_start()
    return {"total": asdict(total), "engine_bytes": report.engine_bytes, "peak_rss_bytes": peak_rss_bytes()}


def limits(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.limits import measure_limits

    return measure_limits(job["threads"], job.get("array_bytes")).as_json()


def generate(job: dict[str, Any]) -> dict[str, Any]:
    """Load, one pass to warm up, then the measured passes; logits of the prompt go to the file `logits`."""
    subject = SUBJECTS[job["subject"]](Paths(Path(job["checkpoint"]), Path(job["engine"])), job["threads"])
    ready = since_process_start()
    prompt, new_tokens = job["prompt"], job["new_tokens"]
    _pass(subject, prompt, new_tokens)
    passes = [_pass(subject, prompt, new_tokens) for _ in range(job["passes"])]
    memory = {"peak_rss_bytes": peak_rss_bytes(), "anonymous_rss_bytes": anonymous_rss_bytes()}
    np.save(job["logits"], subject.logits(prompt))
    return {
        "ready": asdict(ready),
        "prefill": [asdict(prefill) for prefill, _, _ in passes],
        "decode": [asdict(decode) for _, decode, _ in passes],
        "token_ids": passes[-1][2],
        **memory,
    }


def _pass(subject: Subject, prompt: list[int], new_tokens: int) -> tuple[Span, Span, list[int]]:
    """(prefill up to the first token, `new_tokens` decode steps, all tokens)."""
    stream = subject.stream(prompt, 1 + new_tokens)
    with timed() as prefill:
        first = next(stream)
    with timed() as decode:
        rest = list(stream)
    return prefill, decode, [first, *rest]


KINDS = {"build": build, "limits": limits, "generate": generate}

if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(KINDS[task["kind"]](task)))
