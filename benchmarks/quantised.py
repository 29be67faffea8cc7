"""Speed and memory of int8 and int4 engines against llama.cpp's Q8_0 and Q4_0 and transformers' bfloat16.

    python benchmarks/quantised.py [--preset 0.5b] [--threads 1,2] [--models FOLDER] [--json FILE]

Needs the packages of `make bench-setup`. Exit code 1 if a program computes another model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from benchmarks.peers import require_peers

    require_peers("gguf", "llama_cpp", "transformers")

from benchmarks.agreement import close_models
from benchmarks.command import finish, frame, settings, speed_options, workspace
from benchmarks.comparison import Comparison
from benchmarks.models import Models
from benchmarks.report import print_report
from benchmarks.subjects import Subject, transformers

# Ours, llama.cpp's format of the same bits, and how far the logits of either may be from float32, relative to them.
# Random weights forgive little: a router's close call that falls the other way changes everything after it, and
# bfloat16 alone is at 0.2 with 0.5b. Unrelated logits would be at 1.41. What quantisation costs, quality.py says.
BITS = {8: ("int8", "Q8_0", 0.5), 4: ("int4", "Q4_0", 1.0)}
_MAX_ERROR_BF16 = 0.5
_REFERENCE = "float32"


def compare(models: Models, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole result, JSON-able."""
    result = frame("quantised", options, models)
    subjects: list[Subject] = []
    builds: dict[str, Any] = {}
    pairs: list[tuple[str, str]] = []
    max_error: dict[str, float] = {}
    theirs = [transformers(models.checkpoint, "bfloat16", kind) for kind in options.transformers]
    for precision, file_type, error in BITS.values():
        engine, build = models.engine(precision, 1)
        ours = Subject(f"dsv3export {precision}", "dsv3export", engine)
        peer = Subject(f"llama.cpp {file_type}", "llama.cpp", models.gguf(file_type))
        subjects += [ours, peer]
        builds[ours.name] = build
        pairs += [(ours.name, other.name) for other in (peer, *theirs)]
        max_error |= {ours.name: error, peer.name: error}
    max_error |= {other.name: _MAX_ERROR_BF16 for other in theirs}
    subjects += theirs
    repeats_of = {"transformers": options.transformers_repeats}
    comparison = Comparison(subjects, models.config, settings(options, repeats_of), folder)
    exact = comparison.reference_logits(transformers(models.checkpoint, _REFERENCE, "default"), max(options.threads))
    by_threads = {}
    for threads in options.threads:
        found = comparison.measure(threads, pairs)
        logits = {subject.name: comparison.logits(subject.name) for subject in subjects}
        by_threads[str(threads)] = {**found, "agreement": close_models(exact, logits, max_error)}
    return {**result, "build": builds, "weights": comparison.weights, "threads": by_threads}


def main() -> int:
    parser = speed_options(__doc__, prefill_tokens="128,512")
    parser.add_argument("--transformers", type=lambda text: text.split(","), default=["eager", "default"],
                        help="its implementations of attention and experts: eager, default")  # fmt: skip
    parser.add_argument("--transformers-repeats", type=int, default=1, help="as --repeats; they take long")
    options = parser.parse_args()
    with workspace(options) as (folder, models):
        result = compare(models, options, folder)
    code = finish(result, options)
    print_report(result)
    return code


if __name__ == "__main__":
    sys.exit(main())
