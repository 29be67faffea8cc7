"""A small model by the kernels in Triton's interpreter and by the definitions of its ops: how far apart the two are.

A process of its own, since Triton decides when it is imported whether it compiles. Argument: a checkpoint; on stdin a
JSON array of cases. A line of JSON for each case: ||a - b|| / ||a|| of each step's results and of the caches.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from dsv3export.plugins.kernels.interpreter import start_interpreting

start_interpreting()

from dsv3export.checkpoint import Checkpoint  # noqa: E402 - before torch traces, which may import Triton
from dsv3export.graphs import Executor  # noqa: E402
from dsv3export.graphs.triton_kernels import TritonKernels  # noqa: E402
from dsv3export.recipe import Recipe  # noqa: E402
from dsv3export.runtime.latent_cache import LatentCache  # noqa: E402

SLOTS, CAPACITY = 2, 300
# Slots, tokens of each, and how many each holds before: a start, a chunk over a cache, a decode step, a verification.
STEPS = (
    (range(2), 3, (0, 0)),
    (range(1, 2), 16, (3,)),
    (range(2), 1, (3, 19)),
    (range(2), 2, (4, 20)),
)


def recipe(name: str) -> Recipe:
    """A precision, then what is changed: ``fp8 1x128``, ``int4 zero``, with ``cache=..``."""
    precision, *changes = name.split()
    chosen = Recipe.for_precision(precision)
    for change in changes:
        if change.startswith("cache="):
            chosen = chosen.with_cache(change.removeprefix("cache="))
    if "1x128" in changes or "zero" in changes:
        document = chosen.to_json()
        components: dict[str, Any] = document["components"]
        for scheme in components.values():
            if "1x128" in changes and scheme["format"] == "fp8":
                scheme["activations"] = "1x128"
            if "zero" in changes and scheme["format"] == "int4":
                scheme["symmetric"] = False
        chosen = Recipe.from_json(document)
    return chosen


def steps(executor: Executor) -> list[Any]:
    """What each step gives, then the caches, then a draft of the MTP layer."""
    random = np.random.default_rng(7)
    cache = LatentCache(executor.cache_layout, SLOTS, CAPACITY)
    draft_cache = LatentCache(executor.draft_cache_layout, SLOTS, CAPACITY)
    found = []
    for slots, count, held in STEPS:
        shape = len(slots), count
        ids, start = random.integers(0, executor.vocab_size, shape), np.array(held)
        rows = np.arange(len(slots) * count)
        logits, hidden = executor.step_hidden(ids, start, cache, slots, rows)
        drafts, _ = executor.draft(hidden, ids, start, draft_cache, slots, rows)
        found += [logits, hidden, drafts]
    caches = [value.astype(np.float32) for _, value in cache.inputs(range(SLOTS))]
    return [*found, *caches]


def main() -> None:
    checkpoint = Checkpoint.open(sys.argv[1])
    for case in json.load(sys.stdin):
        name, activations, budget = case["recipe"], case["activations"], case["budget"]
        chosen = recipe(name)
        right = steps(Executor(checkpoint, recipe=chosen))
        kernels = TritonKernels.interpreted(activations)
        got = steps(Executor(checkpoint, budget, chosen, kernels=kernels))
        norms = [(float(np.linalg.norm(a - b)), float(np.linalg.norm(a))) for a, b in zip(right, got, strict=True)]
        sys.stdout.write(json.dumps([error / (norm or 1.0) for error, norm in norms]) + "\n")


if __name__ == "__main__":
    main()
