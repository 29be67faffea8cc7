"""Whether the subjects compute the same model: a comparison of speed is worth nothing otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.subjects import OURS

# Two float32 programs of this depth differ by some 1e-5; one token that takes another expert, by 0.1.
MAX_LOGIT_DIFFERENCE = 2e-4


def compare(logit_files: Mapping[str, Path], token_ids: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Each subject against ours: logits float32[prompt, vocab] and greedily generated tokens."""
    ours = np.load(logit_files[OURS])
    compared = {}
    for subject, file in logit_files.items():
        if subject == OURS:
            continue
        difference = float(np.abs(ours - np.load(file)).max())
        same = [a == b for a, b in zip(token_ids[OURS], token_ids[subject], strict=True)]
        compared[subject] = {
            "max_abs_logit_difference": difference,
            "same_tokens": sum(same),
            "tokens": len(same),
            "agree": difference <= MAX_LOGIT_DIFFERENCE and all(same),
        }
    return compared
