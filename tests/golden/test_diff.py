"""A check layer by layer, by cases that were never measured."""

from __future__ import annotations

import math

from dsv3export.golden.diff import FirstFault, golden_diff
from dsv3export.golden.results import Case, CheckResult, Measurement, Place
from tests.golden.goldens import small_golden

GATE = "layers.1.mlp.gate"


def measured(metric: str, prompt: int, layer: str | None, value: float, agreement: float | None = None) -> Measurement:
    ties = 0 if agreement is None else 1 + prompt
    return Measurement(metric, prompt, layer, value, value, Place(prompt, 2, 1.5, value), ties, "", agreement)


def check(*cases: Measurement, bound: float = 0.5) -> CheckResult:
    return CheckResult("a.golden", "a model", "int4", tuple(Case(case, bound) for case in cases))


def test_lines_and_means() -> None:
    """The golden has prompts of 3 and 1 tokens, and 3 new ones after each."""
    result = check(
        measured("layers.error", 0, "layers.0", 0.1), measured("layers.median", 0, "layers.0", 0.05),
        measured("layers.error", 1, "layers.0", 0.3), measured("layers.median", 1, "layers.0", 0.01),
        measured("router.margin", 0, GATE, 0.2, 1.0), measured("router.weights", 0, GATE, 0.1),
        measured("router.margin", 1, GATE, 0.1, 0.5),
        measured("logits.kl", 0, None, 0.02, 1.0), measured("logits.kl_mean", 0, None, 0.01),
        measured("logits.kl", 1, None, 0.06, 0.0), measured("logits.kl_mean", 1, None, 0.06),
        measured("greedy.kl", 0, None, 0.2, 1.0), measured("greedy.kl", 1, None, 0.1, 0.5),
    )  # fmt: skip
    diff = golden_diff(small_golden().document, result, "made up")
    assert [line.name for line in diff.layers] == ["layers.0", "layers.1"]
    assert [line.name for line in diff.values] == ["layers.0", GATE]
    layer, router = diff.layers
    assert layer.error is not None and (layer.error.measured.prompt, layer.error.measured.value) == (1, 0.3)
    assert (layer.median, layer.flips, layer.overlap, layer.margin, layer.weights) == (0.05, None, None, None, None)
    assert (router.error, router.median, router.flips, router.margin, router.weights) == (None, None, 3, 0.2, 0.1)
    assert router.overlap == (3 * 1.0 + 1 * 0.5) / 4
    assert diff.logits is not None and diff.continuation is not None
    assert (diff.logits.positions, diff.logits.kl_max, diff.logits.top1) == (4, 0.06, 3 / 4)
    assert diff.logits.kl_mean is not None and math.isclose(diff.logits.kl_mean, (3 * 0.01 + 0.06) / 4)
    assert (diff.continuation.positions, diff.continuation.kl_mean, diff.continuation.top1) == (6, None, 0.75)
    assert diff.first_fault is None


def test_the_first_fault_is_the_first_in_the_model() -> None:
    result = check(
        measured("layers.error", 0, "layers.0", 0.1), measured("router.margin", 1, GATE, 0.7, 0.5),
        measured("logits.kl", 0, None, 9.0, 0.0),
    )  # fmt: skip
    fault = golden_diff(small_golden().document, result, "").first_fault
    assert fault == FirstFault(GATE, "router.margin", 0.7, 0.5, 1, 1, 2, 1.5, 0.7)


def test_a_fault_outside_of_the_layers_has_the_name_of_its_family() -> None:
    result = check(Measurement("logits.kl_mean", 0, None, math.nan, math.nan), measured("logits.kl", 0, None, 1.0, 0.0))
    diff = golden_diff(small_golden().document, result, "")
    fault = diff.first_fault
    assert fault is not None and (fault.name, fault.metric, fault.position) == ("logits", "logits.kl_mean", None)
    assert diff.logits is not None and diff.logits.kl_mean == math.inf
