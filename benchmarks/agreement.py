"""Whether the subjects compute the same model: a comparison of speed is worth nothing otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Two float32 programs of this depth differ by some 1e-5; one token that takes another expert, by 0.1.
MAX_LOGIT_DIFFERENCE = 2e-4


def same_model(ours: str, logit_files: Mapping[str, Path], token_ids: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Each float32 subject against `ours`: logits float32[prompt, vocab] and greedily generated tokens."""
    expected = np.load(logit_files[ours])
    compared = {}
    for subject, file in logit_files.items():
        if subject == ours:
            continue
        difference = float(np.abs(expected - np.load(file)).max())
        same = [a == b for a, b in zip(token_ids[ours], token_ids[subject], strict=True)]
        compared[subject] = {
            "max_abs_logit_difference": difference,
            "same_tokens": sum(same),
            "tokens": len(same),
            "agree": difference <= MAX_LOGIT_DIFFERENCE and all(same),
        }
    return compared


def close_models(reference: Path, logit_files: Mapping[str, Path], max_error: Mapping[str, float]) -> dict[str, Any]:
    """Each subject of fewer bits against float32 logits of the same prompt.

    The error is that of the root mean squares: |subject - reference| / |reference|, and 1.41 for unrelated logits.
    """
    expected = np.load(reference).astype(np.float64)
    compared = {}
    for subject, file in logit_files.items():
        found = np.load(file).astype(np.float64)
        error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        compared[subject] = {
            "relative_logit_error": error,
            "same_top_token": float((found.argmax(-1) == expected.argmax(-1)).mean()),
            "max_error": max_error[subject],
            "agree": error <= max_error[subject],
        }
    return compared
