"""Programs that are wrong on purpose: `golden check` fails for each, by the bounds that right programs stay within."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import onnx_ir as ir
import pytest

from dsv3export.checkpoint import Checkpoint
from dsv3export.cli.golden.models import open_model
from dsv3export.compare.stages import StagedModel
from dsv3export.golden import CheckResult, GoldenModel, Settings, check_golden, record_golden
from dsv3export.golden import Golden as GoldenFile
from dsv3export.golden.profile import find_profile, profile_name
from dsv3export.graphs import graph_for
from dsv3export.graphs.capture import ExecutorStages
from dsv3export.recipe import Recipe
from dsv3export.runtime.prompt_file import FilePrompt
from tests.e2e.goldens import Golden
from tests.e2e.test_planted_faults import (
    WRONG_GRAPHS,
    WRONG_KERNELS,
    WRONG_WEIGHTS,
    AlteredWeights,
    Faulty,
    Patch,
    prompts_of,
)

Record = Callable[[Golden, str], GoldenFile]


@pytest.fixture(scope="module")
def recorded() -> Record:
    """The golden of a checkpoint at a precision, made once."""
    return cache(_recorded)


def _recorded(golden: Golden, precision: str) -> GoldenFile:
    model = open_model(str(golden.checkpoint), recipe=Recipe.for_precision(precision))
    prompts = [FilePrompt(None, ids) for ids in prompts_of(golden)]
    return record_golden(model, prompts, Settings(new_tokens=2, detail="all"))


def stages(golden: Golden, precision: str, prompts: Sequence[Sequence[int]]) -> ExecutorStages:
    return ExecutorStages(Checkpoint.open(golden.checkpoint), prompts, Recipe.for_precision(precision))


def checked(found: GoldenFile, golden: Golden, opened: Callable[[Sequence[Sequence[int]]], StagedModel]) -> CheckResult:
    """A program that is looked into, by the profile for one of the golden's own arithmetic."""
    identity = found.document.identity
    model = GoldenModel("in question", Checkpoint.open(golden.checkpoint).config, identity, None, stages=opened)
    profile, _ = find_profile(profile_name(identity, identity), ())
    return check_golden(found, model, profile)


def assert_found(result: CheckResult, place: str) -> None:
    """The check fails at the value where the fault is, which the golden may know under the router's name."""
    first = result.first_failure
    assert first is not None
    assert first.measured.value > first.bound or first.measured.value != first.measured.value
    assert first.measured.layer == place.removesuffix(".ids").removesuffix(".weights")
    assert first.measured.place is None or first.measured.place.expected != first.measured.place.got


@pytest.mark.parametrize("name", WRONG_KERNELS)
def test_a_wrong_kernel(name: str, bf16_golden: Golden, recorded: Record) -> None:
    wrong, place, _ = WRONG_KERNELS[name]
    found = recorded(bf16_golden, "fp32")
    result = checked(found, bf16_golden, lambda ids: Faulty(stages(bf16_golden, "fp32", ids), wrong, bf16_golden))
    assert_found(result, place)


@pytest.mark.parametrize("name", WRONG_GRAPHS)
def test_a_wrong_graph(name: str, bf16_golden: Golden, recorded: Record, monkeypatch: Patch) -> None:
    alter, place = WRONG_GRAPHS[name]
    found = recorded(bf16_golden, "fp32")

    def altered(*arguments: Any) -> ir.Model:
        model = graph_for(*arguments)
        alter(model)
        return model

    monkeypatch.setattr("dsv3export.graphs.executor.graph_for", altered)
    assert_found(checked(found, bf16_golden, lambda ids: stages(bf16_golden, "fp32", ids)), place)


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_a_wrong_weight(name: str, fp8_golden: Golden, recorded: Record) -> None:
    precision, alter, place = WRONG_WEIGHTS[name]
    found = recorded(fp8_golden, precision)

    def opened(ids: Sequence[Sequence[int]]) -> StagedModel:
        wrong = stages(fp8_golden, precision, ids)
        wrong._weights = AlteredWeights(wrong._weights, alter)  # type: ignore[assignment]
        return wrong

    assert_found(checked(found, fp8_golden, opened), place)


@pytest.mark.parametrize(
    ("mlp", "place"),
    [
        ("layers.2.mlp.experts.{}_proj", "layers.2.mlp.experts"),
        ("layers.0.mlp.{}_proj.weight", "layers.0.mlp.gate_proj"),
    ],
)
def test_gate_and_up_in_each_others_place(mlp: str, place: str, bf16_golden: Golden, recorded: Record) -> None:
    gate, up = (f"model.{mlp.format(part)}" for part in ("gate", "up"))

    def opened(ids: Sequence[Sequence[int]]) -> StagedModel:
        wrong = stages(bf16_golden, "fp32", ids)
        wrong._weights = AlteredWeights(wrong._weights, lambda _, w: w, {gate: up, up: gate})  # type: ignore[assignment]
        return wrong

    assert_found(checked(recorded(bf16_golden, "fp32"), bf16_golden, opened), place)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8", "int8", "int4"])
def test_the_right_program_passes(precision: str, fp8_golden: Golden, recorded: Record) -> None:
    result = checked(recorded(fp8_golden, precision), fp8_golden, lambda ids: stages(fp8_golden, precision, ids))
    assert result.passed
    assert len(result.cases) > 200
    assert all(case.measured.value == 0 for case in result.cases)
