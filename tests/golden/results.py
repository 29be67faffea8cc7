"""Results of checks that were never made, for reports."""

from __future__ import annotations

from dsv3export.golden.results import Case, CheckResult, Measurement, Place

HOSTILE = '<img src=x onerror="alert(1)">&]]>\x00\x1b[31m,::error::%0A\n'


def result(failing: int = 1, model: str = "model.engine", golden: str = "a,b:c%.golden") -> CheckResult:
    """Two prompts of three layers and logits; the first `failing` layers of prompt 1 are wrong."""
    cases = [Case(Measurement("tokens", 0, None, 0.0, 0.0), 0.0)]
    for layer in range(max(3, failing)):
        for prompt in range(2):
            value = 0.5 if prompt == 1 and layer < failing else 0.01
            place = Place(7, 3, 1.25, 2.5)
            cases.append(Case(Measurement("layers.error", prompt, f"layers.{layer}", value, value, place), 0.1))
            cases.append(Case(Measurement("layers.median", prompt, f"layers.{layer}", 0.0, 0.0), 0.1))
    cases.append(Case(Measurement("router.margin", 0, "layers.1.mlp.gate", 0.0, 0.001, None), 0.1))
    note = "step 2: 5 for 9 across 0.01 nats"
    cases.append(Case(Measurement("greedy.margin", 1, None, 0.01, 0.02, Place(2, None, 9, 5), 1, note), 0.1))
    cases.append(Case(Measurement("text.nll", None, None, 0.001, 0.001, Place(0, None, 3.5, 3.501)), 0.1))
    return CheckResult(golden, model, "int4", tuple(cases), ("layers.9: the model does not show it",), ("another",))
