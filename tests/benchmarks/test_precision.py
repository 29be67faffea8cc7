"""What the README states about precisions, and how it is computed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.precision import VARIANTS, Laboratory, Measured, figures, share_removed, table
from dsv3export.evaluate import Comparison, Evaluation


@pytest.fixture(scope="module")
def measured(tiny_bf16: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    text = root / "tests/data/goldens/heldout.txt"
    laboratory = Laboratory(tiny_bf16, text, tmp_path_factory.mktemp("precision"))
    return {name: laboratory.measure(variant) for name, variant in VARIANTS.items()}


@pytest.mark.slow
def test_float32_is_the_executor(measured: dict[str, Measured]) -> None:
    comparison = measured["float32"].comparison
    assert comparison.model.tokens == 5647
    assert comparison.kl_mean < 1e-9
    assert comparison.top1_agreement >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ratio", "kl", "top1"),
    [
        ("fp8", 1.002, 0.0015, 0.97),
        ("int8", 1.002, 0.0007, 0.99),
        ("int8, calibrated", 1.002, 0.0006, 0.985),
        ("int4", 1.008, 0.008, 0.93),
        ("int4, calibrated", 1.004, 0.0035, 0.96),
    ],
)
def test_what_is_stated_holds(measured: dict[str, Measured], name: str, ratio: float, kl: float, top1: float) -> None:
    row = figures(measured[name])
    assert row["perplexity_ratio"] <= ratio
    assert row["kl_mean"] <= kl
    assert row["top1_agreement"] >= top1


@pytest.mark.slow
def test_calibration_removes_half_of_what_plain_rounding_costs(measured: dict[str, Measured]) -> None:
    plain, fitted = measured["int4, plain rounding"].comparison, measured["int4, calibrated"].comparison
    share, error = share_removed(fitted, plain)
    assert share >= 0.5
    assert error < 0.25
    assert fitted.kl_mean <= 0.5 * plain.kl_mean


@pytest.mark.slow
def test_the_table_has_a_row_for_each(measured: dict[str, Measured]) -> None:
    lines = list(table({name: figures(one) for name, one in measured.items()}))
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[2:]] == list(VARIANTS)
    assert {line.count("|") for line in lines} == {7}
    sizes = {name: one.nbytes for name, one in measured.items()}
    assert sizes["int4"] < sizes["int8"] < 0.31 * sizes["float32"]


def comparison(increase: list[float]) -> Comparison:
    against = np.linspace(1, 2, len(increase))
    nothing = np.zeros(len(increase))
    return Comparison(Evaluation(against + increase, 255), Evaluation(against, 255), nothing, nothing == 0)


def test_share_removed() -> None:
    plain = [0.3, -0.1, 0.4, 0.2]
    assert share_removed(comparison([0.0] * 4), comparison(plain)) == (1.0, 0.0)
    share, error = share_removed(comparison([each / 4 for each in plain]), comparison(plain))
    assert (share, error) == pytest.approx((0.75, 0.0), abs=1e-12)
    share, error = share_removed(comparison([0.1, 0.1, -0.1, 0.3]), comparison(plain))
    assert share == pytest.approx(0.5)
    # Residuals left - plain / 2: -0.05, 0.15, -0.3, 0.2; their deviation over sqrt(4) and the mean increase, 0.2.
    expected = math.sqrt(sum(each**2 for each in (-0.05, 0.15, -0.3, 0.2)) / 3) / 2 / 0.2
    assert error == pytest.approx(expected)
