"""The comparison notices a different model and different tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import MAX_LOGIT_DIFFERENCE, compare
from benchmarks.subjects import OURS


@pytest.mark.parametrize(
    ("difference", "tokens", "agree"),
    [(0.5 * MAX_LOGIT_DIFFERENCE, [1, 2], True), (2 * MAX_LOGIT_DIFFERENCE, [1, 2], False), (0.0, [1, 3], False)],
)
def test_agreement_needs_equal_logits_and_equal_tokens(
    tmp_path: Path, difference: float, tokens: list[int], agree: bool
) -> None:
    files = {subject: tmp_path / f"{subject}.npy" for subject in (OURS, "other")}
    logits = np.zeros((2, 4), np.float32)
    np.save(files[OURS], logits)
    logits[1, 2] = -difference
    np.save(files["other"], logits)
    found = compare(files, {OURS: [1, 2], "other": tokens})
    assert list(found) == ["other"]
    assert found["other"]["max_abs_logit_difference"] == pytest.approx(difference)
    assert found["other"]["agree"] is agree
