"""Speed and memory of a float32 engine against transformers, on the same model, the same machine, in the same minutes.

    python benchmarks/decode.py [--preset 0.5b] [--threads 1,2] [--prefill-tokens 128] [--new-tokens 32] [--json FILE]

Exit code 1 if the programs do not compute the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.agreement import same_model
from benchmarks.command import finish, frame, settings, speed_options, workspace
from benchmarks.comparison import Comparison
from benchmarks.models import Models
from benchmarks.report import print_report
from benchmarks.subjects import Subject, transformers

OURS = "dsv3export f32"


def compare(models: Models, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole result, JSON-able."""
    result = frame("decode", options, models)
    engine, builds = models.engine("fp32", options.repeats)
    theirs = [transformers(models.checkpoint, "float32", kind) for kind in ("eager", "default")]
    subjects = [Subject(OURS, "dsv3export", engine), *theirs]
    comparison = Comparison(subjects, models.config, settings(options), folder)
    by_threads = {}
    for threads in options.threads:
        found = comparison.measure(threads, [(OURS, other.name) for other in theirs])
        tokens = {name: runs[-1]["token_ids"] for name, runs in found["runs"].items()}
        logits = {subject.name: comparison.logits(subject.name) for subject in subjects}
        by_threads[str(threads)] = {**found, "agreement": same_model(OURS, logits, tokens)}
    return {**result, "build": {OURS: builds}, "weights": comparison.weights, "threads": by_threads}


def main() -> int:
    options = speed_options(__doc__, prefill_tokens="128").parse_args()
    with workspace(options) as (folder, models):
        result = compare(models, options, folder)
    code = finish(result, options)
    print_report(result)
    return code


if __name__ == "__main__":
    sys.exit(main())
