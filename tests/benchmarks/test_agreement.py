"""The comparison notices a different model and different tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.agreement import MAX_LOGIT_DIFFERENCE, close_models, same_model


@pytest.mark.parametrize(
    ("difference", "tokens", "agree"),
    [(0.5 * MAX_LOGIT_DIFFERENCE, [1, 2], True), (2 * MAX_LOGIT_DIFFERENCE, [1, 2], False), (0.0, [1, 3], False)],
)
def test_float32_needs_equal_logits_and_equal_tokens(
    tmp_path: Path, difference: float, tokens: list[int], agree: bool
) -> None:
    files = {subject: tmp_path / f"{subject}.npy" for subject in ("ours", "other")}
    logits = np.zeros((2, 4), np.float32)
    np.save(files["ours"], logits)
    logits[1, 2] = -difference
    np.save(files["other"], logits)
    found = same_model("ours", files, {"ours": [1, 2], "other": tokens})
    assert list(found) == ["other"]
    assert found["other"]["max_abs_logit_difference"] == pytest.approx(difference)
    assert found["other"]["agree"] is agree


def test_fewer_bits_may_be_as_far_from_float32_as_their_bound(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((20, 100)).astype(np.float32)
    noise = rng.standard_normal(exact.shape).astype(np.float32)
    files = {name: tmp_path / f"{name}.npy" for name in ("near", "far", "other model")}
    np.save(tmp_path / "exact.npy", exact)
    np.save(files["near"], exact + 0.1 * noise)
    np.save(files["far"], exact + 0.3 * noise)
    np.save(files["other model"], noise)
    found = close_models(tmp_path / "exact.npy", files, dict.fromkeys(files, 0.2))
    assert {name: one["agree"] for name, one in found.items()} == {"near": True, "far": False, "other model": False}
    assert found["near"]["relative_logit_error"] == pytest.approx(0.1, rel=0.1)
    assert found["other model"]["relative_logit_error"] == pytest.approx(2**0.5, rel=0.1)
    assert found["near"]["same_top_token"] > found["other model"]["same_top_token"]
